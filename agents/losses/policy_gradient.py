"""Losses as pure functions of tensors: masked aggregation, policy gradient, value, entropy, KL, NLL.

Every tensor is (B, L), aligned with ``input_ids`` and masked by the tokens that the policy chose (own
tokens). Every loss and statistic is a sum divided by a denominator. Pass the denominator of the whole
optimizer step and the micro-batches' losses and statistics ADD UP to those of the whole batch, however it was
split; without it a call is taken to be the whole batch. What stands off the mask, NaN and infinities too,
changes neither values nor gradients: inputs are masked, not products (0 times NaN is NaN). Statistics are
detached tensors on the device (reading them is left to the caller). Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from textenv.agents.losses.names import RatioLevel
from textenv.modeling.bounded_exp import bounded_exp
from textenv.modeling.kl import kl_estimate

Reduction = Callable[[Tensor, Tensor], Tensor]
"""(values (B, L), mask (B, L) bool) -> scalar, with its denominators inside; see ``aggregations``."""
Stats = dict[str, Tensor]


def own(values: Tensor, mask: Tensor) -> Tensor:
    """The values at own tokens, 0 (and no gradient) elsewhere: (B, L), (B, L) bool -> (B, L)."""
    return torch.where(mask, values, 0.0)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over own tokens: (B, L), (B, L) bool -> scalar. What is off the mask (NaN too) has no part.

    That is so for ``values`` themselves, not for what they were computed from: mask that before a product.
    """
    return own(values, mask).sum()


def masked_mean(values: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Sum over own tokens divided by ``denominator``, by default their number: (B, L) -> scalar.

    An empty mask gives 0, so that a micro-batch without own tokens adds nothing.

    Example:
        >>> x, mask = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]])
        >>> float(masked_mean(x, mask)), float(masked_mean(x, mask, denominator=6))
        (1.5, 0.5)
    """
    if denominator is None:
        denominator = mask.sum().clamp_min(1)
    return masked_sum(values, mask) / denominator


def _reduced(
    values: Tensor, mask: Tensor, reduce: Reduction | None, denominator: Tensor | float | None
) -> Tensor:
    """``reduce`` of per-token losses, by default their mean over ``denominator``: (B, L) -> scalar."""
    return masked_mean(values, mask, denominator) if reduce is None else reduce(values, mask)


def masked_whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, min_std: float = 0.0, eps: float = 1e-8
) -> Tensor:
    """Scale to unit (population) variance over own tokens, and shift to mean 0: (B, L) -> (B, L).

    Call it on the whole batch, before it is split into minibatches. Off the mask the result is 0. Values that
    spread less than ``min_std`` are divided by that, so small differences stay small.
    """
    values = own(values, mask)
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean).square(), mask).clamp_min(min_std**2)
    scaled = (values - mean) * torch.rsqrt(variance + eps)
    return own(scaled if shift_mean else scaled + mean, mask)


def masked_center(values: Tensor, mask: Tensor, groups: Tensor) -> Tensor:
    """Shift to mean 0 over the own tokens of each group of rows: (B, L), groups (B,) int64 -> (B, L).

    Off the mask the result is 0.
    """
    index = groups.unique(return_inverse=True)[1].to(values.device)
    sums = torch.zeros(len(values), dtype=values.dtype, device=values.device)
    counts = torch.zeros_like(sums)
    sums.index_add_(0, index, own(values, mask).sum(-1))
    counts.index_add_(0, index, mask.sum(-1).to(counts.dtype))
    means = sums / counts.clamp_min(1)
    return own(values - means[index].unsqueeze(-1), mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var[returns - values] / Var[returns] over own tokens; NaN where returns are constant: -> scalar."""
    chosen_returns = returns[mask].double()
    errors = chosen_returns - values[mask].double()
    variance = chosen_returns.var(correction=0)
    explained = 1.0 - errors.var(correction=0) / variance
    return torch.where(variance > 0, explained, torch.nan)


def log_ratio(
    log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, *, level: RatioLevel = "token"
) -> Tensor:
    """Log importance ratio, 0 off the mask: (B, L) -> (B, L).

    Args:
        log_probs: (B, L) under the policy being trained.
        old_log_probs: (B, L) under the policy that was frozen for this batch.
        mask: (B, L) bool, own tokens.
        level: "token", or "sequence" = at each own token the mean over the episode's own tokens
            (GSPO, Zheng et al. 2025).

    Raises:
        ValueError: on an unknown ``level``.
    """
    difference = own(log_probs, mask) - own(old_log_probs, mask)
    if level == "token":
        return difference
    if level == "sequence":
        mean = difference.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
        return own(mean.expand_as(difference), mask)
    raise ValueError(f"ratio level must be one of {list(get_args(RatioLevel))}, got {level!r}")


@torch.no_grad()
def ratio_stats(difference: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None) -> Stats:
    """How far the policy has moved from the one that was frozen for this batch.

    Args:
        difference: (B, L) log importance ratios, see ``log_ratio``.
        mask: (B, L) bool, own tokens.
        denominator: own tokens in the whole optimizer step.

    Returns:
        ``approx_kl``, the k3 estimate of KL(old || new) in nats a token, and ``ratio``, the mean ratio.
    """
    difference = own(difference, mask)
    ratio = bounded_exp(difference)
    return {
        "approx_kl": masked_mean(ratio - 1.0 - difference, mask, denominator),
        "ratio": masked_mean(ratio, mask, denominator),
    }


