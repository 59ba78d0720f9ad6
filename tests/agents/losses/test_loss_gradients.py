"""Gradients of the losses against finite differences in float64, under every aggregation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from textenv.agents.data.batch import Totals
from textenv.agents.losses.aggregation import AGGREGATIONS, get_aggregation
from textenv.agents.losses.policy_gradient import (
    RatioLevel,
    entropy_loss,
    kl_loss,
    log_ratio,
    ppo_policy_loss,
    ppo_value_loss,
    reinforce_loss,
    sft_loss,
)

every_aggregation = pytest.mark.parametrize("how", sorted(AGGREGATIONS))
MASK = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0], [0, 1, 1, 0]], dtype=torch.bool)


def draw(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(3, 4, generator=generator, dtype=torch.float64)


def reduction(how: str) -> Any:
    return partial(get_aggregation(how), totals=Totals(tokens=6, episodes=3, longest=4))


def check(loss: Callable[[Tensor], Tensor]) -> None:
    point = (draw(0, 0.3) - 1.0).requires_grad_()
    assert torch.autograd.gradcheck(loss, (point,), eps=1e-7, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss(point), point)
    assert gradient.any() and not gradient[~MASK].any()


@every_aggregation
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("options", [{}, {"clip_range_high": 0.4}, {"dual_clip": 1.5}])
def test_clipped_surrogate(how: str, level: RatioLevel, options: dict[str, float]) -> None:
    old, advantages = draw(1, 0.3) - 1.0, draw(2)

    def loss(log_probs: Tensor) -> Tensor:
        return ppo_policy_loss(
            log_probs, old, advantages, MASK, level=level, reduce=reduction(how), denominator=6, **options
        )[0]

    check(loss)


def test_the_points_above_lie_on_both_sides_of_the_clip() -> None:
    old, advantages = draw(1, 0.3) - 1.0, draw(2)
    _, stats = ppo_policy_loss(draw(0, 0.3) - 1.0, old, advantages, MASK)
    assert 0.0 < float(stats["clip_fraction"]) < 1.0


@every_aggregation
def test_score_function(how: str) -> None:
    check(lambda log_probs: reinforce_loss(log_probs, draw(2), MASK, reduce=reduction(how)))


@every_aggregation
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl(how: str, kind: Literal["k1", "k2", "k3"]) -> None:
    reference = draw(3, 0.3) - 1.0
    check(lambda log_probs: kl_loss(log_probs, reference, MASK, kind=kind, reduce=reduction(how)))


@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_value(clip_range: float | None) -> None:
    old, returns = draw(1, 0.3) - 1.0, draw(4)
    check(lambda values: ppo_value_loss(values, old, returns, MASK, clip_range=clip_range)[0])


def test_entropy_and_likelihood() -> None:
    check(lambda entropy: entropy_loss(entropy, MASK))
    check(lambda log_probs: sft_loss(log_probs, MASK))


def test_the_gradient_of_a_sequence_ratio_by_hand() -> None:
    # d/d log pi_t of exp(mean of differences) A / tokens of the row, mean over rows: A s / length / rows, at
    # each token of a row alike.
    log_probs, old = (draw(0, 0.05) - 1.0).requires_grad_(), draw(0, 0.05) - 1.02
    advantages = torch.tensor([[1.0], [2.0], [-3.0]], dtype=torch.float64) * MASK
    loss, _ = ppo_policy_loss(
        log_probs, old, advantages, MASK, level="sequence", reduce=reduction("grpo"), denominator=6
    )
    (gradient,) = torch.autograd.grad(loss, log_probs)
    ratio = log_ratio(log_probs.detach(), old, MASK, level="sequence").exp()
    expected = -advantages * ratio / MASK.sum(-1, keepdim=True) / 3
    torch.testing.assert_close(gradient, expected * MASK)


def test_no_gradient_reaches_advantages_or_what_was_frozen() -> None:
    tensors = [draw(seed, 0.3).requires_grad_() for seed in range(5)]
    new, old, advantages, values, reference = tensors
    loss = ppo_policy_loss(new, old, advantages, MASK)[0] + reinforce_loss(new, advantages, MASK)
    loss = loss + ppo_value_loss(values, old, advantages, MASK)[0] + kl_loss(new, reference, MASK)
    loss.backward()
    assert new.grad is not None and values.grad is not None
    assert old.grad is None and advantages.grad is None and reference.grad is None
