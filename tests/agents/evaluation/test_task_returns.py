"""Returns without KL penalties: which terms count, without rounding, and beside wrappers from elsewhere."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch

from tests.helpers.agents import make_envs
from textenv import scoring
from textenv.agents.evaluation.task_returns import is_penalty, kl_penalties, kl_wrappers, task_returns
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.kl import KLPenalty
from textenv.rewards.registry import make_reward

KL: list[Any] = ["kl", {"coef": 0.1}]


def with_terms(**terms: list[float]) -> EpisodeBatch:
    """Three episodes of two actions; each term is added at the last one, and the KL at the first, too."""
    episodes = EpisodeBatch.from_ids([[0]] * 3, [[1, 2]] * 3)
    for name, values in terms.items():
        placed = episodes.at_last_action(torch.tensor(values))
        if name == "kl":
            placed[:, 1] = torch.tensor([-0.011, -0.007, -0.013])
            episodes.reward_terms["raw/kl"] = -10 * placed
        episodes.reward_terms[name] = placed
        episodes.rewards = episodes.rewards + placed
    return episodes


def envs_with(*rewards: Any) -> Any:
    return make_envs("ppo", task="probe-end", num_envs=2, rewards=list(rewards))


def test_without_a_penalty_scores_are_the_returns() -> None:
    episodes = with_terms(length=[1.0, 0.5, 0.25])
    assert task_returns(episodes, envs_with("length")).tolist() == [1.0, 0.5, 0.25]


def test_equal_scores_stay_equal_although_the_rewards_were_rounded() -> None:
    episodes = with_terms(length=[0.1, 0.1, 0.1], other=[0.3, 0.3, 0.3], kl=[-0.0123, -0.0457, -0.0003])
    envs = envs_with("length", KL)
    found = task_returns(episodes, envs)
    assert found.dtype == torch.float64
    assert found.unique().tolist() == pytest.approx([0.4])
    # The difference would not do: a sum of float32 numbers less one of them is another number.
    assert len((episodes.rewards - kl_penalties(episodes, envs)).sum(-1).unique()) > 1
    assert len(kl_wrappers(envs)) == 1


def test_episodes_that_no_penalty_was_paid_for() -> None:
    episodes = with_terms(length=[1.0, 0.5, 0.25])
    assert task_returns(episodes, envs_with("length", KL)).tolist() == [1.0, 0.5, 0.25]


def test_beside_a_wrapper_from_elsewhere_it_is_the_difference() -> None:
    envs = gym.wrappers.vector.TransformReward(envs_with("length", KL), lambda reward: 2 * reward)
    episodes = with_terms(length=[1.0, 0.5, 0.25], kl=[-0.25, -0.5, -0.125])
    episodes.rewards = 2 * episodes.reward_terms["length"] + episodes.reward_terms["kl"]
    assert task_returns(episodes, envs).tolist() == pytest.approx([2.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("spec", "penalty"),
    [
        (KL, True),
        (["weighted", {"of": KL, "weight": 2}], True),
        (["clipped", {"of": ["weighted", {"of": KL, "weight": 2}], "low": -1, "high": 1}], True),
        ("length", False),
        (["weighted", {"of": "length", "weight": 2}], False),
        (["ensemble", {"of": ["length", KL], "how": "mean"}], False),
    ],
)
def test_what_pays_for_the_kl_alone_is_a_penalty_however_it_is_shaped(spec: Any, penalty: bool) -> None:
    term = make_reward(spec)
    assert is_penalty(term) == penalty
    assert is_penalty(KLPenalty(0.1))


def test_a_shaped_penalty_is_no_score() -> None:
    envs = envs_with("length", ["weighted", {"of": KL, "weight": 2}])
    episodes = with_terms(length=[0.1, 0.1, 0.1], weighted=[-0.02, -0.04, -0.06])
    assert "weighted" in {wrapper.name for wrapper in scoring.reward_wrappers(envs)}
    assert len(task_returns(episodes, envs).unique()) == 1
