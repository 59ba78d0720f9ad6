"""Truncated importance weights: correct advantages of episodes that older weights generated.

Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.bounded_exp import bounded_exp

ImportanceLevel = Literal["token", "sequence"]


def truncated_importance_weights(
    log_probs: Tensor,
    behaviour_log_probs: Tensor,
    mask: Tensor,
    *,
    level: ImportanceLevel = "token",
    clip: float = 2.0,
) -> Tensor:
    """min(rho-bar, pi / mu) at action tokens, 0 elsewhere, without gradient: (B, L) -> (B, L).

    mu is the policy that generated the episodes, pi the policy before the update. Per token this is rho_t of
    IMPALA with its bound rho-bar (Espeholt et al. 2018, section 4.1), used as in the decoupled objective of
    PPO: the clipped ratio is relative to pi, and the weight corrects from mu to pi (Hilton et al. 2021,
    "Batch size-invariance for policy optimization"). Per sequence it is truncated importance sampling
    (Ionides 2008): each action token gets the product over the action tokens of its episode.

    Args:
        log_probs: (B, L) under pi.
        behaviour_log_probs: (B, L) under mu, as recorded when the tokens were sampled.
        mask: (B, L) bool, action tokens.
        level: "token" or "sequence".
        clip: rho-bar, the largest weight.

    Raises:
        ValueError: if ``level`` is unknown, or ``clip`` <= 0.

    Example:
        >>> pi, mu = torch.tensor([[0.0, -0.5, -0.5]]), torch.tensor([[0.0, -1.0, -0.25]])
        >>> mask = torch.tensor([[False, True, True]])
        >>> truncated_importance_weights(pi, mu, mask, clip=1.5)
        tensor([[0.0000, 1.5000, 0.7788]])
        >>> truncated_importance_weights(pi, mu, mask, level="sequence")
        tensor([[0.0000, 1.2840, 1.2840]])
    """
    if clip <= 0:
        raise ValueError(f"clip must be > 0, got {clip}")
    difference = torch.where(mask, log_probs.detach() - behaviour_log_probs.detach().to(log_probs), 0.0)
    if level == "sequence":
        difference = difference.sum(-1, keepdim=True).expand_as(difference)
    elif level != "token":
        raise ValueError(f"importance level must be one of {list(get_args(ImportanceLevel))}, got {level!r}")
    return torch.where(mask, bounded_exp(difference).clamp_max(clip), 0.0)


def importance_weights(
    episodes: EpisodeBatch, log_probs: Tensor, *, level: ImportanceLevel, clip: float
) -> Tensor:
    """Truncated weights of the policy with ``log_probs`` (B, L) over the one that generated: -> (B, L).

    Raises:
        ValueError: if the episodes have no recorded log-probs.
    """
    if episodes.log_probs is None:
        raise ValueError("importance_correction needs episodes with log_probs, got None")
    return truncated_importance_weights(
        log_probs, episodes.log_probs, episodes.action_mask, level=level, clip=clip
    )


def importance_weighted(
    advantages: Tensor,
    episodes: EpisodeBatch,
    log_probs: Tensor,
    *,
    level: Literal["none"] | ImportanceLevel,
    clip: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Advantages times their importance weights; level "none" leaves them as they are.

    The weights are >= 0, so they commute with the clips of the surrogate.

    Args:
        advantages: (B, L).
        episodes: B episodes with the log-probs that were recorded when they were generated.
        log_probs: (B, L) under the policy before the update.
        level: "none", "token" or "sequence".
        clip: the largest weight.

    Returns:
        (advantages (B, L), ``{"importance_weights": (B, L)}`` or for "none" ``{}``).

    Raises:
        ValueError: see ``importance_weights``.
    """
    if level == "none":
        return advantages, {}
    weights = importance_weights(episodes, log_probs, level=level, clip=clip)
    return advantages * weights, {"importance_weights": weights}
