"""Losses of preference learning, as pure functions of the log-probs of whole responses.

Shape letters: P pairs, B episodes, L tokens. D is the log ratio of a response, the sum over its own tokens of
log pi - log pi_ref. As in ``textenv.agents.losses``, every loss is a sum divided by a denominator: pass that
of the whole optimizer step, and the losses of its micro-batches add up. Pairs may carry a ``margin`` (P,)
that the preferred side should win by, in units of the sigmoid's argument (Amini et al. 2024, "Direct
preference optimization with an offset"), and a ``label`` (P,) in [0, 1], the probability that the preference
is right; then the loss is the expected one (Mitchell 2023, "A note on DPO with noisy preferences").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from textenv.agents.losses.names import SMOOTHED, DPOKind
from textenv.agents.losses.policy_gradient import Stats


def response_log_probs(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Log-prob of each response: the sum over own tokens, (B, L), (B, L) bool -> (B,)."""
    return torch.where(mask, log_probs, 0.0).sum(-1)


def mean_of_rows(values: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Sum over rows divided by ``denominator``, by default their number: (P,) -> scalar; no rows give 0."""
    return values.sum() / (max(1, len(values)) if denominator is None else denominator)


def dpo_loss(
    gap: Tensor,
    *,
    kind: DPOKind = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    margin: Tensor | None = None,
    label: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Direct preference optimization and its relatives, of x = beta gap - margin.

    - "sigmoid": -log sigma(x) (Rafailov et al. 2023, eq. 7)
    - "cdpo": (1 - e) l(x) + e l(-x), l the sigmoid loss (Mitchell 2023)
    - "robust": ((1 - e) l(x) - e l(-x)) / (1 - 2 e), unbiased if a share e of labels is flipped
      (Chowdhury et al. 2024, eq. 12)
    - "ipo": (x / beta - 1 / (2 beta))^2 (Azar et al. 2024, eq. 17)
    - "hinge": max(0, 1 - x) (SLiC, Zhao et al. 2023, with a reference)

    Args:
        gap: (P,) D of the chosen minus D of the rejected response; for "ipo" of the length-averaged Ds.
        kind: see above.
        beta: how much a nat of log ratio counts.
        label_smoothing: e, the share of preferences taken to be wrong, below 0.5; "cdpo" and "robust" only.
        margin: (P,), see the module.
        label: (P,), see the module.
        denominator: pairs of the whole optimizer step, by default P.

    Returns:
        A scalar.

    Raises:
        ValueError: on an unknown kind, or label smoothing that it does not take.

    Example:
        >>> gap = torch.tensor([0.0, 10.0])
        >>> [round(float(dpo_loss(gap, kind=kind)), 4) for kind in ("sigmoid", "hinge")]
        [0.5032, 0.5]
    """
    if kind not in get_args(DPOKind):
        raise ValueError(f"loss must be one of {list(get_args(DPOKind))}, got {kind!r}")
    if label_smoothing and kind not in SMOOTHED:
        raise ValueError(f"label_smoothing needs a loss of {list(SMOOTHED)}, got {kind!r}")
    x = beta * gap if margin is None else beta * gap - margin.to(gap)

    def base(x: Tensor) -> Tensor:
        if kind == "ipo":
            return (x / beta - 1 / (2 * beta)).square()
        return torch.relu(1 - x) if kind == "hinge" else -logsigmoid(x)

    def smoothed(x: Tensor) -> Tensor:
        e = label_smoothing
        if kind == "cdpo":
            return (1 - e) * base(x) + e * base(-x)
        if kind == "robust":
            return ((1 - e) * base(x) - e * base(-x)) / (1 - 2 * e)
        return base(x)

    return mean_of_rows(_expected(smoothed, x, label), denominator)


def kto_loss(
    log_ratios: Tensor,
    desirable: Tensor,
    baseline: Tensor | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Kahneman-Tversky optimization: mean of w (1 - sigma(s beta (D - z))) (Ethayarajh et al. 2024, eq. 8).

    s and w are 1 and the desirable weight where the response is desirable, -1 and the undesirable weight
    elsewhere.

    Args:
        log_ratios: (B,) D of each response.
        desirable: (B,) bool.
        baseline: z, the policy's divergence from the reference, see ``kto_baseline``; no gradient.
        beta: how much a nat of log ratio counts.
        desirable_weight: weight of a desirable response.
        undesirable_weight: weight of an undesirable one.
        denominator: episodes of the whole optimizer step, by default B.

    Returns:
        A scalar.
    """
    if isinstance(baseline, Tensor):
        baseline = baseline.detach()
    x = beta * (log_ratios - baseline)
    losses = torch.where(
        desirable,
        desirable_weight * torch.sigmoid(-x),
        undesirable_weight * torch.sigmoid(x),
    )
    return mean_of_rows(losses, denominator)


def kto_baseline(mismatched: Tensor) -> Tensor:
    """KTO's z: max(0, mean D of responses under prompts not their own), no gradient: (B,) -> scalar."""
    return mismatched.detach().mean().clamp_min(0.0)


def log_odds(mean_log_probs: Tensor) -> Tensor:
    """log(p / (1 - p)) for p = exp(mean log-prob): (P,) -> (P,).

    p is kept a rounding error below 1, where the odds are infinite.
    """
    limit = -torch.finfo(mean_log_probs.dtype).eps
    x = mean_log_probs.clamp_max(limit)
    # log(1 - exp(x)) loses its digits near 0 in one form and far from it in the other (Maechler 2012).
    near = x > -0.6931
    log_rest = torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(x))
    )
    return x - log_rest


def orpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float = 0.1,
    margin: Tensor | None = None,
    label: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, Stats]:
    """Odds-ratio preference optimization, without a reference (Hong et al. 2024, eq. 6 and 7).

    NLL of the chosen response - beta log sigma(log odds of the chosen - log odds of the rejected one).

    Args:
        chosen: (P,) log-probs of the chosen responses, averaged over their tokens.
        rejected: the same of the rejected ones.
        beta: weight of the odds ratio.
        margin: (P,), see the module.
        label: (P,), see the module; the NLL is of the chosen side all the same.
        denominator: pairs of the whole optimizer step, by default P.

    Returns:
        (scalar, statistics: ``nll`` in nats a token, ``log_odds_ratio``).
    """
    gap = log_odds(chosen) - log_odds(rejected)
    x = gap if margin is None else gap - margin.to(gap)
    nll = mean_of_rows(-chosen, denominator)
    loss = nll + beta * mean_of_rows(_expected(_logistic, x, label), denominator)
    stats = {"nll": nll.detach(), "log_odds_ratio": mean_of_rows(gap.detach(), denominator)}
    return loss, stats


def simpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    margin: Tensor | None = None,
    label: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Mean of -log sigma(beta (mean l_c - mean l_r) - gamma), no reference (Meng et al. 2024, eq. 6).

    Args:
        chosen: (P,) log-probs of the chosen responses, averaged over their tokens.
        rejected: the same of the rejected ones.
        beta: how much a nat a token counts.
        gamma: margin of all pairs.
        margin: (P,), comes on top of gamma; see the module.
        label: (P,), see the module.
        denominator: pairs of the whole optimizer step, by default P.
    """
    x = beta * (chosen - rejected) - gamma
    x = x if margin is None else x - margin.to(x)
    return mean_of_rows(_expected(_logistic, x, label), denominator)


def cpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float = 0.1,
    nll_coef: float = 1.0,
    chosen_tokens: Tensor | float,
    margin: Tensor | None = None,
    label: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, Stats]:
    """Contrastive preference optimization: -log sigma(beta (l_c - l_r)) + NLL_c (Xu et al. 2024, eq. 5).

    Args:
        chosen: (P,) log-probs of the chosen responses, summed over their tokens.
        rejected: the same of the rejected ones.
        beta: how much a nat counts.
        nll_coef: weight of the negative log-likelihood of the chosen tokens.
        chosen_tokens: own tokens of the chosen responses in the whole optimizer step, which the NLL is the
            mean over.
        margin: (P,), see the module.
        label: (P,), see the module; the NLL is of the chosen side all the same.
        denominator: pairs of the whole optimizer step, by default P.

    Returns:
        (scalar, statistics: ``nll`` in nats a token).
    """
    x = beta * (chosen - rejected)
    x = x if margin is None else x - margin.to(x)
    nll = -chosen.sum() / chosen_tokens
    loss = mean_of_rows(_expected(_logistic, x, label), denominator) + nll_coef * nll
    return loss, {"nll": nll.detach()}


def _logistic(x: Tensor) -> Tensor:
    return -logsigmoid(x)


def _expected(loss: Callable[[Tensor], Tensor], x: Tensor, label: Tensor | None) -> Tensor:
    """Loss of (P,) arguments, expected over which side is really better."""
    if label is None:
        return loss(x)
    p = label.to(x)
    return p * loss(x) + (1 - p) * loss(-x)
