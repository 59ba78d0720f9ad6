"""Checks of arguments; errors name the field, the expected and the actual value."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textenv.utils.names import listed, shown

_FLOAT32_MAX = float(np.finfo(np.float32).max)
MAX_SEED = 2**63 - 1
"""The largest seed: the noise keys are functions of an int64."""


def is_integer(value: Any) -> bool:
    """Whether this is an integer of Python or numpy; a bool is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_at_least(name: str, value: Any, low: int) -> None:
    """Check for an integer >= ``low``.

    >>> check_at_least("num_envs", 0, 1)
    Traceback (most recent call last):
    ...
    ValueError: num_envs must be >= 1, got 0
    """
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if value < low:
        raise ValueError(f"{name} must be >= {low}, got {shown(int(value))}")


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Check for a finite number in [``low``, ``high``] within the range of float32; a bool is not a number.

    >>> check_number("top_p", True)
    Traceback (most recent call last):
    ...
    TypeError: top_p must be a number, got True
    >>> check_number("kl: coef", -1.0, 0)
    Traceback (most recent call last):
    ...
    ValueError: kl: coef must be a finite number >= 0, got -1.0
    """
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_real:
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not -_FLOAT32_MAX <= value <= _FLOAT32_MAX or not low <= value <= high:
        bound = "" if low == -math.inf else f" >= {low}"
        bound += "" if high == math.inf else f"{' and' if bound else ''} <= {high}"
        raise ValueError(f"{name} must be a finite number{bound}, got {shown(value)}")


def check_positive(name: str, value: Any, hint: str = "") -> None:
    """Check for a finite number > 0.

    >>> check_positive("temperature", 0.0, "; use greedy=True")
    Traceback (most recent call last):
    ...
    ValueError: temperature must be > 0, got 0.0; use greedy=True
    """
    check_number(name, value)
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {shown(value)}{hint}")


def check_dict(name: str, value: Any) -> None:
    """Check for a dict with strings as keys, or None.

    >>> check_dict("env_kwargs", [1])
    Traceback (most recent call last):
    ...
    TypeError: env_kwargs must be a dict of arguments by name, got [1]
    """
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise TypeError(f"{name} must be a dict of arguments by name, got {shown(value)}")


def check_flag(name: str, value: Any) -> None:
    """Check for True or False, because every object has a truth value.

    >>> check_flag("shuffle", "no")
    Traceback (most recent call last):
    ...
    TypeError: shuffle must be True or False, got 'no'
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def check_seed(name: str, value: Any, *, largest: int = MAX_SEED) -> int:
    """A seed as an int.

    >>> check_seed("seed", 2**63)
    Traceback (most recent call last):
    ...
    ValueError: seed must be <= 9223372036854775807, got 9223372036854775808
    """
    check_at_least(name, value, 0)
    if value > largest:
        raise ValueError(f"{name} must be <= {largest}, got {shown(int(value))}")
    return int(value)


def row_seeds(seed: Any, rows: int) -> list[int | None]:
    """One seed per row: ``seed + i`` of an integer, or the entries of a list; None means no seed.

    Raises:
        TypeError: if a seed is not an integer.
        ValueError: if a seed does not lie in [0, 2**63), or a list does not have ``rows`` entries.

    >>> row_seeds(5, 2), row_seeds([1, None], 2)
    ([5, 6], [1, None])
    """
    if seed is None:
        return [None] * rows
    if is_integer(seed):
        first = check_seed("seed", seed, largest=MAX_SEED - (rows - 1))
        return list(range(first, first + rows))
    if not isinstance(seed, Sequence | np.ndarray) or isinstance(seed, str | bytes) or np.ndim(seed) == 0:
        raise TypeError(f"seed must be an integer or a list of {rows} seeds, got {shown(seed)}")
    if len(seed) != rows:
        raise ValueError(f"seed must be an integer or a list of {rows} seeds, got {len(seed)}")
    return [None if one is None else check_seed(f"seed[{i}]", one) for i, one in enumerate(seed)]


