"""Checks that several rewards share: each error names the field, what was expected and what came."""

from __future__ import annotations

import math
import numbers
from typing import Any

from textenv.episodes import EpisodeBatch
from textenv.scoring import FLOAT32_MAX, RewardError


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuse anything but a number in [``low``, ``high``] that float32 can hold; a bool is no number.

    >>> check_number("kl: coef", -1.0, 0)
    Traceback (most recent call last):
    ...
    ValueError: kl: coef must be a finite number >= 0, got -1.0
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not abs(value) <= FLOAT32_MAX or not low <= value <= high:
        bound = "" if low == -math.inf else f" >= {low}"
        bound += "" if high == math.inf else f"{' and' if bound else ''} <= {high}"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")


def check_above(name: str, value: Any, low: float) -> None:
    """Refuse anything but a finite number > ``low``."""
    check_number(name, value)
    if not value > low:
        raise ValueError(f"{name} must be > {low}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Refuse anything but True or False.

    >>> check_flag("regex: ignore_case", "no")
    Traceback (most recent call last):
    ...
    ValueError: regex: ignore_case must be true or false, got 'no'
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def check_text(name: str, value: Any) -> None:
    """Refuse anything but a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a text that is not empty, got {value!r}")


def check_column(env: Any, name: str, reward: str) -> None:
    """Raise ValueError if the environment's prompts lack a column."""
    if name not in env.prompts.columns:
        offered = ", ".join(env.prompts.columns) or "none"
        raise ValueError(f"reward {reward!r} needs the column {name!r}; the task offers {offered}")


def column(episodes: EpisodeBatch, name: str, reward: str) -> list[Any]:
    """The B values of a task column.

    Raises:
        RewardError: if the episodes lack it.
    """
    if name not in episodes.extras:
        offered = ", ".join(episodes.extras) or "none"
        raise RewardError(f"reward {reward!r} needs the column {name!r}; the episodes have {offered}")
    return episodes.extras[name]
