"""Losses of reward models as pure functions of scores.

Scores with weight 0, NaN included, change neither losses nor gradients. Shape letters: P pairs, R rated
texts, K heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def _weighted_mean(
    values: Tensor, weights: Tensor | None = None, denominator: Tensor | float | None = None
) -> Tensor:
    """Sum over rows divided by ``denominator``, and the mean over heads: (P,) or (P, K) -> scalar.

    Args:
        values: (P,) or (P, K).
        weights: of the same shape; None is 1 everywhere.
        denominator: rows of the whole optimizer step; by default P, at least 1.
    """
    if weights is not None:
        values = _weighted(values, weights) * weights
    if denominator is None:
        denominator = max(1, len(values))
    heads = 1 if values.dim() == 1 else values.shape[1]
    return values.sum() / (denominator * heads)


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | None = None,
    label: Tensor | None = None,
    weights: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Negative log-likelihood of preferences (Bradley and Terry 1952; margin: Touvron et al. 2023, eq. 2).

    With x = r_c - r_r - margin and p = label: mean of -p log sigma(x) - (1 - p) log sigma(-x). For p = 1 this
    is -log sigma(x).

    Args:
        chosen: (P,) or (P, K) scores of the preferred texts.
        rejected: scores of the others, of the same shape.
        margin: (P,), by how much ``chosen`` should win; None is 0.
        label: (P,) in [0, 1], probability that ``chosen`` is better; None is 1.
        weights: of the shape of ``chosen``.
        denominator: pairs of the whole optimizer step, by default P.

    Returns:
        A scalar in nats per pair.

    Example:
        >>> import torch
        >>> loss = bradley_terry_loss(torch.tensor([1.0]), torch.tensor([1.0]))
        >>> round(float(loss), 4)
        0.6931
    """
    logits = chosen - rejected
    if margin is not None:
        logits = logits - _as_rows(margin, logits)
    logits = _weighted(logits, weights)
    if label is None:
        losses = -logsigmoid(logits)
    else:
        p = _as_rows(label, logits)
        losses = -(p * logsigmoid(logits) + (1 - p) * logsigmoid(-logits))
    return _weighted_mean(losses, weights, denominator)


def centering_loss(chosen: Tensor, rejected: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """Mean of (r_c + r_r)^2: keeps the scores near 0, because pairs determine them only up to a constant.

    Eisenstein et al. 2023, "Helping or herding?", eq. 2.

    Args:
        chosen: (P,) or (P, K) scores of the preferred texts.
        rejected: scores of the others, of the same shape.
        denominator: pairs of the whole optimizer step, by default P.
    """
    return _weighted_mean((chosen + rejected).square(), None, denominator)


def rating_loss(
    scores: Tensor,
    ratings: Tensor,
    *,
    weights: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Mean squared error of scores as predictions of ratings: (R,) or (R, K), (R,) -> scalar.

    Args:
        scores: (R,) or (R, K).
        ratings: (R,) targets.
        weights: of the shape of ``scores``.
        denominator: rated texts of the whole optimizer step, by default R.
    """
    errors = _weighted(scores - _as_rows(ratings, scores), weights)
    return _weighted_mean(errors.square(), weights, denominator)


def _as_rows(values: Tensor, like: Tensor) -> Tensor:
    """(P,) with the dtype of ``like``, as (P, 1) if ``like`` is (P, K)."""
    values = values.to(like)
    return values.unsqueeze(-1) if like.dim() == 2 else values


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    """The values, 0 where their weight is 0; call it before a product, because 0 times NaN is NaN."""
    return values if weights is None else torch.where(weights != 0, values, 0.0)
