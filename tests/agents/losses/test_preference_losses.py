"""Preference losses: numbers worked by hand, finite differences, what limits and relations they must obey."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from textenv.agents.losses.preference import (
    cpo_loss,
    dpo_loss,
    kto_baseline,
    kto_loss,
    log_odds,
    orpo_loss,
    response_log_probs,
    simpo_loss,
)

KINDS = ("sigmoid", "cdpo", "robust", "ipo", "hinge")


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    """-log sigma(-x)."""
    return math.log1p(math.exp(x))


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_response_log_probs_sum_own_tokens_alone() -> None:
    log_probs = torch.tensor([[float("nan"), -1.0, -2.0], [-4.0, -8.0, float("nan")]])
    mask = torch.tensor([[False, True, True], [False, True, False]])
    assert response_log_probs(log_probs, mask).tolist() == [-3.0, -8.0]


@pytest.mark.parametrize(
    ("kind", "smoothing", "expected"),
    [
        # beta 0.5 and gaps 2, -4: x = 1, -2
        ("sigmoid", 0.0, (softplus(-1) + softplus(2)) / 2),
        ("cdpo", 0.1, (0.9 * softplus(-1) + 0.1 * softplus(1) + 0.9 * softplus(2) + 0.1 * softplus(-2)) / 2),
        (
            "robust",
            0.1,
            (0.9 * softplus(-1) - 0.1 * softplus(1) + 0.9 * softplus(2) - 0.1 * softplus(-2)) / 2 / 0.8,
        ),
        ("ipo", 0.0, ((2 - 1) ** 2 + (-4 - 1) ** 2) / 2),  # 1 / (2 beta) = 1
        ("hinge", 0.0, (0 + 3) / 2),
    ],
)
def test_dpo_by_hand(kind: str, smoothing: float, expected: float) -> None:
    loss = dpo_loss(t(2.0, -4.0), kind=kind, beta=0.5, label_smoothing=smoothing)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_dpo_by_hand_with_margin_and_label() -> None:
    # x = 0.5 * 2 - 0.25 = 0.75; right with probability 0.75.
    loss = dpo_loss(t(2.0), beta=0.5, margin=t(0.25), label=t(0.75))
    assert float(loss) == pytest.approx(0.75 * softplus(-0.75) + 0.25 * softplus(0.75), rel=1e-12)


def test_a_soft_label_is_label_smoothing_of_that_pair() -> None:
    gap = t(1.0, -3.0)
    smoothed = dpo_loss(gap, kind="cdpo", label_smoothing=0.2)
    assert float(dpo_loss(gap, label=t(0.8, 0.8))) == pytest.approx(float(smoothed), rel=1e-12)


def test_the_robust_loss_is_unbiased_under_flips() -> None:
    gap, e = t(1.7), 0.3
    right, wrong = (
        float(dpo_loss(sign * gap, kind="robust", beta=1.0, label_smoothing=e)) for sign in (1, -1)
    )
    assert (1 - e) * right + e * wrong == pytest.approx(float(dpo_loss(gap, beta=1.0)), rel=1e-12)


def test_dpo_refuses() -> None:
    with pytest.raises(ValueError, match=r"loss must be one of \['sigmoid'.*got 'dpo'"):
        dpo_loss(t(1.0), kind="dpo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"label_smoothing needs a loss of \['cdpo', 'robust'\], got 'ipo'"):
        dpo_loss(t(1.0), kind="ipo", label_smoothing=0.1)


def test_kto_by_hand() -> None:
    loss = kto_loss(
        t(3.0, -1.0, 2.0),
        torch.tensor([True, False, False]),
        1.0,
        beta=0.5,
        desirable_weight=2.0,
        undesirable_weight=1.5,
    )
    # D - z = 2, -2, 1
    expected = (2 * (1 - sigma(1.0)) + 1.5 * (1 - sigma(1.0)) + 1.5 * (1 - sigma(-0.5))) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_the_kto_baseline_is_a_detached_mean_that_is_never_negative() -> None:
    mismatched = t(1.0, 2.0).requires_grad_()
    assert float(kto_baseline(mismatched)) == 1.5
    assert not kto_baseline(mismatched).requires_grad
    assert float(kto_baseline(t(1.0, -2.0))) == 0.0


def test_log_odds() -> None:
    p = t(0.9, 0.5, 1e-9)
    assert torch.allclose(log_odds(p.log()), torch.log(p / (1 - p)), rtol=1e-9)
    # Far and near ends stay finite, with finite gradients.
    ends = torch.tensor([-1e4, -1e-9, 0.0], requires_grad=True)
    odds = log_odds(ends)
    (gradient,) = torch.autograd.grad(odds.sum(), ends)
    assert bool(torch.isfinite(odds).all()) and bool(torch.isfinite(gradient).all())


def test_orpo_by_hand() -> None:
    p, q = 0.8, 0.5
    loss, stats = orpo_loss(t(math.log(p)), t(math.log(q)), beta=0.25)
    ratio = math.log(p / (1 - p)) - math.log(q / (1 - q))  # log 4
    assert ratio == pytest.approx(math.log(4))
    assert float(loss) == pytest.approx(
        -math.log(0.8) - 0.25 * math.log(0.8), rel=1e-12
    )  # sigma(log 4) = 0.8
    assert float(stats["nll"]) == pytest.approx(-math.log(0.8))
    assert float(stats["log_odds_ratio"]) == pytest.approx(ratio)


def test_simpo_by_hand() -> None:
    loss = simpo_loss(t(-1.0, -2.0), t(-2.5, -2.0), beta=2.0, gamma=1.0)
    assert float(loss) == pytest.approx((softplus(-2.0) + softplus(1.0)) / 2, rel=1e-12)  # x = 2, -1
    assert float(simpo_loss(t(-1.0), t(-2.5), gamma=0.5, margin=t(0.5))) == pytest.approx(softplus(-2.0))


def test_cpo_by_hand() -> None:
    loss, stats = cpo_loss(t(-4.0), t(-10.0), beta=0.5, nll_coef=0.1, chosen_tokens=8)
    assert float(stats["nll"]) == pytest.approx(0.5)
    assert float(loss) == pytest.approx(softplus(-3.0) + 0.1 * 0.5, rel=1e-12)


def test_margins_and_labels_of_losses_without_a_reference_by_hand() -> None:
    # x = log 4 - 0.25, 3 - 1 and 2, each right with probability 0.75.
    def expected(x: float) -> float:
        return 0.75 * softplus(-x) + 0.25 * softplus(x)

    p, q = t(math.log(0.8)).requires_grad_(), t(math.log(0.5))
    loss, stats = orpo_loss(p, q, beta=0.5, margin=t(0.25), label=t(0.75))
    right = -math.log(0.8) + 0.5 * expected(math.log(4) - 0.25)
    assert float(loss.detach()) == pytest.approx(right, rel=1e-12)
    assert float(stats["log_odds_ratio"]) == pytest.approx(math.log(4))
    assert not any(value.requires_grad for value in stats.values())
    chosen = t(-4.0).requires_grad_()
    loss, stats = cpo_loss(chosen, t(-10.0), beta=0.5, chosen_tokens=8, margin=t(1.0), label=t(0.75))
    assert float(loss.detach()) == pytest.approx(expected(2.0) + 0.5, rel=1e-12)
    assert not stats["nll"].requires_grad
    assert float(simpo_loss(t(-1.0), t(-2.5), label=t(0.75))) == pytest.approx(expected(2.0), rel=1e-12)


def test_no_gradient_reaches_ktos_baseline() -> None:
    ratios, baseline = t(3.0, -1.0).requires_grad_(), t(1.0, 1.0).requires_grad_()
    kto_loss(ratios, torch.tensor([True, False]), baseline).backward()
    assert ratios.grad is not None and baseline.grad is None


MARGIN, LABEL = t(0.3, -0.1, 0.0), t(1.0, 0.4, 0.7)
DESIRABLE = torch.tensor([True, False, True])
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{
        f"dpo-{kind}": lambda c, r, kind=kind: dpo_loss(  # type: ignore[misc]
            c - r,
            kind=kind,
            beta=0.7,
            label_smoothing=0.2 if kind in ("cdpo", "robust") else 0.0,
            margin=MARGIN,
            label=LABEL,
        )
        for kind in KINDS
    },
    "kto": lambda c, r: (
        kto_loss(c, DESIRABLE, 0.2, beta=0.7, undesirable_weight=1.3) + 0.1 * r.square().sum()
    ),
    "orpo": lambda c, r: orpo_loss(c, r, beta=0.7, margin=MARGIN, label=LABEL)[0],
    "simpo": lambda c, r: simpo_loss(c, r, margin=MARGIN, label=LABEL),
    "cpo": lambda c, r: cpo_loss(c, r, beta=0.7, chosen_tokens=9.0, margin=MARGIN, label=LABEL)[0],
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    sides = (t(-0.4, -1.3, -2.0).requires_grad_(), t(-0.9, -0.2, -1.1).requires_grad_())
    assert torch.autograd.gradcheck(LOSSES[name], sides, eps=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_raising_the_chosen_side_lowers_the_loss(name: str) -> None:
    chosen = t(-0.4, -1.3, -2.0).requires_grad_()
    LOSSES[name](chosen, t(-0.5, -1.2, -2.1)).backward()
    assert chosen.grad is not None
    # Row 0 is surely preferred (KTO: desirable).
    assert float(chosen.grad[0]) < 0


def test_parts_add_up_with_the_denominator_of_the_whole() -> None:
    chosen, rejected = t(-0.4, -1.3, -2.0), t(-0.9, -0.2, -1.1)
    whole = simpo_loss(chosen, rejected)
    parts = [simpo_loss(chosen[rows], rejected[rows], denominator=3) for rows in (slice(0, 1), slice(1, 3))]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-12)
    whole, stats = cpo_loss(chosen, rejected, chosen_tokens=9)
    split = [
        cpo_loss(chosen[rows], rejected[rows], chosen_tokens=9, denominator=3)
        for rows in (slice(0, 1), slice(1, 3))
    ]
    assert float(sum(loss for loss, _ in split)) == pytest.approx(float(whole), rel=1e-12)
    assert float(sum(part["nll"] for _, part in split)) == pytest.approx(float(stats["nll"]), rel=1e-12)