def ppo_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float = 0.2,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    level: RatioLevel = "token",
    reduce: Reduction | None = None,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, Stats]:
    """Clipped surrogate: mean of max(-A rho, -A clip(rho, 1 - eps, 1 + eps_high)) (Schulman 2017, eq. 7).

    rho is exp of the log-ratio up to 20 nats and goes on as its tangent (``bounded_exp``): a token with A < 0
    that became that much likelier is still pushed down, by a finite gradient.

    Args:
        log_probs: (B, L) under the policy being trained, with gradient.
        old_log_probs: (B, L) under the policy that was frozen for this batch.
        advantages: (B, L), no gradient flows into them.
        mask: (B, L) bool, own tokens.
        clip_range: eps.
        clip_range_high: eps_high, by default eps ("clip higher", DAPO, Yu et al. 2025, section 3.1).
        dual_clip: c > 1: where A < 0 the loss is at most -c A (Ye et al. 2020, "Mastering complex control in
            MOBA games").
        level: per-token ratios, or one per sequence (GSPO).
        reduce: how per-token losses become a scalar, by default their mean over own tokens.
        denominator: own tokens in the whole optimizer step.

    Returns:
        (scalar loss, statistics: ``clip_fraction`` of own tokens where the clipped branch is the larger one,
        and those of ``ratio_stats``).

    Raises:
        ValueError: if ``dual_clip`` is not above 1.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be > 1, got {dual_clip}")
    advantages = own(advantages.detach(), mask)
    difference = log_ratio(log_probs, old_log_probs.detach(), mask, level=level)
    ratio = bounded_exp(difference)
    high = clip_range if clip_range_high is None else clip_range_high
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_range, 1.0 + high)
    losses = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)
    loss = _reduced(losses, mask, reduce, denominator)
    with torch.no_grad():
        clip_fraction = masked_mean((clipped > unclipped).to(losses.dtype), mask, denominator)
    return loss, {"clip_fraction": clip_fraction, **ratio_stats(difference, mask, denominator=denominator)}


def reinforce_loss(
    log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    reduce: Reduction | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Score-function loss: mean of -A log pi (Williams 1992): (B, L) -> scalar."""
    return _reduced(-own(advantages.detach(), mask) * own(log_probs, mask), mask, reduce, denominator)


def masked_squared_error(
    values: Tensor, targets: Tensor, mask: Tensor, denominator: Tensor | float | None = None
) -> Tensor:
    """Mean over own tokens of (x - y)^2, no gradient to the targets y: (B, L), (B, L), (B, L) -> scalar."""
    return masked_mean((own(values, mask) - own(targets.detach(), mask)).square(), mask, denominator)


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip_range: float | None = 0.2,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, Stats]:
    """Half the mean squared error, clipped around the old values as in OpenAI's baselines (PPO2).

    1/2 mean of max((V - G)^2, (V_old + clip(V - V_old, -eps_v, eps_v) - G)^2).

    Args:
        values: (B, L) V of the state before the token, with gradient.
        old_values: (B, L) as they were when the batch was collected.
        returns: (B, L) targets G.
        mask: (B, L) bool, own tokens.
        clip_range: eps_v; None does not clip.
        denominator: own tokens in the whole optimizer step.

    Returns:
        (scalar loss, statistics: ``clip_fraction`` of own tokens whose clipped error is the larger one,
        ``error`` the mean squared error before clipping).
    """
    values, returns = own(values, mask), own(returns.detach(), mask)
    old_values = own(old_values.detach(), mask)
    errors = (values - returns).square()
    losses = errors
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        losses = torch.maximum(errors, (clipped - returns).square())
    loss = 0.5 * masked_mean(losses, mask, denominator)
    with torch.no_grad():
        stats = {
            "clip_fraction": masked_mean((losses > errors).to(losses.dtype), mask, denominator),
            "error": masked_mean(errors, mask, denominator),
        }
    return loss, stats


def entropy_loss(entropy: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """Minus the mean entropy in nats a token, to be added with a positive coefficient: (B, L) -> scalar."""
    return -masked_mean(entropy, mask, denominator)


def kl_loss(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    mask: Tensor,
    *,
    kind: Literal["k1", "k2", "k3"] = "k3",
    reduce: Reduction | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """KL to the reference as a loss, by default k3 (Schulman 2020, "Approximating KL divergence").

    Args:
        log_probs: (B, L) under the policy being trained, with gradient.
        ref_log_probs: (B, L) under the reference.
        mask: (B, L) bool, own tokens.
        kind: the estimator; the gradient of "k1" is the score function, whose expectation is 0: it
            regularises nothing.
        reduce: how per-token estimates become a scalar, by default their mean over own tokens.
        denominator: own tokens in the whole optimizer step.

    Returns:
        A scalar in nats a token.
    """
    estimates = kl_estimate(own(log_probs, mask), own(ref_log_probs.detach(), mask), kind=kind)
    return _reduced(estimates, mask, reduce, denominator)


def sft_loss(log_probs: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """Negative log-likelihood in nats, the global mean over own tokens: (B, L) -> scalar."""
    return -masked_mean(log_probs, mask, denominator)
