"""Printing of metrics, and the check of a model's path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from textenv.agents.cli.errors import UsageError
from textenv.modeling.pretrained import is_path


def check_there(model: str | None) -> None:
    """Refuse a path that does not exist, before the hub is asked for it."""
    if model is not None and is_path(model) and not Path(model).exists():
        raise UsageError(f"{model}: no such folder")


def print_numbers(row: Mapping[str, float], title: str) -> None:
    """Print metrics as a table, without times; returns are left out if there are no rewards."""
    import rich

    from textenv.agents.loggers.missing_rewards import without_empty_returns
    from textenv.utils.terminal import text_table

    numbers = without_empty_returns(row).items()
    shown = [[name, value] for name, value in numbers if not name.startswith(("time/", "throughput/"))]
    rich.print(text_table([title, "value"], shown))
