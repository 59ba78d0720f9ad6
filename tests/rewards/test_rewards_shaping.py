"""Rewards made of rewards: numbers, state, and the mixing of per-token and per-episode parts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.helpers.reward_helpers import TOKENIZER, episodes
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.registry import make_reward
from textenv.rewards.term import RewardTerm
from textenv.scoring import score_episodes, update


class Ones(RewardTerm):
    """A point for each token."""

    per_token = True

    def score(self, episodes: EpisodeBatch) -> torch.Tensor:
        return episodes.action_mask.float()


class Table(RewardTerm):
    """Scores by the column "label"."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def score(self, episodes: EpisodeBatch) -> torch.Tensor:
        return torch.tensor([self.values[i] for i in episodes.extras["label"]])


def _batch(count: int = 4) -> EpisodeBatch:
    return episodes(["ab", "c", "bad", "fade"][:count])


def test_weighted_and_clipped() -> None:
    values = [1.0, -2.0, 3.0, 4.0]
    assert make_reward(["weighted", {"of": Table(values), "weight": -2}]).score(_batch()).tolist() == [
        -2,
        4,
        -6,
        -8,
    ]
    clipped = make_reward(["clipped", {"of": Table(values), "low": 0.0, "high": 3.5}])
    assert clipped.score(_batch()).tolist() == [1, 0, 3, 3.5]
    assert make_reward(["clipped", {"of": Table(values), "high": 0}]).score(_batch()).tolist() == [
        0,
        -2,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", [2.0, 1.0]), ("min", [1.0, -1.0]), ("mean-std", [1.5, 0.0])]
)
def test_ensemble(how: str, expected: list[float]) -> None:
    term = make_reward(["ensemble", {"of": [Table([1.0, 3.0]), Table([3.0, -1.0])], "how": how, "k": 0.5}])
    assert term.score(_batch(2)).tolist() == expected


def test_normalized_is_the_identity_until_it_has_seen_something() -> None:
    term = make_reward(["normalized", {"of": Table([5.0, 7.0, -1.0, 2.0])}])
    assert term.score(_batch()).tolist() == [5, 7, -1, 2]


def test_normalized_statistics_equal_those_of_all_values_seen() -> None:
    values = [5.0, 7.0, -1.0, 2.0]
    term: Any = make_reward(["normalized", {"of": Table(values), "epsilon": 0.0}])
    for rows in ([0, 1], [2], [3, 0, 2]):
        batch = score_episodes(_batch().select(rows), [term])
        before = term.state_dict()
        assert term.state_dict() == before  # scoring moves nothing
        update(batch, [term])
    seen = torch.tensor([5.0, 7.0, -1.0, 2.0, 5.0, -1.0], dtype=torch.float64)
    assert (term.count, term.mean) == (6, pytest.approx(float(seen.mean())))
    assert term.std == pytest.approx(float(seen.std(correction=0)))
    expected = (torch.tensor(values) - seen.mean()) / seen.std(correction=0)
    torch.testing.assert_close(term.score(_batch()), expected.float())


def test_normalized_updates_the_same_from_noted_and_from_recomputed_values() -> None:
    noted, recomputed = (make_reward(["normalized", {"of": Table([5.0, 7.0, -1.0, 2.0])}]) for _ in range(2))
    batch = score_episodes(_batch(), [noted])
    noted.update(batch)
    batch.reward_terms = {}
    recomputed.update(batch)
    assert noted.state_dict() == recomputed.state_dict() and noted.state_dict()["count"] == 4


def test_center_only_scale_only_and_clip() -> None:
    for options, expected in [
        ({"scale": False}, [-3.0, 3.0]),
        ({"center": False, "epsilon": 0.0}, [2 / 3, 8 / 3]),
        ({"clip": 0.5}, [-0.5, 0.5]),
    ]:
        term = make_reward(["normalized", {"of": Table([2.0, 8.0]), **options}])
        update(score_episodes(_batch(2), [term]), [term])
        assert term.score(_batch(2)).tolist() == pytest.approx(expected)


