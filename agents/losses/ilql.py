"""Losses of Implicit Language Q-Learning (Snell et al. 2022, section 4) as pure functions of tensors.

Everything is (B, L), aligned with ``input_ids``: an entry at own token t is about the state BEFORE token t
(the hidden state that emits it) and, for Q, the action token t. Denominators work as in ``losses``.
Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from textenv.agents.losses.advantages import next_own_values
from textenv.agents.losses.policy_gradient import Stats, masked_mean, masked_squared_error, own
from textenv.modeling.bounded_exp import bounded_exp


def ilql_targets(rewards: Tensor, state_values: Tensor, mask: Tensor, *, gamma: float = 0.99) -> Tensor:
    """One-step targets y_t = r_t + gamma (not last) V(s_next), detached: (B, L) -> (B, L).

    The next state is the next OWN token's; tokens of others in between are skipped.
    """
    return own(rewards + gamma * next_own_values(state_values.detach(), mask), mask)


def ilql_q_loss(
    q_values: Sequence[Tensor], targets: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Sum over the Q heads of the mean of (Q_i(s, a) - y)^2: each (B, L) -> scalar."""
    return torch.stack([masked_squared_error(q, targets, mask, denominator) for q in q_values]).sum()


def ilql_value_loss(
    state_values: Tensor,
    target_q: Tensor,
    mask: Tensor,
    *,
    expectile: float = 0.7,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Expectile regression: mean of |tau - 1[Qbar < V]| (Qbar - V)^2 (Kostrikov et al. 2021, eq. 5).

    Args:
        state_values: (B, L) V, with gradient.
        target_q: (B, L) Qbar, the least of the target heads at the action taken.
        mask: (B, L) bool, own tokens.
        expectile: tau in (0, 1).
        denominator: own tokens in the whole optimizer step.

    Raises:
        ValueError: if ``expectile`` does not lie in (0, 1).
    """
    if not 0 < expectile < 1:
        raise ValueError(f"expectile must lie in (0, 1), got {expectile}")
    difference = own(target_q.detach(), mask) - own(state_values, mask)
    weight = torch.where(difference < 0, 1.0 - expectile, expectile)
    return masked_mean(weight * difference.square(), mask, denominator)


def ilql_cql_loss(
    q_log_probs: Sequence[Tensor], mask: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Conservative term: sum over Q heads of the mean cross-entropy of Q_i, read as logits, with the action.

    Args:
        q_log_probs: per head (B, L): Q_i(s, a) - logsumexp over v of Q_i(s, v).
        mask: (B, L) bool, own tokens.
        denominator: own tokens in the whole optimizer step.
    """
    return torch.stack([-masked_mean(log_prob, mask, denominator) for log_prob in q_log_probs]).sum()


def ilql_awac_loss(
    log_probs: Tensor,
    target_q: Tensor,
    state_values: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.0,
    max_weight: float | None = None,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, Stats]:
    """Advantage-weighted cloning: mean of exp(beta (Qbar - V)) NLL, weights detached (Nair et al. 2020).

    Above 20 the exponential goes on as its tangent (``bounded_exp``).

    Args:
        log_probs: (B, L) of the language model, with gradient.
        target_q: (B, L) Qbar.
        state_values: (B, L) V.
        mask: (B, L) bool, own tokens.
        beta: 0 is plain behaviour cloning.
        max_weight: cap on a token's weight; None does not cap.
        denominator: own tokens in the whole optimizer step.

    Returns:
        (scalar loss, statistics: ``weight`` the mean of the weights).
    """
    advantages = own(target_q.detach(), mask) - own(state_values.detach(), mask)
    weights = bounded_exp(beta * advantages)
    if max_weight is not None:
        weights = weights.clamp_max(max_weight)
    return -masked_mean(weights * own(log_probs, mask), mask, denominator), {
        "weight": masked_mean(weights, mask, denominator)
    }
