"""Wrong data is refused by errors that name the place: records, files, data sets, episodes, pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import textenv
from tests.helpers.env_helpers import TOKENIZER, by_key
from tests.helpers.models import tiny
from textenv.agents.data.episodes import as_demonstrations, as_episodes
from textenv.agents.make import make_agent
from textenv.data.loading import (
    episodes_from_records,
    load_columns,
    preferences_from_records,
    prompts_from_records,
)
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.prompts.prompt_set import PromptSet
from textenv.tasks.make import make_env, make_vec_env

REFUSED = (TypeError, ValueError)
ROW = {"prompt": "a", "completion": "b", "reward": 1.0}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("reward", x) for x in (np.bool_(True), np.float32("nan"), Decimal("1.5"), torch.tensor(1.0), -1e39,
                                  10**400, datetime(2020, 1, 1), [1.0], "1", 1j)),
        *(("completion", x) for x in (b"b", {"a": 1}, 5, None, "\ud800")),
    ],
    ids=repr,
)  # fmt: skip
def test_values_of_episodes(name: str, value: Any) -> None:
    with pytest.raises(REFUSED, match=f"^row 1: {name}"):
        episodes_from_records(load_columns([ROW, {**ROW, name: value}]), TOKENIZER)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.float16(0.5)], ids=repr)
def test_numpy_numbers_are_numbers(value: Any) -> None:
    records = load_columns([{**ROW, "reward": value}, {**ROW, "prompt": "c", "reward": np.int64(2)}])
    assert episodes_from_records(records, TOKENIZER).returns.tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label", math.nan),
        ("label", 2),
        ("margin", True),
        ("margin", 1e300),
        ("chosen", "\ud800"),
        ("prompt", b"a"),
    ],
    ids=repr,
)
def test_values_of_pairs(name: str, value: Any) -> None:
    with pytest.raises(REFUSED, match=f"^row 0: {name}"):
        preferences_from_records(load_columns([{**PAIR, name: value}]), TOKENIZER)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_length", 0), ("max_length", True), ("max_length", 1.5), ("append_eos", "no"), ("append_eos", 0),
     ("chat_template", "x"), ("turns", "first")],
    ids=repr,
)  # fmt: skip
def test_arguments_of_episodes_from_records(name: str, value: Any) -> None:
    with pytest.raises(REFUSED, match=f"^{name} must be"):
        episodes_from_records(load_columns([ROW]), TOKENIZER, **{name: value})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"prompt": "a", 3: 4}], "row 0: the name of a column must be a string, got 3"),
        ({"prompt": ["a"], None: ["b"]}, "the name of a column must be a string, got None"),
        *(({"prompt": value}, "column 'prompt' must be a list of values, got")
          for value in ("abc", b"ab", 5, None, {"a": 1}, {"a"}, iter("ab"))),
        (pa.table({"prompt": ["a"]}), "data must be a path, .*, got Table"),
        (datasets.Dataset.from_dict({"prompt": ["a", None]}), "row 1: prompt is null"),
        (datasets.Dataset.from_dict({"prompt": []}), "the dataset holds no records"),
    ],
)  # fmt: skip
def test_sources(data: Any, message: str) -> None:
    with pytest.raises(REFUSED, match=message):
        prompts_from_records(load_columns(data), TOKENIZER)


@pytest.mark.parametrize(
    "arguments",
    [{"rename": ["p"]}, {"rename": {"prompt": 5}}, {"columns": "prompt"}, {"columns": [5]}, {"columns": 5}],
    ids=repr,
)
def test_arguments_of_load_columns(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(arguments))} must be a"):
        load_columns([{"prompt": "a"}], **arguments)


def test_what_a_data_set_cannot_read_is_named() -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"prompt": "a"}
        raise ZeroDivisionError("by the user's own code")

    features = datasets.Features({"prompt": datasets.Value("string"), "image": datasets.Image()})
    picture = {"prompt": ["a"], "image": [{"bytes": b"no picture", "path": None}]}
    for data in (
        datasets.IterableDataset.from_generator(rows),
        datasets.Dataset.from_dict(picture, features=features),
    ):
        with pytest.raises(ValueError, match=r"row 0 or after: cannot be read: .*Error"):
            list(load_columns(data))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}\n', "a.jsonl:1: an object has the key 'prompt' twice"),
        ("a.jsonl", '{"prompt": "a", "x": {"k": 1, "k": 2}}\n', "a.jsonl:1: an object has the key 'k' twice"),
        ("a.json", '[{"prompt": "a", "prompt": "b"}]', "a.json: an object has the key 'prompt' twice"),
        ("a.jsonl", '{"prompt": ' + "[" * 100_000, "a.jsonl:1: .* nested too deeply"),
        ("a.json", "[" * 100_000, "a.json: .* nested too deeply"),
        ("a.jsonl", '{"prompt": "a", "x": ' + "9" * 5000 + "}", "a.jsonl:1: a number cannot be read"),
        ("a.jsonl", '{"prompt": "\\ud800"}', "a.jsonl:1: prompt holds half of a surrogate pair"),
        ("a.jsonl", '{"prompt": NaN}', "a.jsonl:1: prompt must be a string"),
        ("a.jsonl", '{"prompt": "a\\u0000"}', "a.jsonl.*can't be tokenised"),
    ],
)
def test_json(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(REFUSED, match=message):
        prompts_from_records(load_columns(path), TOKENIZER)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]),
            "two columns have the same name",
        ),
        (pa.table({"prompt": pa.array([b"a"])}), "row 0: prompt must be a string .*, got bytes"),
        (pa.table({"prompt": pa.nulls(2)}), "row 0: prompt is null"),
        (pa.table({"prompt": pa.array([{"x": "a"}])}), "row 0: prompt must be a string .*, got dict"),
        (pa.table({}), "holds no records"),
    ],
)
def test_parquet(tmp_path: Path, table: pa.Table, message: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    with pytest.raises(REFUSED, match=f"a.parquet.*{message}"):
        list(load_columns(path))


LINE = '"prompt_lengths": 1, "action_mask": [0, 1]'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            f'{{"input_ids": [1, 2], {LINE}, "rewards": [0, NaN]}}',
            r"rewards must be finite, got nan at \[0, 1\]",
        ),
        (f'{{"input_ids": [1, 2], {LINE}, "rewards": [0, 1e300]}}', "rewards must be finite, got inf"),
        (f'{{"input_ids": [-1, 2], {LINE}}}', "input_ids must be token ids >= 0, got -1 in row 0, column 0"),
        (f'{{"input_ids": [1, 2], "input_ids": [1, 3], {LINE}}}', "an object has the key 'input_ids' twice"),
        (
            f'{{"input_ids": [1, 2], {LINE}, "dtypes": {{"rewards": "load"}}}}',
            "dtypes: rewards must be the name",
        ),
        (f'{{"input_ids": [1, 2], {LINE}, "dtypes": [1]}}', "dtypes must be an object"),
        (f'{{"input_ids": [1, 2], {LINE}, "sampling": 5}}', "sampling must be an object, got 5"),
        (f'{{"input_ids": [1, 2], {LINE}, "width": "a"}}', "width must be an integer, got 'a'"),
        (f'{{"input_ids": [1, 2], {LINE}, "width": 1000000000000000}}', "need at least .* GiB"),
        (f'{{"input_ids": [1, 2], {LINE}, "pad_token_id": "x"}}', "pad_token_id must be an integer, got 'x'"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_lines_of_episodes(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(REFUSED, match=f"e.jsonl.*{message}"):
        EpisodeBatch.load(path)


def batch(**changes: Any) -> EpisodeBatch:
    fields: dict[str, Any] = {
        "input_ids": torch.tensor([[1, 2]]),
        "attention_mask": torch.ones(1, 2, dtype=torch.bool),
        "prompt_lengths": torch.tensor([1]),
        "action_mask": torch.tensor([[False, True]]),
    }
    return EpisodeBatch(**{**fields, **changes})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_ids", [[1, 2]]), ("input_ids", np.array([[1, 2]])), ("input_ids", torch.ones(1, 2)),
        ("input_ids", torch.ones(1, 2, dtype=torch.bool)), ("attention_mask", torch.full((1, 2), 0.5)),
        ("action_mask", torch.zeros(1, 2)), ("prompt_lengths", torch.tensor([1.0])),
        ("rewards", [[0.0, 1.0]]), ("rewards", torch.zeros(1, 2, dtype=torch.complex64)),
        ("terminated", torch.tensor([0.5])), ("sampling", [1]), ("extras", [1]), ("extras", {"x": "a"}),
        ("extras", {"x": 5}), ("reward_terms", [1]),
    ],
    ids=repr,
)  # fmt: skip
def test_fields_of_a_batch(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{field}.* must"):
        batch(**{field: value})


def test_a_batch_that_is_not_finite_is_not_saved_nor_learned_from(tmp_path: Path) -> None:
    wrong = batch(rewards=torch.tensor([[0.0, math.inf]]))
    with pytest.raises(ValueError, match=r"rewards must be finite, got inf at \[0, 1\]"):
        wrong.save(tmp_path / "e.jsonl")
    with pytest.raises(ValueError, match="rewards must be finite"):
        as_episodes(wrong, TOKENIZER)
    with pytest.raises(TypeError, match=r"extras\['x'\]\[0\] must be a JSON value to be saved"):
        batch(extras={"x": ["\ud800"]}).save(tmp_path / "e.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: EpisodeBatch.from_ids([[1.5]], [[2]]),
            r"prompts\[0\] must hold token ids \(integers\), got 1.5",
        ),
        (lambda: EpisodeBatch.from_ids([[1]], [[True]]), r"responses\[0\] must hold token ids .*, got True"),
        (
            lambda: EpisodeBatch.from_ids([[1]], [[2**70]]),
            r"responses\[0\] must hold token ids in \[0, 2\*\*63\)",
        ),
        (lambda: EpisodeBatch.from_ids([[1]], [[-2]]), r"responses\[0\] must hold token ids in .*, got -2"),
        (lambda: EpisodeBatch.from_ids(["ab"], [[2]]), r"prompts\[0\] must be a list of token ids, got 'ab'"),
        (lambda: EpisodeBatch.from_ids([5], [[2]]), r"prompts\[0\] must be a list of token ids, got 5"),
        (
            lambda: EpisodeBatch.from_ids([[1]], [[2]], rewards=[math.nan]),
            r"rewards\[0\] must be a finite number",
        ),
        (
            lambda: EpisodeBatch.from_ids([[1]], [[2]], rewards=[1e300]),
            r"rewards\[0\] must be a finite number",
        ),
        (lambda: EpisodeBatch.from_ids([[1]], [[2]], rewards=["a"]), "rewards must be a list of numbers"),
        (
            lambda: EpisodeBatch.from_texts(["a"], [None], TOKENIZER),
            r"completions\[0\] must be a string, got None",
        ),
        (lambda: EpisodeBatch.from_texts("a", "b", TOKENIZER), "prompts must be a list of strings, got 'a'"),
        (lambda: batch().select("a"), "row indices must be a list of integers, got 'a'"),
        (lambda: batch().select(0), "row indices must be a list of integers, got shape"),
        (lambda: list(batch().token_budget_batches(1.5)), "max_tokens must be an integer, got 1.5"),
        (lambda: PreferenceBatch(chosen=5, rejected=5), "chosen must be an EpisodeBatch, got int"),
        (
            lambda: PreferenceBatch(chosen=batch(), rejected=batch(), label=torch.tensor([2.0])),
            "label must lie in",
        ),
        (
            lambda: PreferenceBatch(chosen=batch(), rejected=batch(), label=[1.0]),
            "label must be a tensor, got list",
        ),
        (
            lambda: PreferenceBatch(chosen=batch(), rejected=batch(), margin=torch.tensor([math.nan])),
            "margin must be finite",
        ),
        (lambda: PromptSet([[1]], columns={"x": "a"}), "x must be a list of values, got 'a'"),
        (lambda: PromptSet([[1]], columns=[1]), "columns must be a dict"),
        (lambda: PromptSet([[1]], texts="a"), "texts must be a list of values, got 'a'"),
    ],
)
def test_what_batches_are_made_of(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(REFUSED, match=message):
        make()


def test_agents_that_learn_from_rewards_need_them() -> None:
    rows = [{"prompt": "a", "completion": letter} for letter in "bcde"]
    for read in (as_episodes, as_demonstrations):
        assert len(read(rows, TOKENIZER)) == 4
        with pytest.raises(ValueError, match=r"no column 'reward'; .*; this agent learns from rewards"):
            read(rows, TOKENIZER, need_rewards=True)
        assert len(read([PAIR, {**PAIR, "prompt": "d"}], TOKENIZER, need_rewards=True)) in (2, 4)


def test_prompts_of_a_file_are_named_by_their_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b\\u0000"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:3: prompts\[1\] can't be tokenised: .*UNK"):
        make_vec_env(1, prompts=str(path), tokenizer=TOKENIZER, max_new_tokens=2)
    path.write_text('{"prompt": "a"}\n{"prompt": "abc"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: prompts\[1\] has 3 tokens"):
        make_vec_env(1, prompts=str(path), tokenizer=TOKENIZER, max_prompt_tokens=2, truncation_side="error")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_kwargs": [1]}, r"env_kwargs must be a dict of arguments by name, got \[1\]"),
        ({"policy_kwargs": {1: 2}}, "policy_kwargs must be a dict of arguments by name"),
        ({"num_envs": 2.0}, "num_envs must be an integer, got 2.0"),
        ({"metric_fn": 5}, "metric_fn must be a function, got 5"),
        ({"dataset": [{"prompt": "a"}]}, "dataset: the list has no column 'completion'"),
        ({"policy_kwargs": {"top_k": 1.5}}, "top_k must be an integer, got 1.5"),
        ({"policy_kwargs": {"top_p": True}}, "top_p must be a number, got True"),
        ({"policy_kwargs": {"temperature": math.inf}}, "temperature must be a finite number, got inf"),
        ({"policy_kwargs": {"temperature": "1"}}, "temperature must be a number, got '1'"),
        ({"policy_kwargs": {"greedy": "no"}}, "greedy must be True or False, got 'no'"),
        ({"policy_kwargs": {"dtype": "float33"}}, "dtype must be a torch dtype of floats"),
        ({"policy_kwargs": {"dtype": torch.int8}}, "dtype must be a torch dtype of floats"),
        ({"policy_kwargs": {"device": "gpu"}}, "device must be a device that this machine has"),
        ({"policy_kwargs": {"gradient_checkpointing": 1}}, "gradient_checkpointing must be True or False"),
        ({"policy_kwargs": {"train_layers": True}}, "train_layers must be an integer, got True"),
        ({"policy_kwargs": {"lora": "yes"}}, "lora must be True, False, a dict or a peft config, got 'yes'"),
        ({"policy_kwargs": {"dtyp": "float32"}}, "policy_kwargs: unknown argument 'dtyp'; known: dtype, "),
        ({"policy_kwargs": {"seed": 1}}, "policy_kwargs can't hold 'seed': it is the agent's setting seed"),
        ({"policy_kwargs": {"legality": 5}}, "legality must be a TokenConstraints, got 5"),
        ({"config": 5}, "config must be a PPOConfig, got int"),
        ({"callbacks": 5}, "callbacks must be a list of callbacks, got 5"),
        ({"seed": 2**70}, r"seed must be below 2\*\*62"),
    ],
    ids=repr,
)
def test_arguments_of_train(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    model = tiny(TOKENIZER, positions=16)
    given: dict[str, Any] = {"prompts": ["a"], "reward": ["length"], "tokenizer": TOKENIZER, "loggers": ()}
    given |= {"iterations": 1, "run_dir": tmp_path / "run"}
    with pytest.raises(REFUSED, match=message):
        textenv.train("ppo", model, **{**given, **arguments})
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("agent", ["ilql", "monte-carlo", "rwr", "filtered-bc"])
def test_training_without_the_rewards_that_an_agent_learns_from(agent: str) -> None:
    rows = [{"prompt": "a", "completion": letter} for letter in "bcde"]
    model = tiny(TOKENIZER, positions=16)
    with pytest.raises(ValueError, match="no column 'reward'"):
        textenv.train(agent, model, dataset=rows, tokenizer=TOKENIZER, steps=1, loggers=())


def test_arguments_of_agents() -> None:
    model = tiny(TOKENIZER, positions=16)
    envs = make_vec_env(2, prompts=["a"], tokenizer=TOKENIZER, max_new_tokens=2)
    single = make_env(prompts=["a"], tokenizer=TOKENIZER, max_new_tokens=2)
    for arguments, message in (
        ({"envs": 5}, "envs must be a native vector environment .*, got int"),
        ({"envs": single}, "envs must be a native vector environment .*, got MadeTextEnv"),
        ({"envs": envs, "eval_envs": 5}, "eval_envs must be a native vector environment .*, got int"),
        ({"envs": envs, "tokenizer": 5}, "tokenizer must be a transformers tokenizer, got 5"),
        ({"envs": envs, "callbacks": "best"}, "callbacks must be a list of callbacks, got 'best'"),
        ({"envs": envs, "config": 5, "seed": 1}, "config must be a PPOConfig, got int"),
    ):
        with pytest.raises(TypeError, match=f"^{message}"):
            make_agent("ppo", model, **arguments)


def test_flags_of_a_rollout() -> None:
    envs = make_vec_env(2, prompts=["a"], tokenizer=TOKENIZER, max_new_tokens=2)
    for name in ("progress", "score", "update_terms"):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
            textenv.collect(envs, by_key, 4, **{name: "no"})


@pytest.mark.parametrize(
    "rewards",
    [[1.0, True], [False, 1], np.array([True, False]), torch.tensor([True, False]), [np.True_, 0.5]],
)
def test_flags_are_no_rewards(rewards: Any) -> None:
    with pytest.raises(TypeError, match=r"rewards\[[01]\] must be a number, got (True|False)"):
        EpisodeBatch.from_ids([[1], [2]], [[3], [4]], rewards=rewards)
    numbers = [float(value) for value in rewards]
    assert EpisodeBatch.from_ids([[1], [2]], [[3], [4]], rewards=numbers).returns.tolist() == numbers


def test_flags_are_no_margins() -> None:
    with pytest.raises(TypeError, match="margin must hold numbers"):
        PreferenceBatch(chosen=batch(), rejected=batch(), margin=torch.tensor([True]))
