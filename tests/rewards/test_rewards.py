"""Reward terms on finished episodes: their numbers, the registry, functions of texts, and errors."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF

from tests.helpers.reward_helpers import COLUMNS, PROMPTS, TOKENIZER, episodes
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.functions import FunctionReward
from textenv.rewards.registry import (
    REWARDS,
    describe,
    make_reward,
    normalize_reward_specs,
    register_reward,
    reward_names,
    spec_of,
)
from textenv.rewards.term import RewardTerm
from textenv.scoring import RewardError, score_episodes, update


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    reward_names()
    before = dict(REWARDS)
    yield
    REWARDS.clear()
    REWARDS.update(before)


def _scores(spec: Any, batch: EpisodeBatch) -> list[float]:
    term = make_reward(spec)
    term.tokenizer = TOKENIZER
    return term.score(batch).tolist()


# -- numbers -----------------------------------------------------------------------------------------------


def test_length() -> None:
    batch = episodes(["ab", "abcdefg", ""])  # 3, 8 and 1 tokens with EOS
    assert _scores(["length", {"coef": -0.5}], batch) == [-1.5, -4.0, -0.5]
    assert _scores(["length", {"coef": 0.5, "mode": "target", "target": 4}], batch) == [-0.5, -2.0, -1.5]
    overlong = ["length", {"coef": 1.0, "mode": "overlong", "target": 1, "buffer": 4}]
    assert _scores(overlong, batch) == [-0.5, -1.0, 0.0]


def test_missing_eos() -> None:
    assert _scores(["missing-eos", {"penalty": 2.0}], episodes(["a", "b"], eos=[True, False])) == [0.0, -2.0]


def test_repetition() -> None:
    # Bigrams of "abab": ab, ba, ab: one of three occurred before. "a" has none.
    batch = episodes(["abab", "abcd", "a"], eos=False)
    assert _scores(["repetition", {"n": 2, "coef": 3.0}], batch) == pytest.approx([-1.0, 0.0, 0.0])


def test_repetition_looks_at_own_tokens_only() -> None:
    batch = episodes(["aaba"], eos=False)
    batch.action_mask[0, 3] = False  # the second "a" of the completion is another speaker's
    assert _scores(["repetition", {"n": 1}], batch) == pytest.approx([-1 / 3])


def test_regex() -> None:
    batch = episodes(["abcab", "cab", "dd"])
    assert _scores(["regex", {"pattern": "ab"}], batch) == [1.0, 1.0, 0.0]
    assert _scores(["regex", {"pattern": "ab", "how": "match", "otherwise": -1}], batch) == [1.0, -1.0, -1.0]
    assert _scores(["regex", {"pattern": "ab", "how": "count", "reward": 0.5}], batch) == [1.0, 0.5, 0.0]
    assert _scores(["regex", {"pattern": "C.B", "how": "fullmatch", "ignore_case": True}], batch) == [
        0.0,
        1.0,
        0.0,
    ]
    assert _scores(["regex", {"column": "pattern"}], batch) == [1.0, 1.0, 1.0]


def test_exact_match() -> None:
    batch = episodes([" a", "bb", "d", "g ef"])
    assert _scores("exact-match", batch) == [1.0, 0.0, 1.0, 0.0]
    assert _scores(["exact-match", {"strip": False}], batch) == [0.0, 0.0, 1.0, 0.0]
    assert _scores(["exact-match", {"pattern": "g (.*)", "otherwise": -1}], batch) == [-1.0, -1.0, -1.0, 1.0]
    assert _scores(["exact-match", {"column": "label"}], batch) == [0.0] * 4


def test_lexicon_sentiment_follows_the_lexicon() -> None:
    batch = episodes(["a bad bed", "a bed"])
    compound = _scores("lexicon-sentiment", batch)
    assert compound[0] == pytest.approx(-0.5423) and compound[1] == 0.0  # VADER's own number for one "bad"
    assert _scores(["lexicon-sentiment", {"scale": "valence", "target": "negative"}], batch) == pytest.approx(
        [4 * 0.5423, 0.0]
    )
    assert _scores(["lexicon-sentiment", {"with_prompt": True}], episodes([" bad"]))[0] == pytest.approx(
        -0.5423
    )


def test_rouge() -> None:
    # Reference "a bad": rouge1 of "a bed" is 1 word of 2 on both sides; the best of the third prompt's
    # references.
    batch = episodes(["a bed", "cab", "face"])
    assert _scores(["rouge", {"variant": "rouge1"}], batch) == [0.5, 1.0, 1.0]
    assert _scores(["rouge", {"variant": "rouge1", "measure": "recall"}], episodes(["a"])) == [0.5]


def test_sacrebleu_metrics() -> None:
    batch = episodes(["a bad", "cage", "face bed"])
    chrf = [
        CHRF().sentence_score(t, r).score / 100
        for t, r in zip(["a bad", "cage", "face bed"], [["a bad"], ["cab"], ["bed", "face"]], strict=True)
    ]
    assert _scores("chrf", batch) == pytest.approx(chrf)
    assert _scores("bleu", batch)[:2] == pytest.approx([1.0, 0.0])
    bigrams = BLEU(max_ngram_order=2, effective_order=True).sentence_score("a bed bad", ["a bad"]).score / 100
    assert _scores(["bleu", {"max_order": 2}], episodes(["a bed bad"])) == pytest.approx([bigrams])
    # TER: no edits; one substitution for one word; one insertion against one word.
    assert _scores("ter", batch) == [0.0, -1.0, -1.0]
    assert _scores(["ter", {"clip": None}], episodes(["a b c d e"])) == [-2.0]


def test_padding_and_order_change_nothing() -> None:
    texts = ["ab", "bad age bad", "c", "fade"]
    batch = episodes(texts)
    order = torch.tensor([2, 0, 3, 1])
    for spec in ("length", "repetition", "rouge", "chrf", "lexicon-sentiment", "exact-match"):
        alone = [_scores(spec, batch.select([row]))[0] for row in range(len(texts))]
        assert _scores(spec, batch) == alone
        assert _scores(spec, batch.select(order)) == [alone[row] for row in order]


# -- deferred scoring --------------------------------------------------------------------------------------


def test_score_pays_the_sum_at_the_last_action() -> None:
    batch = score_episodes(
        episodes(["ab", "c"]), [make_reward("length"), make_reward(["length", {"coef": 1.0}])]
    )
    assert set(batch.reward_terms) == {"length", "length#2"}
    assert batch.returns.tolist() == pytest.approx([2.97, 1.98])
    assert batch.rewards.nonzero().tolist() == [[0, 4], [1, 2]]


def test_score_without_rewards_and_without_episodes() -> None:
    assert score_episodes(episodes(["ab"]), []).returns.tolist() == [0.0]
    empty = episodes(["ab"]).select(slice(0, 0))
    term = make_reward(["normalized", {"of": "rouge"}])
    score_episodes(empty, [term])
    assert empty.reward_terms["raw/rouge"].shape == empty.rewards.shape == (0, 0)
    update(empty, [term])
    assert term.state_dict()["count"] == 0


def test_rewards_off_the_actions_are_not_paid() -> None:
    class Everywhere(RewardTerm):
        per_token = True

        def score(self, episodes: EpisodeBatch) -> torch.Tensor:
            return torch.where(episodes.action_mask, 1.0, torch.nan)

    batch = score_episodes(episodes(["ab", "c"]), [Everywhere()])
    assert torch.equal(batch.rewards, batch.action_mask.float())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            torch.zeros(2, 5),
            r"reward 'odd' must give shape \(2,\), got \(2, 5\); a term with a reward per token sets",
        ),
        (torch.zeros(3), r"reward 'odd' must give shape \(2,\), got \(3,\)"),
        ([0.0, 0.0], "reward 'odd' must give a tensor, got list"),
        (
            torch.tensor([0.0, torch.inf]),
            r"reward 'odd' gave inf \(odd\) for prompt ids \[2\], completion ids \[2, 9\]",
        ),
    ],
)
def test_bad_values_are_refused(values: Any, message: str) -> None:
    class Odd(RewardTerm):
        def score(self, episodes: EpisodeBatch) -> Any:
            return values

    with pytest.raises(RewardError, match=message):
        score_episodes(episodes(["ab", "c"]), [Odd()])


def test_undeclared_parts_are_refused() -> None:
    class Odd(RewardTerm):
        def score_parts(self, episodes: EpisodeBatch) -> Any:
            return torch.zeros(len(episodes)), {"extra": torch.zeros(len(episodes))}

    with pytest.raises(RewardError, match=r"gave the parts \['extra'\], expected its part_names \[\]"):
        score_episodes(episodes(["ab"]), [Odd()])


# -- functions of texts ------------------------------------------------------------------------------------


def _function(function: Any, batch: EpisodeBatch, **arguments: Any) -> list[float]:
    register_reward("fn", override=True)(function)
    return _scores(["fn", arguments], batch)


def test_a_function_gets_only_what_it_names() -> None:
    seen: dict[str, Any] = {}

    def narrow(completions: list[str], label: list[int]) -> list[float]:
        return [float(len(c) + x) for c, x in zip(completions, label, strict=True)]

    def wide(prompts: list[str], **columns: Any) -> list[float]:
        seen.update(columns)
        return [float(len(p)) for p in prompts]

    def by_ids(completion_ids: list[list[int]], scale: float = 1.0) -> list[float]:
        return [scale * ids[-1] for ids in completion_ids]

    batch = episodes(["abc", "d"])
    assert _function(narrow, batch) == [3.0, 2.0]
    assert _function(wide, batch) == [2.0, 1.0]
    assert set(seen) == {"completions", "completion_ids", *COLUMNS}
    assert _function(by_ids, batch, scale=2) == [2.0 * TOKENIZER.eos_token_id] * 2


def test_kinds_of_numbers() -> None:
    def mixed(completions: list[str]) -> list[Any]:
        return [None, True, 2, torch.tensor(3.0)][: len(completions)]

    assert _function(mixed, episodes(["a"] * 4)) == [0.0, 1.0, 2.0, 3.0]
    assert _function(lambda completions: torch.arange(len(completions)), episodes(["a"] * 3)) == [
        0.0,
        1.0,
        2.0,
    ]


def test_a_raising_function_is_reported_with_prompt_and_completion() -> None:
    def fragile(prompts: list[str], completions: list[str]) -> list[float]:
        return [1.0 / (len(text) - 3) for text in completions]

    with pytest.raises(RewardError) as caught:
        _function(fragile, episodes(["ab", "bad", "abcd"]))
    message = str(caught.value)
    assert message.startswith("reward 'fn' raised ZeroDivisionError: float division by zero for ")
    assert "prompt 'c'" in message and "completion 'bad'" in message
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_function_that_fails_only_on_batches_is_reported_as_such() -> None:
    def single(completions: list[str]) -> list[float]:
        (only,) = completions
        return [float(len(only))]

    with pytest.raises(RewardError, match="for a batch of 2 episodes, but for none of them alone"):
        _function(single, episodes(["a", "b"]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], r"reward 'fn' must give one value for each of 2 completions, got 1"),
        (1.0, "reward 'fn' must give a list of numbers, got float"),
        ([1.0, "x"], "reward 'fn' gave 'x', not a number, for prompt 'c', completion 'b'"),
        ([float("nan"), 1.0], "reward 'fn' gave nan for prompt 'ab', completion 'a'"),
        ([1.0, float("inf")], "reward 'fn' gave inf for prompt 'c', completion 'b'"),
    ],
)
def test_bad_results_of_a_function(given: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        _function(lambda completions: given, episodes(["a", "b"]))


def test_what_a_function_requires_must_be_offered() -> None:
    with pytest.raises(ValueError, match=r"reward 'fn' requires 'gold', but the task offers only prompts"):
        _function(lambda completions, gold: [0.0], episodes(["a"]))
    with pytest.raises(ValueError, match="reward 'fn' has no argument 'scale'; known: completions"):
        _function(lambda completions: [0.0], episodes(["a"]), scale=2.0)
    with pytest.raises(ValueError, match="'completions' is filled in for each batch"):
        _function(lambda completions: [0.0], episodes(["a"]), completions=[])


def test_a_constant_that_is_nearly_a_named_argument_warns() -> None:
    def fn(completions, weight=1.0, **columns):
        return [weight for _ in completions]

    with pytest.warns(UserWarning, match=r"reward 'fn' names no argument 'wieght'.*did you mean 'weight'\?"):
        FunctionReward(fn, wieght=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FunctionReward(fn, weight=2.0)
        FunctionReward(fn, topic="tea")
        FunctionReward(fn, weight=2.0, weights=[1.0])


# -- the registry ------------------------------------------------------------------------------------------


def test_every_reward_has_a_line_of_documentation() -> None:
    assert set(describe()) == set(reward_names()) >= {"kl", "reward-model", "normalized", "rouge", "length"}
    for name, line in describe().items():
        if not REWARDS[name].__module__.startswith("textenv."):
            continue  # of a test
        assert line.endswith((".", ")")) and len(line) > 20, name


def test_an_unknown_name_lists_the_known_ones_nearest_first() -> None:
    with pytest.raises(ValueError, match=r"unknown reward 'lenght'; known: length, .*rouge"):
        make_reward("lenght")


def test_bad_specs_name_the_place() -> None:
    with pytest.raises(ValueError, match=r"a reward spec must be \"name\""):
        make_reward(["length", 3])
    with pytest.raises(ValueError, match="reward 'length' has no argument 'koef'; known: coef, "):
        make_reward(["length", {"koef": 3}])
    with pytest.raises(ValueError, match="reward 'weighted' needs the argument 'weight'"):
        make_reward(["weighted", {"of": "length"}])
    with pytest.raises(ValueError, match=r"rewards\[1\]\.of: unknown reward 'nope'"):
        normalize_reward_specs(["length", ["clipped", {"of": "nope", "low": 0}]])
    with pytest.raises(ValueError, match=r"rewards\[0\]\.of\[1\]: reward 'length' has no argument 'x'"):
        normalize_reward_specs([["ensemble", {"of": ["kl", ["length", {"x": 1}]]}]])
    with pytest.raises(ValueError, match=r"rewards\[0\]\.coef must be a JSON value, got Tensor"):
        normalize_reward_specs([["length", {"coef": torch.ones(1)}]])
    with pytest.raises(ValueError, match="rewards must be a list of specs, got 'length'"):
        normalize_reward_specs("length")
    with pytest.raises(ValueError, match=r"ensemble\.of must be a list of reward specs, got 'length'"):
        make_reward(["ensemble", {"of": "length"}])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "length",
            {"mode": "cubic"},
            "length: mode must be one of 'linear', 'target', 'overlong', got 'cubic'",
        ),
        ("length", {"mode": "target"}, "length: mode 'target' needs a target, got target=None"),
        ("length", {"mode": "target", "target": 3, "buffer": 2}, "length: mode 'target' takes no buffer"),
        ("repetition", {"n": 0}, "repetition: n must be >= 1, got 0"),
        ("missing-eos", {"penalty": -1}, "missing-eos: penalty must be a finite number >= 0, got -1"),
        ("regex", {}, "regex: give either pattern or column"),
        ("regex", {"pattern": "("}, r"regex: pattern must be a regular expression, got '\('"),
        ("kl", {"coef": -0.1}, "kl: coef must be a finite number >= 0, got -0.1"),
        ("kl", {"estimator": "k4"}, "kl: estimator must be one of 'k1', 'k2', 'k3', 'full', got 'k4'"),
        ("kl", {"target": 0}, "kl: target must be > 0, got 0"),
        ("clipped", {"of": "length"}, "clipped: needs low, high or both"),
        ("clipped", {"of": "length", "low": 2, "high": 1}, r"clipped: low must be <= high \(1\), got 2"),
        ("weighted", {"of": "length", "weight": "x"}, "weighted: weight must be a number, got 'x'"),
        (
            "ensemble",
            {"of": ["length"], "how": "max"},
            "ensemble: how must be one of 'mean', 'min', 'mean-std'",
        ),
        ("rouge", {"variant": "rougeX"}, "rouge: variant must be one of 'rougeL'"),
    ],
)
def test_bad_arguments_name_the_field(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make_reward([name, arguments])


def test_missing_columns_are_named() -> None:
    batch = episodes(["a"])
    batch.extras = {"answer": ["a"]}
    with pytest.raises(
        RewardError, match="reward 'rouge' needs the column 'reference'; the episodes have answer"
    ):
        _scores("rouge", batch)


def test_specs_survive_terms_and_nesting() -> None:
    specs = [
        [
            "ensemble",
            {"of": [["length", {"coef": 2.0}], ["weighted", {"of": ["kl", {}], "weight": 3}]], "how": "min"},
        ],
        ["regex", {"pattern": "a"}],
    ]
    assert normalize_reward_specs(specs) == specs
    assert normalize_reward_specs([make_reward(spec) for spec in specs]) == specs
    assert [spec_of(make_reward(spec)) for spec in specs] == specs
    loose = [("length", {"mode": "target", "target": 3}), {"name": "rouge", "variant": "rouge1"}, "bleu"]
    assert normalize_reward_specs(loose) == [
        ["length", {"mode": "target", "target": 3}],
        ["rouge", {"variant": "rouge1"}],
        ["bleu", {}],
    ]


def test_functions_have_specs_once_they_are_registered() -> None:
    def shout(completions: list[str], scale: float = 1.0) -> list[float]:
        return [scale for _ in completions]

    with pytest.raises(ValueError, match=r"rewards\[0\] is the function 'shout', which is not registered"):
        normalize_reward_specs([shout])
    assert spec_of(make_reward(shout)) is None
    assert register_reward("loud")(shout) is shout
    assert normalize_reward_specs([shout, make_reward(["loud", {"scale": 2.0}])]) == [
        ["loud", {}],
        ["loud", {"scale": 2.0}],
    ]


def test_importing_functions_by_name_needs_consent() -> None:
    with pytest.raises(ValueError, match="pass allow_imports=True if you trust where the spec comes from"):
        make_reward("os:getcwd")
    assert (
        make_reward("tests.helpers.reward_helpers:count_letters", allow_imports=True).name == "count_letters"
    )
    with pytest.raises(ValueError, match="reward 'math:nope' can't be imported"):
        make_reward("math:nope", allow_imports=True)
    assert normalize_reward_specs(["math:fsum"], allow_imports=True) == [["math:fsum", {}]]


def test_names_are_not_taken_twice() -> None:
    def cell() -> Any:
        @register_reward("mine")
        class Mine(RewardTerm):
            """Mine."""

        return Mine

    cell()
    assert cell().name == "mine"  # running a notebook cell again
    with pytest.raises(
        ValueError, match=r"reward 'length' is already registered as textenv\.rewards\.text\.Length"
    ):
        register_reward("length")(lambda completions: [])
    with pytest.raises(
        ValueError, match=r"a reward's name must consist of letters, digits and '._-', got 'raw/x'"
    ):
        register_reward("raw/x")
    with pytest.raises(TypeError, match="reward 'x' must be a RewardTerm subclass, got class int"):
        register_reward("x")(int)


def test_a_term_without_a_constructor_takes_no_arguments() -> None:
    class Plain(RewardTerm):
        """Plain."""

    register_reward("plain")(Plain)
    with pytest.raises(TypeError):
        Plain(weight=2.0)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="reward 'plain' has no argument 'weight'; known: none"):
        make_reward(["plain", {"weight": 2.0}])
    assert spec_of(make_reward("plain")) == ["plain", {}]


def test_an_unbound_term_says_what_to_do() -> None:
    with pytest.raises(RewardError, match="reward 'regex' needs a tokenizer: wrap an environment with it"):
        make_reward(["regex", {"pattern": "a"}]).score(episodes(["a"]))


def test_importing_the_package_is_light_and_guarded() -> None:
    light = "import sys, textenv.rewards as r; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", light], check=True)
    bare = subprocess.run([sys.executable, "-c", "import rewards"], cwd=".", capture_output=True, text=True)
    assert bare.returncode != 0 and "this folder is imported as textenv.rewards" in bare.stderr
    package = importlib.import_module("textenv.rewards")
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match=r"textenv\.rewards attribute Nope"):
        _ = package.Nope
    assert len(PROMPTS) == len(COLUMNS["label"])
