"""Checks that several rewards share: each error names the field, what was expected and what came."""

from __future__ import annotations

import math
import re
from typing import Any

from textenv.episodes import EpisodeBatch
from textenv.scoring import RewardError


def check_number(name: str, value: Any, low: float = -math.inf) -> None:
    """Refuse anything but a finite number >= ``low``.

    >>> check_number("kl: coef", -1.0, 0)
    Traceback (most recent call last):
    ...
    ValueError: kl: coef must be a finite number >= 0, got -1.0
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < low:
        bound = "" if low == -math.inf else f" >= {low}"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")


def check_pattern(name: str, pattern: Any) -> None:
    """Refuse anything but a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{name} must be a regular expression, got {pattern!r}: {error}") from error


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
