"""Losses of preference optimization as pure functions of the log-probs of whole responses.

D is the log ratio of a response: the sum over its action tokens of log pi - log pi_ref. Every loss is a sum
divided by a denominator. If each micro-batch gets the denominator of the whole optimizer step, the losses of
the micro-batches add up. Optional arguments of losses of pairs:

- ``margin`` (P,): by how much the preferred response should win, in units of the argument of the sigmoid
  (Amini et al. 2024, "Direct preference optimization with an offset").
- ``label`` (P,) in [0, 1]: probability that the preference is right. The loss is then its expectation
  (Mitchell 2023, "A note on DPO with noisy preferences").

Shape letters: P pairs, B episodes, L tokens.
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
    """Log-prob of each response, the sum over its action tokens: (B, L), (B, L) bool -> (B,)."""
    return torch.where(mask, log_probs, 0.0).sum(-1)


def _mean(values: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Sum divided by ``denominator``, by default the number of values: (P,) -> scalar; 0 without values."""
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
    """Direct preference optimization (DPO) and variants, as functions of x = beta gap - margin.

    - "sigmoid": -log sigma(x) (Rafailov et al. 2023, eq. 7)
    - "cdpo": (1 - e) l(x) + e l(-x), l the sigmoid loss (Mitchell 2023)
    - "robust": ((1 - e) l(x) - e l(-x)) / (1 - 2 e), unbiased if a share e of labels is flipped
      (Chowdhury et al. 2024, eq. 12)
    - "ipo": (x / beta - 1 / (2 beta))^2 (Azar et al. 2024, eq. 17)
    - "hinge": max(0, 1 - x) (SLiC, Zhao et al. 2023, with a reference)

    Args:
        gap: (P,) D of the chosen minus D of the rejected response; for "ipo" of the length-averaged Ds.
        kind: see above.
        beta: scale of the log ratio; larger values stay closer to the reference.
        label_smoothing: e < 0.5, the assumed share of wrong preferences; "cdpo" and "robust" only.
        margin: (P,), see the module docstring.
        label: (P,), see the module docstring.
        denominator: pairs of the whole optimizer step, by default P.

    Returns:
        A scalar.

    Raises:
        ValueError: if ``kind`` is unknown, or does not use ``label_smoothing``.

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

    return _mean(_expected(smoothed, x, label), denominator)


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
    """Kahneman-Tversky optimization (KTO): mean of w (1 - sigma(s beta (D - z))).

    Ethayarajh et al. 2024, "KTO: model alignment as prospect theoretic optimization", eq. 8. For
    desirable responses s = 1 and w = ``desirable_weight``, for others s = -1 and w = ``undesirable_weight``.

    Args:
        log_ratios: (B,) D of each response.
        desirable: (B,) bool.
        baseline: z, an estimate of KL(pi || pi_ref), see ``kto_baseline``; it gets no gradient.
        beta: scale of the log ratio; larger values stay closer to the reference.
        desirable_weight: weight of desirable responses.
        undesirable_weight: weight of the others.
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
    return _mean(losses, denominator)


def kto_baseline(mismatched: Tensor) -> Tensor:
    """Z of KTO: max(0, mean D of responses paired with other prompts), without gradient: (B,) -> scalar."""
    return mismatched.detach().mean().clamp_min(0.0)


def log_odds(mean_log_probs: Tensor) -> Tensor:
    """log(p / (1 - p)) for p = exp(mean log-prob): (P,) -> (P,).

    p is clipped to 1 - eps of the number format: at 1 the odds are infinite.
    """
    limit = -torch.finfo(mean_log_probs.dtype).eps
    x = mean_log_probs.clamp_max(limit)
    # log(1 - exp(x)): one form is inexact near 0, the other far from it (Maechler 2012).
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
    """Odds-ratio preference optimization, without a reference (ORPO, Hong et al. 2024, eq. 6 and 7).

    NLL of the chosen response - beta log sigma(log odds of the chosen - log odds of the rejected one).

    Args:
        chosen: (P,) log-probs of the chosen responses, averaged over their tokens.
        rejected: (P,) the same of the rejected responses.
        beta: weight of the odds ratio.
        margin: (P,), see the module docstring.
        label: (P,), see the module docstring; it does not change the NLL.
        denominator: pairs of the whole optimizer step, by default P.

    Returns:
        (scalar loss, statistics: ``nll`` in nats per token, ``log_odds_ratio``).
    """
    gap = log_odds(chosen) - log_odds(rejected)
    x = gap if margin is None else gap - margin.to(gap)
    nll = _mean(-chosen, denominator)
    loss = nll + beta * _mean(_expected(_logistic, x, label), denominator)
    stats = {"nll": nll.detach(), "log_odds_ratio": _mean(gap.detach(), denominator)}
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
    """Mean of -log sigma(beta (mean l_c - mean l_r) - gamma), without a reference (SimPO, Meng 2024, eq. 6).

    Args:
        chosen: (P,) log-probs of the chosen responses, averaged over their tokens.
        rejected: (P,) the same of the rejected responses.
        beta: scale of the mean log-probs.
        gamma: margin of all pairs.
        margin: (P,), added to gamma; see the module docstring.
        label: (P,), see the module docstring.
        denominator: pairs of the whole optimizer step, by default P.
    """
    x = beta * (chosen - rejected) - gamma
    x = x if margin is None else x - margin.to(x)
    return _mean(_expected(_logistic, x, label), denominator)


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
    """Contrastive preference optimization: -log sigma(beta (l_c - l_r)) + NLL_c (CPO, Xu et al. 2024, eq. 5).

    Args:
        chosen: (P,) log-probs of the chosen responses, summed over their tokens.
        rejected: (P,) the same of the rejected responses.
        beta: scale of the log-probs.
        nll_coef: weight of the negative log-likelihood of the chosen tokens.
        chosen_tokens: action tokens of the chosen responses of the whole optimizer step: the denominator of
            the NLL.
        margin: (P,), see the module docstring.
        label: (P,), see the module docstring; it does not change the NLL.
        denominator: pairs of the whole optimizer step, by default P.

    Returns:
        (scalar loss, statistics: ``nll`` in nats per token).
    """
    x = beta * (chosen - rejected)
    x = x if margin is None else x - margin.to(x)
    nll = -chosen.sum() / chosen_tokens
    loss = _mean(_expected(_logistic, x, label), denominator) + nll_coef * nll
    return loss, {"nll": nll.detach()}


def _logistic(x: Tensor) -> Tensor:
    return -logsigmoid(x)


def _expected(loss: Callable[[Tensor], Tensor], x: Tensor, label: Tensor | None) -> Tensor:
    """Expectation of the loss (P,) over which response is better, with probability ``label``."""
    if label is None:
        return loss(x)
    p = label.to(x)
    return p * loss(x) + (1 - p) * loss(-x)
