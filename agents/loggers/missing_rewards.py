"""Hide the returns of evaluations without rewards: they are written to files, but not shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

RETURNS = ("return/mean", "return/std", "return/min", "return/max")
"""Return metrics of every evaluation, also of one without rewards."""
Value = TypeVar("Value")


def has_no_rewards(metrics: Mapping[str, object], prefix: str = "") -> bool:
    """Whether an evaluation had no rewards: its metrics have no reward terms and all its returns are 0.

    Args:
        metrics: name -> number.
        prefix: prefix of the names of the metrics, such as "eval/".

    >>> has_no_rewards({"return/mean": 0.0, "return/std": 0.0, "return/min": 0.0, "return/max": 0.0})
    True
    """
    names = [prefix + name for name in RETURNS]
    has_terms = any(name.startswith(f"{prefix}terms/") for name in metrics)
    return not has_terms and all(metrics.get(name) == 0 for name in names)


def without_empty_returns(
    metrics: Mapping[str, Value], prefixes: tuple[str, ...] = ("", "eval/")
) -> dict[str, Value]:
    """The metrics without the returns of evaluations that had no rewards."""
    hidden = {prefix + name for prefix in prefixes if has_no_rewards(metrics, prefix) for name in RETURNS}
    return {name: value for name, value in metrics.items() if name not in hidden}
