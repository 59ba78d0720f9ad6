"""What users give to rewards and what their rewards give back: refused with names where it can't be right."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.helpers.reward_helpers import TOKENIZER
from textenv.data.loading import episodes_from_records, load_columns
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.patterns import Pattern
from textenv.rewards.registry import REWARDS, make_reward, reward_names
from textenv.rewards.term import RewardTerm
from textenv.scoring import RewardError, score_episodes
from textenv.tasks import probes, random_walks  # noqa: F401 - register the rewards of tasks
from textenv.tasks.make import make_vec_env

NEEDED: dict[str, dict[str, Any]] = {
    "regex": {"pattern": "a"},
    "weighted": {"of": "length", "weight": 1.0},
    "clipped": {"of": "length", "low": -1.0, "high": 1.0},
    "normalized": {"of": "length"},
    "ensemble": {"of": ["length"]},
    "remote": {"of": "length"},
    "reward-model": {"model": "never-loaded"},
    "probe-constant": {"target": "a", "budget": 3},
    "probe-copy": {"position": 0},
    "probe-end": {"budget": 3},
    "probe-longest": {"budget": 3},
}
"""Arguments without which a reward can't be made."""
MODES = {"target": {"mode": "target"}, "buffer": {"mode": "overlong", "target": 3}}
"""What an argument of "length" takes its meaning from."""


def episodes(completions: list[str], *, prompts: list[str]) -> EpisodeBatch:
    return EpisodeBatch.from_texts(prompts, completions, TOKENIZER)


def _arguments(kinds: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in reward_names():
        if inspect.isclass(REWARDS[name]) and REWARDS[name].__module__.startswith("textenv."):
            for parameter in inspect.signature(REWARDS[name].__init__).parameters.values():
                if set(str(parameter.annotation).split(" | ")) & set(kinds) and parameter.name != "label":
                    yield name, parameter.name


@pytest.mark.parametrize(("name", "field"), list(_arguments(("int", "float"))))
@pytest.mark.parametrize("value", ["1", True, math.nan, math.inf, -math.inf, 1e300, 10**400, [1.0], 1j])
def test_numbers_are_checked_when_a_reward_is_made(name: str, field: str, value: Any) -> None:
    arguments = {**NEEDED.get(name, {}), **(MODES.get(field, {}) if name == "length" else {}), field: value}
    if isinstance(value, int) and not isinstance(value, bool) and "int" in str(_annotation(name, field)):
        pytest.skip("a count may be large")
    with pytest.raises((TypeError, ValueError), match=rf"{name}: {field} must be"):
        make_reward([name, arguments])


def _annotation(name: str, field: str) -> Any:
    return inspect.signature(REWARDS[name].__init__).parameters[field].annotation


@pytest.mark.parametrize(("name", "field"), list(_arguments(("bool",))))
@pytest.mark.parametrize("value", ["no", 1, None])
def test_flags_are_no_words(name: str, field: str, value: Any) -> None:
    if value is None and "None" in str(_annotation(name, field)):
        pytest.skip("None is as it was trained")
    with pytest.raises(TypeError, match=rf"{name}: {field} must be True or False, got {value!r}"):
        make_reward([name, {**NEEDED.get(name, {}), field: value}])


# -- patterns ------------------------------------------------------------------------------------------------

SLOW = "(a|aa)+$"
"""Backtracks: the time doubles with every second letter."""


@pytest.mark.parametrize(
    "spec",
    [
        ["regex", {"pattern": SLOW, "timeout": 0.05}],
        ["regex", {"pattern": SLOW, "how": "count", "timeout": 0.05}],
        ["regex", {"column": "pattern", "how": "fullmatch", "timeout": 0.05}],
        ["exact-match", {"pattern": SLOW, "timeout": 0.05}],
    ],
)
def test_a_pattern_that_backtracks_ends_with_an_error(spec: list[Any]) -> None:
    batch = episodes(["a" * 40 + "b"], prompts=["ab"])
    batch.extras = {"pattern": [SLOW], "answer": ["a"]}
    with pytest.raises(RewardError, match=rf"{re.escape(repr(SLOW))} was not matched within 0.05 s.*aaaab'"):
        term = make_reward(spec)
        term.tokenizer = TOKENIZER
        term.score(batch)


def test_a_column_must_hold_patterns() -> None:
    batch = episodes(["ab"], prompts=["c"])
    term = make_reward(["regex", {"column": "pattern"}])
    term.tokenizer = TOKENIZER
    for wrong in ("(", None, 5):
        batch.extras = {"pattern": [wrong]}
        message = r"reward 'regex': column 'pattern' must be a regular expression.* for prompt 'c'"
        with pytest.raises(RewardError, match=message):
            term.score(batch)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"\\boxed{e}", r"so \boxed{e}"),  # the library that runs patterns takes {e} for "one error allowed"
        ("a{i<=1}", "axb"),
        ("[[:alpha:]]", "a]"),  # and this for the set of all letters
        ("[]a]{2,}", "a]a"),
        ("(?#[)a{2}", "caa"),
        ("(?x)a # [{e}\n b", "ab"),
        ("a*", "baac"),
        (r"\N{BULLET}{,2}", "\u2022"),
    ],
)
def test_patterns_mean_what_they_mean_in_python(pattern: str, text: str) -> None:
    expected = [found.span() for found in re.finditer(pattern, text)]
    assert [found.span() for found in Pattern("pattern", pattern).finditer(text)] == expected


