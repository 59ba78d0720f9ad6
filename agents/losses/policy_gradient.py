"""Losses of policy gradients as pure functions of tensors: surrogates, value, entropy, KL, likelihood.

Every tensor is (B, L), aligned with ``input_ids``; ``mask`` marks the action tokens. Every loss and statistic
is a sum divided by a denominator. If each micro-batch gets the denominator of the whole optimizer step, the
losses and statistics of the micro-batches add up to those of the whole batch. Without a denominator the call
is the whole batch. Values outside the mask, NaN and infinity included, change neither losses nor gradients.
Statistics are detached tensors on the device. Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from textenv.agents.losses.masked import masked_mean, zero_unmasked
from textenv.agents.losses.names import RatioLevel
from textenv.modeling.bounded_exp import bounded_exp
from textenv.modeling.kl import kl_estimate

Reduction = Callable[[Tensor, Tensor], Tensor]
"""(values (B, L), mask (B, L) bool) -> scalar; it holds its own denominators, see ``aggregation``."""
Stats = dict[str, Tensor]


def _reduced(
    values: Tensor, mask: Tensor, reduce: Reduction | None, denominator: Tensor | float | None
) -> Tensor:
    """``reduce`` of per-token losses, by default their mean over ``denominator``: (B, L) -> scalar."""
    return masked_mean(values, mask, denominator) if reduce is None else reduce(values, mask)


def log_ratio(
    log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, *, level: RatioLevel = "token"
) -> Tensor:
    """Log probability ratio log pi - log pi_old, 0 outside the mask: (B, L) -> (B, L).

    Args:
        log_probs: (B, L) under the policy in training.
        old_log_probs: (B, L) under the policy before the update.
        mask: (B, L) bool, action tokens.
        level: "token", or "sequence": at each action token the mean over the episode's action tokens
            (GSPO, Zheng et al. 2025).

    Raises:
        ValueError: if ``level`` is unknown.
    """
    difference = zero_unmasked(log_probs, mask) - zero_unmasked(old_log_probs, mask)
    if level == "token":
        return difference
    if level == "sequence":
        mean = difference.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
        return zero_unmasked(mean.expand_as(difference), mask)
    raise ValueError(f"ratio level must be one of {list(get_args(RatioLevel))}, got {level!r}")


@torch.no_grad()
def ratio_stats(difference: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None) -> Stats:
    """Distance of the policy in training from the policy before the update.

    Args:
        difference: (B, L) log probability ratios, see ``log_ratio``.
        mask: (B, L) bool, action tokens.
        denominator: action tokens of the whole optimizer step.

    Returns:
        ``approx_kl``, the k3 estimate of KL(old || new) in nats per token, and ``ratio``, the mean ratio.
    """
    difference = zero_unmasked(difference, mask)
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
    """Clipped surrogate: mean of max(-A rho, -A clip(rho, 1 - eps, 1 + eps_high)).

    Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7. The ratio rho is exp of the log
    ratio up to 20 nats, and the tangent of exp above (``bounded_exp``). So loss and gradient stay finite.

    Args:
        log_probs: (B, L) under the policy in training, with gradient.
        old_log_probs: (B, L) under the policy before the update.
        advantages: (B, L) A; they get no gradient.
        mask: (B, L) bool, action tokens.
        clip_range: eps.
        clip_range_high: eps_high, by default eps ("clip higher", DAPO, Yu et al. 2025, section 3.1).
        dual_clip: c > 1; where A < 0 the loss is at most -c A (Ye et al. 2020, "Mastering complex control in
            MOBA games").
        level: one ratio per token, or one per sequence (GSPO).
        reduce: aggregation of per-token losses, by default the mean over action tokens.
        denominator: action tokens of the whole optimizer step.

    Returns:
        (scalar loss, statistics: ``clip_fraction``, the share of action tokens where the clipped branch is
        larger, and those of ``ratio_stats``).

    Raises:
        ValueError: if ``dual_clip`` is not above 1.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be > 1, got {dual_clip}")
    advantages = zero_unmasked(advantages.detach(), mask)
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
    """Score-function loss: mean of -A log pi (REINFORCE, Williams 1992): (B, L) -> scalar."""
    losses = -zero_unmasked(advantages.detach(), mask) * zero_unmasked(log_probs, mask)
    return _reduced(losses, mask, reduce, denominator)


def policy_gradient_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float | None,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    level: RatioLevel = "token",
    reduce: Reduction | None = None,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, Stats]:
    """``reinforce_loss`` if ``clip_range`` is None, else ``ppo_policy_loss``.

    Without a ratio the gradient is right for one optimizer step per rollout. Arguments are those of
    ``ppo_policy_loss``.

    Returns:
        (scalar loss, statistics: those of ``ratio_stats``, and with a clip ``clip_fraction``).
    """
    if clip_range is None:
        loss = reinforce_loss(log_probs, advantages, mask, reduce=reduce, denominator=denominator)
        return loss, ratio_stats(log_ratio(log_probs, old_log_probs, mask), mask, denominator=denominator)
    return ppo_policy_loss(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        clip_range=clip_range,
        clip_range_high=clip_range_high,
        dual_clip=dual_clip,
        level=level,
        reduce=reduce,
        denominator=denominator,
    )


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip_range: float | None = 0.2,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, Stats]:
    """Half the mean squared error of V, clipped around the old values as in OpenAI Baselines (PPO2).

    1/2 mean of max((V - G)^2, (V_old + clip(V - V_old, -eps_v, eps_v) - G)^2).

    Args:
        values: (B, L) V of the state before the token, with gradient.
        old_values: (B, L) V before the update.
        returns: (B, L) targets G; they get no gradient.
        mask: (B, L) bool, action tokens.
        clip_range: eps_v; None does not clip.
        denominator: action tokens of the whole optimizer step.

    Returns:
        (scalar loss, statistics: ``clip_fraction``, the share of action tokens where the clipped error is
        larger, and ``error``, the mean squared error before clipping).
    """
    values, returns = zero_unmasked(values, mask), zero_unmasked(returns.detach(), mask)
    old_values = zero_unmasked(old_values.detach(), mask)
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
    """Minus the mean entropy in nats per token; add it with a positive coefficient: (B, L) -> scalar."""
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
    """KL to the reference policy as a loss (k3: Schulman 2020, "Approximating KL divergence").

    Args:
        log_probs: (B, L) under the policy in training, with gradient.
        ref_log_probs: (B, L) under the reference policy.
        mask: (B, L) bool, action tokens.
        kind: the estimator. "k1" does not regularise: its gradient is the score function, with mean 0.
        reduce: aggregation of per-token estimates, by default the mean over action tokens.
        denominator: action tokens of the whole optimizer step.

    Returns:
        A scalar in nats per token.
    """
    ref_log_probs = zero_unmasked(ref_log_probs.detach(), mask)
    estimates = kl_estimate(zero_unmasked(log_probs, mask), ref_log_probs, kind=kind)
    return _reduced(estimates, mask, reduce, denominator)


def sft_loss(log_probs: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """Negative log-likelihood in nats per token, the mean over action tokens: (B, L) -> scalar."""
    return -masked_mean(log_probs, mask, denominator)
