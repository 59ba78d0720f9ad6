"""Numbers per turn of the policy: sums, discounts, and the turn of each token.

``mask`` (B, L) bool marks the action tokens; the tokens between two turns are a partner's reply. Shape
letters: B episodes, L tokens, K the largest number of turns in an episode.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textenv.episodes.turns import turn_ends, turn_starts


def turn_numbers(mask: Tensor) -> Tensor:
    """At an action token the number of its turn, counted from 0; 0 elsewhere: (B, L) bool -> (B, L) int64."""
    return torch.where(mask, turn_starts(mask).cumsum(-1) - 1, 0)


def step_discounts(
    mask: Tensor, gamma: float, discount: str, dtype: torch.dtype = torch.float64
) -> float | Tensor:
    """Discount from each action token to the next: gamma per token, or gamma between turns and 1 inside.

    Args:
        mask: (B, L) bool, action tokens.
        gamma: discount per action token or per turn.
        discount: "token" or "turn". With "turn" also the step after the last action is one between turns.
        dtype: of the tensor.

    Returns:
        gamma, or with "turn" a (B, L) tensor.

    Raises:
        ValueError: if ``discount`` is neither.

    Example:
        >>> step_discounts(torch.tensor([[False, True, True, False, True]]), 0.5, "turn").tolist()
        [[1.0, 1.0, 0.5, 1.0, 0.5]]
    """
    if discount == "token":
        return gamma
    if discount != "turn":
        raise ValueError(f"discount must be 'token' or 'turn', got {discount!r}")
    return torch.ones(mask.shape, dtype=dtype, device=mask.device).masked_fill(turn_ends(mask), gamma)


def turn_sums(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of the values of each turn: (B, L) -> (B, K), 0 where an episode has fewer turns.

    Example:
        >>> mask = torch.tensor([[False, True, True, False, True]])
        >>> turn_sums(torch.tensor([[9.0, 1.0, 2.0, 9.0, 4.0]]), mask)
        tensor([[3., 4.]])
    """
    numbers = turn_numbers(mask)
    sums = values.new_zeros(len(mask), int(numbers.max()) + 1 if numbers.numel() else 1)
    return sums.scatter_add(1, numbers, torch.where(mask, values, 0.0))


def at_turns(per_turn: Tensor, mask: Tensor) -> Tensor:
    """The number of its turn at each action token, 0 elsewhere: (B, K), (B, L) bool -> (B, L)."""
    return torch.where(mask, per_turn.gather(1, turn_numbers(mask)), 0.0)