# -- numbers that rewards give -------------------------------------------------------------------------------


class Gives(RewardTerm):
    """Gives what it was made with, or raises it."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def score(self, episodes: EpisodeBatch) -> torch.Tensor:
        if isinstance(self.values, BaseException):
            if "c" in "".join(episodes.completion_texts(TOKENIZER)):
                raise self.values
            return torch.zeros(len(episodes))
        return self.values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.full((3,), 3 + 4j), r"reward 'gives' must give real numbers, got torch.complex64"),
        (torch.tensor([0.0, 1e300, 0.0]).double(), r"reward 'gives' gave inf"),
        (torch.tensor([0.0, 1e39, 0.0], dtype=torch.float64), r"gave 1e\+39, beyond float32.*completion 'c'"),
        (torch.tensor([0.0, math.nan, 0.0]), r"reward 'gives' gave nan .*completion 'c'"),
        (torch.zeros(3, device="meta"), "reward 'gives' gave a tensor on the meta device"),
        (RuntimeError("boom"), "reward 'gives' raised RuntimeError: boom for prompt 'a', completion 'c'"),
    ],
)
def test_what_a_term_gives_is_checked(values: Any, message: str) -> None:
    batch = episodes(["b", "c", "d"], prompts=["a"] * 3)
    term = Gives(values)
    term.tokenizer = TOKENIZER
    with pytest.raises(RewardError, match=message):
        score_episodes(batch, [term])


def test_a_lack_of_memory_is_not_renamed() -> None:
    term = Gives(torch.OutOfMemoryError("no room"))
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        score_episodes(episodes(["c"], prompts=["a"]), [term])


def test_a_sum_beyond_float32_is_refused() -> None:
    huge = ["length", {"coef": 1e38}]
    terms = [make_reward(huge), make_reward(huge)]
    with pytest.raises(RewardError, match="the sum of the rewards length, length#2 is beyond float32"):
        score_episodes(episodes(["a"], prompts=["a"]), terms)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (1e300, r"gave 1e\+300, beyond float32, for prompt"),
        (10**400, "gave a number, beyond float32, for prompt"),
        (-math.inf, "gave -inf for prompt"),
        (1j, "gave 1j, not a number, for prompt"),
        (SystemExit(0), "reward 'own' raised SystemExit: 0 for"),
    ],
)
def test_what_a_function_gives_is_checked(given: Any, message: str) -> None:
    def own(completions: list[str]) -> list[Any]:
        if isinstance(given, BaseException):
            raise given
        return [given for _ in completions]

    envs = make_vec_env(1, prompts=["a"], tokenizer=TOKENIZER, max_new_tokens=1, rewards=[own])
    envs.reset(seed=0)
    with pytest.raises(RewardError, match=message):
        envs.step([0])


def test_logged_rewards_fit_into_float32() -> None:
    for huge in (1e300, -1e39, 10**400):
        with pytest.raises(ValueError, match=r"row 0: reward must be a number up to 3.4e\+38"):
            episodes_from_records(
                load_columns([{"prompt": "a", "completion": "b", "reward": huge}]), TOKENIZER
            )
    with pytest.raises(
        ValueError, match=r"rewards\[1\] must be a finite number that float32 can hold, got 1e\+300"
    ):
        EpisodeBatch.from_ids([[1], [1]], [[2], [2]], rewards=[0.0, 1e300])


def test_an_empty_response_is_scored() -> None:
    batch = episodes(["", ""], prompts=["a", "b"])  # EOS alone
    batch.extras = {"answer": ["", "a"], "reference": ["a", "b"]}
    expected = {"exact-match": [1.0, 0.0], "lexicon-sentiment": [0.0, 0.0], "length": [-0.01, -0.01]}
    expected |= {name: [0.0, 0.0] for name in ("rouge", "bleu", "chrf", "repetition")}
    expected |= {"ter": [-1.0, -1.0]}
    for name, values in expected.items():
        term = make_reward(name)
        term.tokenizer = TOKENIZER
        assert term.score(batch).tolist() == pytest.approx(values), name