def check_token_ids(name: str, ids: Any, vocab_size: int) -> tuple[int, ...]:
    """Token ids as a tuple of ints.

    Args:
        name: of the argument.
        ids: a list of integers in [0, ``vocab_size``).
        vocab_size: V.

    Raises:
        TypeError: if it is not a list of integers.
        ValueError: if an id is out of range.
    """
    if isinstance(ids, Tensor):
        ids = ids.tolist()
    if isinstance(ids, str | bytes) or not isinstance(ids, Collection):
        raise TypeError(f"{name} must be a list of token ids, got {shown(ids)}")
    for i, one in enumerate(ids):
        if not is_integer(one):
            raise TypeError(f"{name}[{i}] must be an integer, got {shown(one)}")
    bad = [int(one) for one in ids if not 0 <= one < vocab_size]
    if bad:
        raise ValueError(f"{name} must lie in [0, {vocab_size}), got {shown(bad)}")
    return tuple(int(one) for one in ids)


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Refuse a value that is not among ``choices``.

    >>> check_choice("arrays", "jax", ("torch", "numpy"))
    Traceback (most recent call last):
    ...
    ValueError: arrays must be one of 'torch', 'numpy', got 'jax'
    """
    # ``value in choices`` accepts True for 1, and fails for values without a hash or a truth value.
    if not any(value is choice or _is_same(value, choice) for choice in choices):
        raise ValueError(f"{name} must be one of {listed(map(repr, choices))}, got {shown(value)}")


def check_device(name: str, device: Any) -> torch.device:
    """A device of this machine that can store values.

    Raises:
        ValueError: if there is no such device; the error lists those that there are.

    >>> check_device("device", "cpu")
    device(type='cpu')
    """
    reason = ""
    try:
        found = torch.device(device)
        reason = "it can't be used"
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        if reason:  # the name is well formed, so torch's message about the device is useful
            reason = f": {str(error).splitlines()[0]}" if str(error) else f": {type(error).__name__}"
        known = ", ".join(repr(each) for each in devices())
        raise ValueError(
            f"{name} must be a device that this machine has ({known}), got {shown(device)}{reason}"
        ) from error
    return found


def devices() -> list[str]:
    """Names of the devices that this machine has for torch.

    >>> devices()[0]
    'cpu'
    """
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def _is_same(value: Any, choice: Any) -> bool:
    if isinstance(value, str) or is_integer(value):
        return is_integer(value) == is_integer(choice) and bool(value == choice)
    return False


def as_token_ids(actions: Any, num_envs: int, device: torch.device) -> Tensor:
    """Actions of any array type as (N,) int64 on ``device``.

    Raises:
        TypeError: if they are not integers.
        ValueError: if their shape is not (N,), or one is outside int64.
    """
    if not isinstance(actions, Tensor):
        try:
            array = np.asarray(actions)
        except ValueError as error:  # lists of unequal lengths
            raise ValueError(f"actions must have shape ({num_envs},), got {shown(actions)}") from error
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"actions must be integers (token ids), got {array.dtype}: {shown(actions)}")
        if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"actions must be token ids, got {shown(int(array.max()))}")
        actions = torch.tensor(array.astype(np.int64, copy=False))
    if actions.dtype.is_floating_point or actions.dtype.is_complex or actions.dtype == torch.bool:
        raise TypeError(f"actions must be integers (token ids), got {actions.dtype}")
    if tuple(actions.shape) != (num_envs,):
        raise ValueError(f"actions must have shape ({num_envs},), got {tuple(actions.shape)}")
    return actions.to(device, torch.int64)


def as_rewards(values: Any, count: int) -> Tensor:
    """One number per episode as (count,) float32.

    Raises:
        TypeError: if they are not numbers; a bool is not.
        ValueError: if the shape differs, or a number is not finite in float32.
    """
    try:
        rewards = torch.as_tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"rewards must be a list of numbers, got {shown(values)}") from error
    if tuple(rewards.shape) != (count,):
        raise ValueError(f"rewards must have shape ({count},), got {tuple(rewards.shape)}")
    flags = getattr(values, "dtype", None) in (torch.bool, np.dtype(bool))
    for row, value in enumerate(() if isinstance(values, Tensor | np.ndarray) and not flags else values):
        if flags or isinstance(value, bool | np.bool_):
            raise TypeError(f"rewards[{row}] must be a number, got {bool(value)}")
    for row in (~rewards.isfinite()).nonzero().flatten().tolist():
        raise ValueError(f"rewards[{row}] must be a finite number that float32 can hold, got {values[row]}")
    return rewards


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