def test_constant_rewards_are_not_blown_up() -> None:
    term = make_reward(["normalized", {"of": Table([2.0, 2.0])}])
    update(score_episodes(_batch(2), [term]), [term])
    assert term.score(_batch(2)).tolist() == [0.0, 0.0]


def test_normalized_per_token_counts_actions() -> None:
    term: Any = make_reward(["normalized", {"of": Ones()}])
    assert term.per_token
    batch = score_episodes(_batch(), [term])
    update(batch, [term])
    assert (term.count, term.mean) == (int(batch.action_mask.sum()), 1.0)


def test_an_episodes_score_within_a_per_token_ensemble_waits_for_the_end() -> None:
    term = make_reward(["ensemble", {"of": [Ones(), Table([10.0, 20.0])]}])
    batch = _batch(2)
    batch.terminated[1] = False  # in progress
    values, parts = term.score_parts(batch)
    assert values[0].tolist() == [0, 0, 0.5, 0.5, 5.5] and values[1].tolist() == [0, 0.5, 0.5, 0, 0]
    assert parts["table"].sum(-1).tolist() == [10.0, 0.0]
    batch.truncated[1] = True
    assert term.score(batch)[1].tolist() == [0, 0.5, 10.5, 0, 0]


def test_parts_are_noted_under_unique_names() -> None:
    inner = [["normalized", {"of": Table([1.0, 2.0])}], ["normalized", {"of": Table([3.0, 4.0])}]]
    term: Any = make_reward(["ensemble", {"of": inner}])
    assert term.part_names == ("normalized", "table", "normalized#2", "table#2")
    batch = score_episodes(_batch(2), [term])
    assert set(batch.reward_terms) == {"ensemble", *(f"raw/{name}" for name in term.part_names)}
    assert batch.reward_terms["raw/table#2"].sum(-1).tolist() == [3.0, 4.0]
    torch.testing.assert_close(batch.rewards, batch.reward_terms["ensemble"])
    update(batch, [term])
    assert [part.mean for part in term.terms] == [1.5, 3.5]


def test_state_goes_through_json_and_reaches_the_parts() -> None:
    def build() -> Any:
        return make_reward(["weighted", {"of": ["normalized", {"of": Table([1.0, 4.0])}], "weight": 2.0}])

    term, other = build(), build()
    update(score_episodes(_batch(2), [term]), [term])
    other.load_state_dict(json.loads(json.dumps(term.state_dict())))
    assert (
        other.score(_batch(2)).tolist() == term.score(_batch(2)).tolist() != build().score(_batch(2)).tolist()
    )
    with pytest.raises(ValueError, match="reward 'ensemble' has 2 parts, the state has 1"):
        make_reward(["ensemble", {"of": ["length", "length"]}]).load_state_dict(term.state_dict())
    with pytest.raises(ValueError, match=r"reward 'length' has no state, got \['coef'\]"):
        make_reward("length").load_state_dict({"coef": 1})


def test_everything_is_passed_on() -> None:
    calls: list[str] = []

    class Probe(RewardTerm):
        def score(self, episodes: EpisodeBatch) -> torch.Tensor:
            return torch.zeros(len(episodes))

        def bind(self, env: Any) -> None:
            super().bind(env)
            calls.append("bind")

        def prepare(self, env: Any, scoring: str) -> None:
            calls.append(f"prepare {scoring}")

        def update(self, episodes: EpisodeBatch) -> None:
            calls.append("update")

        def close(self) -> None:
            calls.append("close")

    class Env:
        tokenizer = TOKENIZER

    term: Any = make_reward(["clipped", {"of": ["weighted", {"of": Probe(), "weight": 1.0}], "low": 0.0}])
    term.bind(Env())
    term.prepare(Env(), "immediate")
    update(score_episodes(_batch(), [term]), [term])
    term.close()
    assert calls == ["bind", "prepare immediate", "update", "close"]
    assert term.terms[0].terms[0].tokenizer is TOKENIZER


def test_needs_policy_is_inherited() -> None:
    assert make_reward(
        ["clipped", {"of": ["weighted", {"of": "kl", "weight": 1.0}], "low": 0.0}]
    ).needs_policy
    assert not make_reward(["clipped", {"of": "length", "low": 0.0}]).needs_policy
