"""Wrong values are refused by errors that name the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import textenv
from tests.helpers.env_helpers import TOKENIZER, make_vec, vector_env
from tests.helpers.forked_python import PYTHON
from textenv.agents.base.registry import get_agent, register_agent
from textenv.agents.evaluation.metrics.registry import register_metric
from textenv.agents.loggers.registry import register_logger
from textenv.agents.losses.advantages import register_advantage
from textenv.agents.losses.aggregation import register_aggregation
from textenv.prompts.pairs import encode_pairs
from textenv.prompts.prompt_set import PromptSet
from textenv.tasks import make_task
from textenv.tasks.registry import register_task
from textenv.tasks.task import TaskData
from textenv.utils.checks import MAX_SEED, as_token_ids, check_choice, check_device, row_seeds
from textenv.utils.host_memory import check_fits
from textenv.utils.names import nearest, shown

REFUSED = (TypeError, ValueError)


class TestSeeds:
    @pytest.mark.parametrize(
        "seed",
        [-1, 1.0, 1.5, math.nan, math.inf, True, "1", 2**63, 2**64, 2**200, 1j, {"a": 1}, {1, 2}, b"ab",
         [1], [1, 2, 3], [1.9, 2], [True, 2], ["a", "b"], [1, -2], [1, 2**63], np.array([1.0, 2.0]),
         np.float64(1), np.bool_(True), np.array(3)],
        ids=repr,
    )  # fmt: skip
    def test_of_an_environment(self, seed: Any) -> None:
        with pytest.raises(REFUSED, match=r"seed(\[\d\])? must be"):
            vector_env(2).reset(seed=seed)

    def test_the_last_row_counts(self) -> None:
        assert row_seeds(MAX_SEED - 1, 2) == [2**63 - 2, 2**63 - 1]
        with pytest.raises(ValueError, match="seed must be <= 9223372036854775806, got 9223372036854775807"):
            row_seeds(MAX_SEED, 2)

    @pytest.mark.parametrize("seed", [np.int32(7), np.uint8(7), np.int64(7)], ids=repr)
    def test_numpy_integers_are_integers(self, seed: Any) -> None:
        def episode_ids(seed: Any) -> list[int]:
            return vector_env(2).reset(seed=seed)[1]["key"].tolist()

        assert episode_ids(seed) == episode_ids(7)
        assert episode_ids(np.array([7, 8])) == episode_ids([7, 8]) == episode_ids(7)

    @pytest.mark.parametrize("seed", [-1, 1.5, True, 2**63, "a"], ids=repr)
    def test_of_a_single_environment(self, seed: Any) -> None:
        with pytest.raises(REFUSED, match="seed must be"):
            gym.make("TextRLHF-v0").reset(seed=seed)

    @pytest.mark.parametrize("seed", [-1, 1.5, True, 2**32, "a"], ids=repr)
    def test_of_a_task(self, seed: Any) -> None:
        with pytest.raises(REFUSED, match="seed must be"):
            make_task("random-walks").build(seed=seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([1], r"options must be a dict, got \[1\]"),
        ("episodes", "options must be a dict, got 'episodes'"),
        ({3: 4}, "options must be one of .*, got 3"),
        ({"episodes": True}, r"options\['episodes'\] must be an integer, got True"),
        ({"episodes": 10**15}, "1000000000000000 episodes need at least"),
        ({"episodes": 2, "first_ticket": 2**63 - 1}, "must be <= 9223372036854775807"),
        ({"episodes": 2, "first_ticket": 2**70}, "must be <= 9223372036854775807"),
    ],
)
def test_reset_options(options: Any, message: str) -> None:
    with pytest.raises(REFUSED, match=message):
        vector_env(2).reset(seed=0, options=options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("shuffle", "episode_statistics", "chat_template")
          for value in ("no", 0, 1, None, [])),
        *((name, value) for name in ("stop_token_ids", "suppressed_tokens")
          for value in (3, "ab", b"ab", [1.0], [True], ["1"], [None], [[1]], [2**70], {"a": 1})),
        *(("stop_strings", value) for value in (5, b"ab", [b"a"], ["a", 3], ["\ud800"], True)),
        *(("device", value) for value in ("gpu", "cuda:99", 3.5, ["cpu"], "")),
        *(("task_kwargs", value) for value in ([1], "x", [("seed", 1)], 3)),
        *(("max_episode_steps", value) for value in (-1, 0, "x", 2.0, True)),
        *(("render_mode", value) for value in (1, True, ["ansi"], "ANSI")),
        *(("autoreset", value) for value in (["same_step"], True, None)),
        *(("rewards", value) for value in (b"length", {"length": {}}, 3)),
    ],
    ids=repr,
)  # fmt: skip
def test_arguments_of_make_vec(name: str, value: Any) -> None:
    base = {} if name in ("stop_token_ids", "suppressed_tokens", "stop_strings") else {"max_new_tokens": None}
    with pytest.raises(REFUSED, match=rf"^{name}(\[\d\])? (must|can't|'|3\.5|\[)"):
        make_vec(2, **{**base, name: value})


def test_what_does_not_fit_into_memory_is_refused_before_it_is_allocated() -> None:
    for arguments in ({"num_envs": 10**13}, {"num_envs": 2, "max_new_tokens": 10**13}):
        with pytest.raises(ValueError, match=r"num_envs=\d+ rows of \d+ tokens need at least .* GiB"):
            vector_env(**arguments)
    check_fits("a bit", 8)


def test_tasks_by_anything_but_a_name() -> None:
    for name in (["random-walks"], 5, b"random-walks"):
        with pytest.raises(ValueError, match="unknown task"):
            make_vec(2, task=name, prompts=None, tokenizer=None)
        with pytest.raises(ValueError, match="unknown agent"):
            get_agent(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "actions",
    [[[1], [1, 2], [3]], [2**63] * 3, [2**70] * 3, [True] * 3, np.array([2**64 - 1] * 3, dtype=np.uint64),
     "abc", [b"a"] * 3, [None] * 3, {"a": 1}],
    ids=repr,
)  # fmt: skip
def test_actions(actions: Any) -> None:
    with pytest.raises(REFUSED, match=r"^actions must"):
        as_token_ids(actions, 3, torch.device("cpu"))


@pytest.mark.parametrize(
    "row", [[1.5], [[1]], [True], ["a"], "ab", 5, [1, [2]], [None], [2**70], {1: 2}], ids=repr
)
def test_prompts_are_lists_of_integers(row: Any) -> None:
    with pytest.raises(TypeError, match=r"prompts\[1\] must be a list of token ids \(integers\), got"):
        PromptSet([[1], row])


@pytest.mark.parametrize("one", [-1, 2**31, 2**32 + 1, -(2**40)])
def test_ids_that_no_vocabulary_has_do_not_wrap_around(one: int) -> None:
    prompts = PromptSet([[1], [2, one]])
    with pytest.raises(ValueError, match=rf"prompts\[1\] must hold token ids in \[0, 11\), .*, got {one}$"):
        prompts.check_token_ids(11)
    with pytest.raises(ValueError, match=rf"prompts\[1\] must hold token ids in .*, got {one}$"):
        prompts.rows(np.array([0]))


def test_texts_that_the_tokenizer_cannot_read_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"prompts\[1\] can't be tokenised: it holds half of a surrogate pair"
    ):
        PromptSet.from_texts(["a", "b\ud800"], TOKENIZER)
    with pytest.raises(ValueError, match=r"prompts\[1\] can't be tokenised: .*UNK.*; got 'z'"):
        PromptSet.from_texts(["a", "z"], TOKENIZER)
    with pytest.raises(ValueError, match=r"completions\[0\] can't be tokenised: .*UNK.*; got 'z'"):
        encode_pairs(["a"], ["z"], TOKENIZER)


class TestMessages:
    def test_long_values_are_cut(self) -> None:
        for value in (
            list(range(50_000)),
            "x" * 10**6,
            {i: i for i in range(50_000)},
            10**5000,
            torch.zeros(10**5),
        ):
            assert len(shown(value)) <= 400, type(value)

    def test_long_lists_of_names_are_cut(self) -> None:
        labels = [f"LABEL_{i}" for i in range(50_000)]
        text = nearest("LABEL_77x", labels, "its labels")
        assert len(text) < 1000
        assert text.startswith("its labels: LABEL_77")
        assert text.endswith(" and 49960 more")
        with pytest.raises(ValueError, match=r"split must be one of 'LABEL_0', .* and 49960 more, got 'x'"):
            check_choice("split", "x", labels)

    def test_choices_compare_kinds(self) -> None:
        check_choice("letters", np.int64(2), range(5))
        for value in (True, 1.0, "1", [1], np.array([1, 2])):
            with pytest.raises(ValueError, match="letters must be one of 0, 1, 2, got"):
                check_choice("letters", value, range(3))

    def test_devices(self) -> None:
        assert check_device("device", torch.device("cpu")) == torch.device("cpu")
        with pytest.raises(
            ValueError, match=r"policy: device must be a device that this machine has \('cpu'.*\), got 'gpu'$"
        ):
            check_device("policy: device", "gpu")


class TestRegistries:
    @pytest.mark.parametrize("name", ["", "a b", "../x", 5, None, "a\n", "-a", ["a"]], ids=repr)
    @pytest.mark.parametrize(
        "register",
        [register_task, register_agent, register_logger, register_metric, register_advantage,
         register_aggregation, textenv.register_reward],
    )  # fmt: skip
    def test_names(self, register: Callable[[Any], Any], name: Any) -> None:
        with pytest.raises(ValueError, match="name"):
            register(name)(lambda *args, **kwargs: None)

    def test_built_in_names_are_taken_whoever_comes_first(self) -> None:
        script = """
