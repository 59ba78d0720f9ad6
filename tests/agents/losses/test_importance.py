"""Importance weights: numbers worked by hand, what they do to the gradient, and what is reported."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from tests.helpers import agents
from textenv.agents.losses.importance import truncated_importance_weights

MASK = torch.tensor([[False, True, True, False], [False, True, False, False]])
agent = partial(agents.make, "ppo", epochs=1, minibatches=1, kl_coef=0.0)


def test_weights_by_hand() -> None:
    # pi / mu: 1/2 and 6 in the first episode (3 as a whole), 1.2 in the second; the rest is off the mask.
    pi = torch.tensor([[0.9, 0.2, 0.6, 0.5], [0.1, 0.6, 0.3, 0.2]], dtype=torch.float64).log()
    mu = torch.tensor([[0.1, 0.4, 0.1, 0.9], [0.5, 0.5, 0.1, 0.9]], dtype=torch.float64).log()
    token = truncated_importance_weights(pi, mu, MASK, clip=2.0)
    torch.testing.assert_close(token, torch.tensor([[0, 0.5, 2.0, 0], [0, 1.2, 0, 0]]).double())
    free = truncated_importance_weights(pi, mu, MASK, clip=100.0)
    torch.testing.assert_close(free, torch.tensor([[0, 0.5, 6.0, 0], [0, 1.2, 0, 0]]).double())
    sequence = truncated_importance_weights(pi, mu, MASK, level="sequence", clip=2.0)
    torch.testing.assert_close(sequence, torch.tensor([[0, 2.0, 2.0, 0], [0, 1.2, 0, 0]]).double())
    free = truncated_importance_weights(pi, mu, MASK, level="sequence", clip=100.0)
    torch.testing.assert_close(free, torch.tensor([[0, 3.0, 3.0, 0], [0, 1.2, 0, 0]]).double())


def test_no_gradient_flows_through_the_weights_and_padding_may_hold_anything() -> None:
    pi = torch.zeros(2, 4, requires_grad=True)
    mu = torch.full((2, 4), math.nan).masked_fill(MASK, -0.5)
    found = truncated_importance_weights(pi, mu, MASK)
    assert not found.requires_grad
    assert not truncated_importance_weights(pi.detach(), mu.requires_grad_(), MASK).requires_grad
    torch.testing.assert_close(found, torch.where(MASK, math.exp(0.5), 0.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"clip": 0.0}, "clip must be > 0, got 0.0"), ({"level": "word"}, "importance level must be one of")],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        truncated_importance_weights(torch.zeros(2, 4), torch.zeros(2, 4), MASK, **options)


def test_the_expected_gradient_is_that_of_the_policy_that_learns() -> None:
    """Weighted by pi / mu, what mu plays has the gradient of E_pi[A], whatever mu is."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    behaviour = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    pi = logits.log_softmax(-1)
    mask = torch.ones(3, 1, dtype=torch.bool)
    weights = truncated_importance_weights(pi[:, None], behaviour.log()[:, None], mask, clip=1e9).squeeze(1)
    surrogate = (behaviour * weights * advantages * (pi - pi.detach()).exp()).sum()
    (found,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
    (expected,) = torch.autograd.grad((pi.exp() * advantages).sum(), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_ppo_weighs_what_older_weights_played(level: Any) -> None:
    corrected, plain = agent(importance_correction=level, importance_clip=1.1), agent()
    stale = corrected.collect()
    plain.collect()
    for one in (corrected, plain):  # the policy moves on; the episodes do not
        fresh = one.collect()
        one.score(fresh)
        one.optimizer_step(one.advantages(fresh))
        one.score(stale)
    batch, without = corrected.advantages(stale), plain.advantages(stale)
    assert stale.log_probs is not None
    expected = truncated_importance_weights(
        batch["old_log_probs"], stale.log_probs, stale.action_mask, level=level, clip=1.1
    )
    assert float((expected[stale.action_mask] - 1.0).abs().max()) > 0.0
    torch.testing.assert_close(batch["advantages"], without["advantages"] * expected)
    torch.testing.assert_close(batch["returns"], without["returns"])
    row = corrected.rollout_metrics(batch)
    own = expected[stale.action_mask]
    assert row["importance/weight"] == pytest.approx(float(own.mean()))
    assert row["importance/clip_fraction"] == pytest.approx(float((own == 1.1).float().mean()))
    assert row["importance/clip_fraction"] > 0.0
    assert not any(name.startswith("importance/") for name in plain.rollout_metrics(without))


def test_fresh_episodes_weigh_one() -> None:
    on, off = agent(importance_correction="token"), agent()
    rows = [one.learn().history for one in (on, off)]
    for corrected, plain in zip(*rows, strict=True):
        assert corrected["importance/weight"] == pytest.approx(1.0, abs=1e-5)
        assert corrected["importance/clip_fraction"] == 0.0
        assert corrected["policy/loss"] == pytest.approx(plain["policy/loss"], abs=1e-5)


def test_episodes_without_log_probs_are_refused() -> None:
    one = agent(importance_correction="token")
    episodes = one.collect()
    one.score(episodes)
    episodes.log_probs = None
    with pytest.raises(ValueError, match="needs episodes with log_probs, got None"):
        one.advantages(episodes)
