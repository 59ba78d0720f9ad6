"""Checks that several rewards share; errors name the field, the expected and the actual value."""

from __future__ import annotations

from typing import Any

from textenv.episodes.batch import EpisodeBatch
from textenv.scoring import RewardError


def check_text(name: str, value: Any) -> None:
    """Raise an error unless the value is a non-empty string."""
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
