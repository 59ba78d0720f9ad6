"""Returns of evaluations where nothing is paid: numbers that are written to files, but not shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

RETURNS = ("return/mean", "return/std", "return/min", "return/max")
"""What an evaluation measures of returns, whether there are rewards or not."""
Value = TypeVar("Value")


def is_unpaid(metrics: Mapping[str, object], prefix: str = "") -> bool:
    """Whether the metrics of an evaluation are of an environment without rewards, as far as they can say.

    There are then no reward terms, and every episode returned 0.

    Args:
        metrics: name -> number.
        prefix: what the names of the evaluation's begin with, such as "eval/".

    >>> is_unpaid({"return/mean": 0.0, "return/std": 0.0, "return/min": 0.0, "return/max": 0.0})
    True
    """
    names = [prefix + name for name in RETURNS]
    paid = any(name.startswith(f"{prefix}terms/") for name in metrics)
    return not paid and all(metrics.get(name) == 0 for name in names)


def without_unpaid(
    metrics: Mapping[str, Value], prefixes: tuple[str, ...] = ("", "eval/")
) -> dict[str, Value]:
    """The metrics without the returns of evaluations in which nothing was paid."""
    hidden = {prefix + name for prefix in prefixes if is_unpaid(metrics, prefix) for name in RETURNS}
    return {name: value for name, value in metrics.items() if name not in hidden}