from importlib import import_module
class Own:
    config_class, online = object, True
def own(**kwargs): pass
for module, kind, name in (
    ("tasks.registry", "task", "random-walks"), ("agents.evaluation.metrics.registry", "metric", "rouge"),
    ("rewards.registry", "reward", "length"), ("agents.base.registry", "agent", "ppo"),
    ("agents.loggers.registry", "logger", "rich"), ("agents.losses.advantages", "advantage", "gae"),
    ("agents.losses.aggregation", "aggregation", "token-mean"),
):
    register = getattr(import_module("textenv." + module), "register_" + kind)
    try: register(name)(Own if kind == "agent" else own)
    except ValueError as error: assert "already registered" in str(error), error
    else: raise AssertionError(kind)
"""
        done = PYTHON.run(["-c", script])
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [("rewards", "length"), ("rewards", {"length": {}}), ("max_new_tokens", 0), ("max_new_tokens", 1.5),
     ("max_new_tokens", True), ("max_prompt_tokens", 0), ("max_prompt_tokens", "3"), ("min_new_tokens", -1),
     ("min_new_tokens", 4)],
)  # fmt: skip
def test_task_data(field: str, value: Any) -> None:
    pieces: dict[str, Any] = {"prompts": ["a"], "tokenizer": TOKENIZER, "rewards": [], "max_new_tokens": 3}
    with pytest.raises(REFUSED, match=f"{field} must"):
        TaskData(**{**pieces, field: value})
