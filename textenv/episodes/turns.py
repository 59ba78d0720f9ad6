"""Where the turns of the policy begin and end: the runs of action tokens of each episode.

Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def turn_starts(mask: Tensor) -> Tensor:
    """The first action token of each turn: (B, L) bool -> (B, L) bool.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[False, True, True, False, True]])
        >>> turn_starts(mask).tolist(), turn_ends(mask).tolist()
        ([[False, True, False, False, True]], [[False, False, True, False, True]])
    """
    return mask & ~pad(mask[:, :-1], (1, 0))


def turn_ends(mask: Tensor) -> Tensor:
    """The last action token of each turn: (B, L) bool -> (B, L) bool."""
    return mask & ~pad(mask[:, 1:], (0, 1))
