"""Sums, means and scaling over the action tokens of (B, L) tensors.

``mask`` (B, L) bool marks the action tokens. Values at other positions, NaN and infinity included, change
neither results nor gradients: inputs are masked, not products, because 0 times NaN is NaN. Shape letters: B
episodes, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def zero_unmasked(values: Tensor, mask: Tensor) -> Tensor:
    """The values at action tokens, 0 without gradient elsewhere: (B, L), (B, L) bool -> (B, L)."""
    return torch.where(mask, values, 0.0)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over action tokens: (B, L), (B, L) bool -> scalar.

    Only ``values`` is masked. If it was computed by a product, mask the factors before the product.
    """
    return zero_unmasked(values, mask).sum()


def masked_mean(values: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Sum over action tokens divided by ``denominator``, by default their number: (B, L) -> scalar.

    The mean over an empty mask is 0, so a micro-batch without action tokens adds nothing.

    Example:
        >>> x, mask = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]])
        >>> float(masked_mean(x, mask)), float(masked_mean(x, mask, denominator=6))
        (1.5, 0.5)
    """
    if denominator is None:
        denominator = mask.sum().clamp_min(1)
    return masked_sum(values, mask) / denominator


def masked_squared_error(
    values: Tensor, targets: Tensor, mask: Tensor, denominator: Tensor | float | None = None
) -> Tensor:
    """Mean over action tokens of (x - y)^2; the targets y get no gradient: 3 x (B, L) -> scalar."""
    difference = zero_unmasked(values, mask) - zero_unmasked(targets.detach(), mask)
    return masked_mean(difference.square(), mask, denominator)


def masked_whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, min_std: float = 0.0, eps: float = 1e-8
) -> Tensor:
    """Scale to (population) variance 1 over action tokens and shift to mean 0: (B, L) -> (B, L).

    Call it on the whole batch, before the split into minibatches. The result is 0 outside the mask.

    Args:
        values: (B, L).
        mask: (B, L) bool, action tokens.
        shift_mean: False keeps the mean.
        min_std: lower bound of the divisor, so that small differences are not amplified.
        eps: added to the variance.
    """
    values = zero_unmasked(values, mask)
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask).clamp_min(min_std**2)
    scaled = (values - mean) * torch.rsqrt(variance + eps)
    return zero_unmasked(scaled if shift_mean else scaled + mean, mask)


def masked_center(values: Tensor, mask: Tensor, groups: Tensor) -> Tensor:
    """Shift to mean 0 over the action tokens of each group of rows: (B, L), groups (B,) int64 -> (B, L).

    The result is 0 outside the mask.
    """
    index = groups.unique(return_inverse=True)[1].to(values.device)
    sums = torch.zeros(len(values), dtype=values.dtype, device=values.device)
    counts = torch.zeros_like(sums)
    sums.index_add_(0, index, zero_unmasked(values, mask).sum(-1))
    counts.index_add_(0, index, mask.sum(-1).to(counts.dtype))
    means = sums / counts.clamp_min(1)
    return zero_unmasked(values - means[index].unsqueeze(-1), mask)


def divide_by_std(values: Tensor, mask: Tensor) -> Tensor:
    """Divide by the (population) standard deviation over action tokens, without a shift: (B, L) -> (B, L).

    A shift of rewards would change the return of an episode by its length. Equal values are not scaled. The
    result is 0 outside the mask.
    """
    std = values[mask].std(correction=0)
    return zero_unmasked(values, mask) / torch.where(std > 0, std, 1.0)


def first_action_value(values: Tensor, mask: Tensor) -> Tensor:
    """The value at the first action token of each row, 0 for a row without one: (B, L) -> (B,)."""
    return zero_unmasked(values, mask & (mask.cumsum(-1) == 1)).sum(-1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var[returns - values] / Var[returns] over action tokens, NaN if returns are constant: -> scalar."""
    chosen_returns = returns[mask].double()
    errors = chosen_returns - values[mask].double()
    variance = chosen_returns.var(correction=0)
    explained = 1.0 - errors.var(correction=0) / variance
    return torch.where(variance > 0, explained, torch.nan)
