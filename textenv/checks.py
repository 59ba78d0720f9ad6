"""Checks of what comes from outside: each error names the field, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_at_least(name: str, value: Any, low: int) -> None:
    """Refuse anything but an integer >= ``low``.

    >>> check_at_least("num_envs", 0, 1)
    Traceback (most recent call last):
    ...
    ValueError: num_envs must be >= 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be >= {low}, got {value}")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse a value that is not among ``choices``.

    >>> check_choice("arrays", "jax", ("torch", "numpy"))
    Traceback (most recent call last):
    ...
    ValueError: arrays must be one of 'torch', 'numpy', got 'jax'
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def as_token_ids(actions: Any, num_envs: int, device: torch.device) -> Tensor:
    """Actions of any array type as (N,) int64 on ``device``.

    Raises:
        TypeError: if they are not integers.
        ValueError: if their shape is not (N,).
    """
    if not isinstance(actions, Tensor):
        array = np.asarray(actions)
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"actions must be integers (token ids), got {array.dtype}")
        actions = torch.tensor(array.astype(np.int64, copy=False))
    if actions.dtype.is_floating_point or actions.dtype.is_complex or actions.dtype == torch.bool:
        raise TypeError(f"actions must be integers (token ids), got {actions.dtype}")
    if tuple(actions.shape) != (num_envs,):
        raise ValueError(f"actions must have shape ({num_envs},), got {tuple(actions.shape)}")
    return actions.to(device, torch.int64)


def as_rewards(values: Any, count: int) -> Tensor:
    """One number for each of ``count`` episodes as (count,) float32.

    Raises:
        ValueError: if the shape differs, or a finite number is too large for float32.
    """
    paid = torch.as_tensor(values, dtype=torch.float32)
    if tuple(paid.shape) != (count,):
        raise ValueError(f"rewards must have shape ({count},), got {tuple(paid.shape)}")
    for row in paid.isinf().nonzero().flatten().tolist():
        if not math.isinf(values[row]):
            raise ValueError(f"rewards[{row}] must be a number that float32 can hold, got {values[row]}")
    return paid


def as_row_mask(mask: Any, num_envs: int) -> np.ndarray | None:
    """``options["reset_mask"]`` of any array type as (N,) bool numpy; None stays None.

    Raises:
        ValueError: if it is not boolean or its shape is not (N,).
    """
    if mask is None:
        return None
    array = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.shape != (num_envs,) or array.dtype != np.bool_:
        raise ValueError(
            f"options['reset_mask'] must be a boolean array of shape ({num_envs},), "
            f"got {array.dtype} of shape {array.shape}"
        )
    return array
