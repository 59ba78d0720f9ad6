"""Losses: hand-worked numbers, masks, and independence of the micro-batch split."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from textenv.agents.data.batch import Totals
from textenv.agents.losses.aggregation import get_aggregation
from textenv.agents.losses.ilql import (
    ilql_awac_loss,
    ilql_cql_loss,
    ilql_q_loss,
    ilql_targets,
    ilql_value_loss,
)
from textenv.agents.losses.masked import (
    explained_variance,
    masked_center,
    masked_mean,
    masked_whiten,
)
from textenv.agents.losses.policy_gradient import (
    entropy_loss,
    kl_loss,
    log_ratio,
    ppo_policy_loss,
    ppo_value_loss,
    reinforce_loss,
    sft_loss,
)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def own(*flags: int) -> Tensor:
    return torch.tensor([flags], dtype=torch.bool)


# -- aggregation ---------------------------------------------------------------------------------------------


def test_masked_mean_ignores_nan_off_the_mask_and_gives_zero_on_an_empty_one() -> None:
    assert float(masked_mean(row(math.nan, 1.0, 3.0), own(0, 1, 1))) == 2.0
    assert float(masked_mean(row(5.0, 5.0), own(0, 0))) == 0.0


def test_masked_whiten_by_hand() -> None:
    whitened = masked_whiten(row(100.0, 1.0, 3.0), own(0, 1, 1))
    torch.testing.assert_close(whitened, row(0.0, -1.0, 1.0))
    torch.testing.assert_close(
        masked_whiten(row(100.0, 1.0, 3.0), own(0, 1, 1), shift_mean=False), row(0.0, 1.0, 3.0)
    )


def test_values_that_are_all_equal_are_whitened_to_zero() -> None:
    assert masked_whiten(row(5.0, 3.0, 3.0), own(0, 1, 1)).tolist() == [[0.0, 0.0, 0.0]]


def test_centring_by_group_by_hand() -> None:
    # Action tokens of group 7 are 1, 3 and 8, of group 2 only 5.
    values = torch.tensor([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0], [8.0, 9.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    expected = torch.tensor([[-3.0, -1.0, 0.0], [0.0, 0.0, 0.0], [4.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(masked_center(values, mask, torch.tensor([7, 2, 7])), expected)


def test_whitening_by_a_floor_keeps_small_differences_small() -> None:
    narrow = row(100.0, 1.0, 1.2)
    torch.testing.assert_close(masked_whiten(narrow, own(0, 1, 1), min_std=0.4), row(0.0, -0.25, 0.25))
    wide = row(100.0, 1.0, 3.0)
    torch.testing.assert_close(
        masked_whiten(wide, own(0, 1, 1), min_std=0.4), masked_whiten(wide, own(0, 1, 1))
    )


def test_explained_variance() -> None:
    returns, mask = row(1.0, 2.0, 4.0, 99.0), own(1, 1, 1, 0)
    assert float(explained_variance(returns, returns, mask)) == 1.0
    assert float(explained_variance(torch.zeros_like(returns), returns, mask)) == 0.0
    assert math.isnan(float(explained_variance(returns, torch.ones_like(returns), mask)))


# -- policy gradient -----------------------------------------------------------------------------------------


def test_ppo_policy_loss_by_hand() -> None:
    # rho = 1.5, 0.5, 1.1, 0.5 with A = 1, 1, -2, -1, eps 0.2:
    # max(-1.5, -1.2) = -1.2 (clipped); max(-0.5, -0.8) = -0.5; max(2.2, 2.2) = 2.2; max(0.5, 0.8) = 0.8
    # (clipped).
    log_probs = row(0.0, 1.5, 0.5, 1.1, 0.5).clamp_min(1e-9).log()
    advantages, mask = row(9.0, 1.0, 1.0, -2.0, -1.0), own(0, 1, 1, 1, 1)
    loss, stats = ppo_policy_loss(log_probs, torch.zeros_like(log_probs), advantages, mask)
    assert float(loss) == pytest.approx((-1.2 - 0.5 + 2.2 + 0.8) / 4)
    assert float(stats["clip_fraction"]) == 0.5
    assert float(stats["ratio"]) == pytest.approx(0.9)
    kl = sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.1, 0.5)) / 4
    assert float(stats["approx_kl"]) == pytest.approx(kl)


def test_clip_range_high_and_dual_clip_by_hand() -> None:
    log_probs = row(1.25, 5.0).log()
    old, mask = torch.zeros_like(log_probs), own(1, 1)
    # A = 1: rho 1.25 is inside 1 + 0.28, 5.0 is not.
    loss, _ = ppo_policy_loss(log_probs, old, row(1.0, 1.0), mask, clip_range_high=0.28)
    assert float(loss) == pytest.approx((-1.25 - 1.28) / 2)
    # A = -1: 1.25 stays, 5.0 is capped at c = 3.
    loss, _ = ppo_policy_loss(log_probs, old, row(-1.0, -1.0), mask, dual_clip=3.0)
    assert float(loss) == pytest.approx((1.25 + 3.0) / 2)
    # A > 0 has no such bound: -1.1 and -1.2 stay, although -3 is less.
    loss, _ = ppo_policy_loss(row(1.1, 5.0).log(), old, row(1.0, 1.0), mask, dual_clip=3.0)
    assert float(loss) == pytest.approx((-1.1 - 1.2) / 2)
    with pytest.raises(ValueError, match="dual_clip must be > 1, got 1"):
        ppo_policy_loss(log_probs, old, row(1.0, 1.0), mask, dual_clip=1.0)


def test_sequence_ratio_by_hand() -> None:
    # GSPO: mean difference (0.2 + 0.4) / 2 = 0.3 at both action tokens.
    difference = log_ratio(row(9.0, 0.2, 0.4), row(0.0, 0.0, 0.0), own(0, 1, 1), level="sequence")
    torch.testing.assert_close(difference, row(0.0, 0.3, 0.3))
    with pytest.raises(ValueError, match="ratio level"):
        log_ratio(row(1.0), row(1.0), own(1), level="word")  # type: ignore[arg-type]


def test_at_the_old_policy_the_gradient_is_the_policy_gradient() -> None:
    torch.manual_seed(0)
    log_probs = -torch.rand(3, 5, dtype=torch.float64)
    advantages = torch.randn(3, 5, dtype=torch.float64)
    mask = torch.rand(3, 5) < 0.7
    a = log_probs.clone().requires_grad_()
    ppo_policy_loss(a, log_probs, advantages, mask)[0].backward()
    b = log_probs.clone().requires_grad_()
    reinforce_loss(b, advantages, mask).backward()
    torch.testing.assert_close(a.grad, b.grad)
    assert a.grad is not None and not a.grad[~mask].any()


def test_clipped_tokens_get_no_gradient() -> None:
    log_probs = row(2.0, 1.0).log().requires_grad_()
    ppo_policy_loss(log_probs, torch.zeros(1, 2, dtype=torch.float64), row(1.0, 1.0), own(1, 1))[0].backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, row(0.0, -0.5))


def test_ppo_value_loss_by_hand() -> None:
    # V_old 0, G = 1. V = 0.5 clips to 0.2: max(0.25, 0.64) = 0.64. V = 0.1: 0.81. V = 3: max(4, 0.64) = 4.
    loss, stats = ppo_value_loss(
        row(0.5, 0.1, 3.0, 7.0), row(0.0, 0.0, 0.0, 0.0), row(1.0, 1.0, 1.0, 1.0), own(1, 1, 1, 0)
    )
    assert float(loss) == pytest.approx(0.5 * (0.64 + 0.81 + 4.0) / 3)
    assert float(stats["clip_fraction"]) == pytest.approx(1 / 3)
    assert float(stats["error"]) == pytest.approx((0.25 + 0.81 + 4.0) / 3)
    unclipped, _ = ppo_value_loss(row(0.5), row(0.0), row(1.0), own(1), clip_range=None)
    assert float(unclipped) == pytest.approx(0.125)


def test_entropy_kl_and_sft_losses_by_hand() -> None:
    mask = own(0, 1, 1)
    assert float(entropy_loss(row(9.0, 1.0, 2.0), mask)) == -1.5
    assert float(sft_loss(row(-9.0, -1.0, -2.0), mask)) == 1.5
    # k3 at d = 0.5 and 0: exp(-0.5) - 1 + 0.5 over 2.
    expected = (math.exp(-0.5) - 0.5) / 2
    assert float(kl_loss(row(9.0, -1.0, -2.0), row(0.0, -1.5, -2.0), mask)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "expected"), [("k1", 0.25), ("k2", 0.0625), ("k3", (math.exp(-0.5) - 0.5) / 2)]
)
def test_the_kinds_of_the_kl_by_hand(kind: Any, expected: float) -> None:
    found = kl_loss(row(9.0, -1.0, -2.0), row(0.0, -1.5, -2.0), own(0, 1, 1), kind=kind)
    assert float(found) == pytest.approx(expected)


def test_kl_loss_is_not_spoilt_by_illegal_tokens_off_the_mask() -> None:
    log_probs = row(-math.inf, -1.0).requires_grad_()
    kl_loss(log_probs, row(-math.inf, -1.5), own(0, 1)).backward()
    assert log_probs.grad is not None and bool(torch.isfinite(log_probs.grad).all())


@pytest.mark.parametrize("how", ["token-mean", "sequence-mean", "constant"])
def test_losses_and_gradients_add_up_over_micro_batches(how: str) -> None:
    torch.manual_seed(1)
    new = (-torch.rand(6, 9, dtype=torch.float64)).requires_grad_()
    values = torch.randn(6, 9, dtype=torch.float64).requires_grad_()
    old, ref, advantages, returns, old_values = (
        torch.randn(6, 9, dtype=torch.float64) * 0.3 - 1 for _ in range(5)
    )
    mask = torch.arange(9) < torch.tensor([9, 2, 5, 1, 0, 7]).unsqueeze(-1)
    tokens = int(mask.sum())
    reduce = partial(get_aggregation(how), totals=Totals(tokens=tokens, episodes=5, longest=12))

    def losses(rows: slice) -> tuple[Tensor, Tensor]:
        m = mask[rows]
        policy, stats = ppo_policy_loss(
            new[rows],
            old[rows],
            advantages[rows],
            m,
            reduce=reduce,
            denominator=tokens,
        )
        value, value_stats = ppo_value_loss(
            values[rows], old_values[rows], returns[rows], m, denominator=tokens
        )
        kl = kl_loss(new[rows], ref[rows], m, reduce=reduce)
        total = policy + value + kl + sft_loss(new[rows], m, denominator=tokens)
        return total, torch.stack([*stats.values(), *value_stats.values()])

    def run(splits: list[slice]) -> tuple[Tensor, ...]:
        new.grad = values.grad = None
        parts = [losses(rows) for rows in splits]
        for loss, _ in parts:
            loss.backward()
        assert new.grad is not None and values.grad is not None
        total = torch.stack([loss for loss, _ in parts]).sum().detach()
        return total, torch.stack([s for _, s in parts]).sum(0), new.grad.clone(), values.grad.clone()

    whole = run([slice(0, 6)])
    for splits in (
        [slice(0, 1), slice(1, 6)],
        [slice(i, i + 1) for i in range(6)],
        [slice(0, 4), slice(4, 5), slice(5, 6)],
    ):
        for a, b in zip(run(splits), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# -- ILQL ----------------------------------------------------------------------------------------------------


def test_ilql_targets_by_hand_skip_the_turns_of_others() -> None:
    # Action tokens at 1, 2 and 5: y_1 = 0 + 0.5 V_2, y_2 = 1 + 0.5 V_5, y_5 = 2 (last).
    mask = own(0, 1, 1, 0, 0, 1)
    targets = ilql_targets(row(0, 0, 1, 0, 0, 2), row(9, 9, 4, 9, 9, 6), mask, gamma=0.5)
    torch.testing.assert_close(targets, row(0, 2, 4, 0, 0, 2))


def test_ilql_targets_carry_no_gradient() -> None:
    values = row(1.0, 2.0).requires_grad_()
    assert not ilql_targets(row(0.0, 1.0), values, own(1, 1)).requires_grad


def test_ilql_losses_by_hand() -> None:
    mask = own(0, 1, 1)
    # Twin Q: ((2-1)^2 + (0-3)^2) / 2 + ((1-1)^2 + (1-3)^2) / 2 = 5 + 2.
    q = (row(9, 2, 0), row(9, 1, 1))
    assert float(ilql_q_loss(q, row(0, 1, 3), mask)) == 7.0
    # V = (1, 2), Qbar = (3, 1): 0.7 * 4 and 0.3 * 1 over 2.
    assert float(ilql_value_loss(row(9, 1, 2), row(9, 3, 1), mask, expectile=0.7)) == pytest.approx(1.55)
    assert float(ilql_cql_loss((row(9, -1, -3), row(9, -2, -2)), mask)) == 4.0
    # beta 0: behaviour cloning; beta 1 with advantages 2 and -1.
    loss, stats = ilql_awac_loss(row(9, -1, -2), row(9, 3, 1), row(9, 1, 2), mask)
    assert float(loss) == 1.5 and float(stats["weight"]) == 1.0
    loss, stats = ilql_awac_loss(row(9, -1, -2), row(9, 3, 1), row(9, 1, 2), mask, beta=1.0)
    assert float(loss) == pytest.approx((math.exp(2) * 1 + math.exp(-1) * 2) / 2)
    loss, stats = ilql_awac_loss(row(9, -1, -2), row(9, 3, 1), row(9, 1, 2), mask, beta=1.0, max_weight=2.0)
    assert float(stats["weight"]) == pytest.approx((2 + math.exp(-1)) / 2)


def test_ilql_value_loss_finds_the_expectile() -> None:
    # The minimiser of the expectile loss over a sample, found by bisection on its own stationarity condition.
    sample = torch.tensor([[0.0, 1.0, 2.0, 10.0]], dtype=torch.float64)
    value = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([value], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ilql_value_loss(value.expand(1, 4), sample, torch.ones(1, 4, dtype=torch.bool), expectile=0.9)
        loss.backward()
        return loss

    optimizer.step(closure)
    v = float(value.detach())
    over = sum(max(x - v, 0.0) for x in sample[0].tolist())
    under = sum(max(v - x, 0.0) for x in sample[0].tolist())
    assert 0.9 * over == pytest.approx(0.1 * under, rel=1e-6)
    with pytest.raises(ValueError, match=r"expectile must lie in \(0, 1\), got 1"):
        ilql_value_loss(row(1.0), row(1.0), own(1), expectile=1.0)


def test_ilql_losses_do_not_train_what_they_must_not() -> None:
    mask = own(1, 1)
    q, target_q, v = (torch.randn(1, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    ilql_q_loss((q,), ilql_targets(row(0.0, 1.0), v, mask), mask).backward()
    assert v.grad is None and q.grad is not None
    ilql_value_loss(v, target_q, mask).backward()
    assert target_q.grad is None and v.grad is not None
    v.grad = None
    ilql_awac_loss(q, target_q, v, mask, beta=1.0)[0].backward()
    assert v.grad is None and target_q.grad is None
