"""Losses of Implicit Language Q-Learning as pure functions of tensors (ILQL, Snell et al. 2022, section 4).

Tensors are (B, L), aligned with ``input_ids``. An entry at action token t belongs to the state BEFORE token t
(the hidden state that predicts it) and, for Q, to the action token t. Denominators work as in
``losses.policy_gradient``. Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from textenv.agents.losses.advantages import next_action_values
from textenv.agents.losses.masked import masked_mean, masked_squared_error, zero_unmasked
from textenv.agents.losses.policy_gradient import Stats
from textenv.agents.losses.turns import step_discounts
from textenv.modeling.bounded_exp import bounded_exp


def ilql_targets(
    rewards: Tensor, state_values: Tensor, mask: Tensor, *, gamma: float = 0.99, discount: str = "token"
) -> Tensor:
    """One-step targets y_t = r_t + gamma V(s_next), V after the last action = 0: (B, L) -> (B, L), detached.

    s_next is the state of the next action token; other tokens in between are skipped. With
    ``discount="turn"`` gamma is 1 between two tokens of a turn.
    """
    factor = step_discounts(mask, gamma, discount, state_values.dtype)
    return zero_unmasked(rewards + factor * next_action_values(state_values.detach(), mask), mask)


def ilql_q_loss(
    q_values: Sequence[Tensor], targets: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Sum over Q heads of the mean of (Q_i(s, a) - y)^2: each (B, L) -> scalar."""
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
        target_q: (B, L) Qbar, the minimum of the target heads at the action.
        mask: (B, L) bool, action tokens.
        expectile: tau in (0, 1).
        denominator: action tokens of the whole optimizer step.

    Raises:
        ValueError: if ``expectile`` is not in (0, 1).
    """
    if not 0 < expectile < 1:
        raise ValueError(f"expectile must lie in (0, 1), got {expectile}")
    difference = zero_unmasked(target_q.detach(), mask) - zero_unmasked(state_values, mask)
    weight = torch.where(difference < 0, 1.0 - expectile, expectile)
    return masked_mean(weight * difference.square(), mask, denominator)


def ilql_cql_loss(
    q_log_probs: Sequence[Tensor], mask: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Conservative term (CQL): sum over Q heads of the mean cross-entropy of softmax(Q_i) with the action.

    Kumar et al. 2020, "Conservative Q-learning for offline reinforcement learning", eq. 4.

    Args:
        q_log_probs: per head (B, L): Q_i(s, a) - logsumexp over v of Q_i(s, v).
        mask: (B, L) bool, action tokens.
        denominator: action tokens of the whole optimizer step.
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
    """Advantage-weighted cloning: mean of exp(beta (Qbar - V)) NLL (AWAC, Nair et al. 2020).

    The weights get no gradient. Above 20 the exponential is replaced by its tangent (``bounded_exp``).

    Args:
        log_probs: (B, L) of the language model, with gradient.
        target_q: (B, L) Qbar.
        state_values: (B, L) V.
        mask: (B, L) bool, action tokens.
        beta: inverse temperature; 0 is behaviour cloning.
        max_weight: largest weight of a token; None does not clip.
        denominator: action tokens of the whole optimizer step.

    Returns:
        (scalar loss, statistics: ``weight`` the mean of the weights).
    """
    advantages = zero_unmasked(target_q.detach(), mask) - zero_unmasked(state_values.detach(), mask)
    weights = bounded_exp(beta * advantages)
    if max_weight is not None:
        weights = weights.clamp_max(max_weight)
    return -masked_mean(weights * zero_unmasked(log_probs, mask), mask, denominator), {
        "weight": masked_mean(weights, mask, denominator)
    }
