"""The adaptive KL coefficient, in the loss and in the reward: numbers by hand, its effect, and its state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.agents import make, rollout
from textenv.agents.data.batch import Totals
from textenv.rewards.kl import adapted_coefficient

ADAPTIVE: dict[str, Any] = {
    "kl_placement": "loss",
    "kl_controller": "adaptive",
    "kl_coef": 0.5,
    "kl_target": 0.01,
    "kl_horizon": 40,
}
FIXED: dict[str, Any] = {"kl_placement": "loss", "kl_coef": 0.5}


@pytest.mark.parametrize("case", ["ppo", "grpo", "reinforce++", "remax"])
def test_the_coefficient_in_the_loss_follows_the_measured_kl_by_hand(case: str) -> None:
    rows = make(case, iterations=4, **ADAPTIVE).learn().history
    coefficient = 0.5
    for row in rows:
        assert row["objective/kl_coef"] == pytest.approx(coefficient, rel=1e-6)
        coefficient = adapted_coefficient(coefficient, row["objective/kl"], 16, target=0.01, horizon=40)
    # The first policy is the reference: 0.5 (1 - 0.2 * 16 / 40). Later ones are beyond the target.
    assert rows[1]["objective/kl_coef"] == pytest.approx(0.46)
    assert rows[3]["objective/kl_coef"] > rows[2]["objective/kl_coef"]


def test_the_kl_of_the_controller_is_a_sum_over_the_sequence() -> None:
    agent = make("ppo", **ADAPTIVE)
    batch = rollout(agent)
    # 0.1 nats at each action token: the mean length in nats per sequence, not 0.1.
    batch.tensors["ref_log_probs"] = batch["old_log_probs"] - 0.1
    lengths = batch.mask.sum(-1).double()
    found, episodes = agent.sequence_kl(batch)
    assert episodes == 16 and found == pytest.approx(0.1 * float(lengths.mean()), rel=1e-5)
    assert float(lengths.mean()) > 1.0


def test_the_loss_uses_the_coefficient_of_the_moment() -> None:
    agent = make("ppo", **ADAPTIVE)
    batch = rollout(agent)
    batch.tensors["ref_log_probs"] = batch["ref_log_probs"] - 0.2
    totals = Totals.of(batch)
    found = []
    for coefficient in (0.5, 2.0):
        agent.kl_loss.coef = coefficient
        loss, stats = agent.loss(batch, totals)
        found.append((float(loss.detach()), float(stats["policy/kl_loss"])))
    (one, kl), (other, same) = found
    assert kl == same > 0
    assert other - one == pytest.approx(1.5 * kl, rel=1e-4)


def test_a_fixed_coefficient_stays_and_is_no_metric() -> None:
    agent = make("ppo", **FIXED)
    rows = agent.learn().history
    assert agent.kl_loss.coef == 0.5
    assert "objective/kl_coef" not in rows[0]


def test_in_the_reward_the_coefficient_is_the_penaltys_alone() -> None:
    agent = make("ppo", **{**ADAPTIVE, "kl_placement": "reward"})
    rows = agent.learn().history
    assert agent.kl_loss is None and "policy/kl_loss" not in rows[0]
    assert rows[0]["objective/kl_coef"] == pytest.approx(0.46)  # as the first iteration left it


def test_a_checkpoint_without_a_coefficient_starts_from_the_settings() -> None:
    agent = make("ppo", **ADAPTIVE)
    agent.learn()
    state = agent.training_state()
    del state.values["loss_kl_coef"]
    other = make("ppo", **ADAPTIVE)
    other.load_training_state(state)
    assert other.kl_loss.coef == 0.5
    fixed = make("ppo", **{**FIXED, "kl_coef": 0.25})
    fixed.load_training_state(agent.training_state())
    assert fixed.kl_loss.coef == 0.25
    assert not torch.equal(torch.tensor(agent.kl_loss.coef), torch.tensor(0.5))
