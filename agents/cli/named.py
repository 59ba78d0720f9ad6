"""The task and settings that a command line and its files name, read before the parser is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textenv.agents.cli.parser import config_files
from textenv.agents.cli.values import option_values


def task_of(argv: Sequence[str]) -> str | None:
    """The task that a command line or its files name; None if it is unknown, which training refuses."""
    named = [value for name, value in option_values(argv) if name == "task"]
    name = named[-1] if named else in_files(argv, "task")
    if not isinstance(name, str):
        return None
    from textenv.tasks.registry import task_names

    return name if name in task_names() else None


def named_settings(argv: Sequence[str]) -> dict[str, Any]:
    """Names of the settings on a command line and in its files; the values are not parsed."""
    found = in_files(argv, "settings")
    named = [name.partition(".") for name, _ in option_values(argv)]
    said = {inner: True for group, _, inner in named if group == "settings"}
    return {**(found if isinstance(found, dict) else {}), **said}


def in_files(argv: Sequence[str], key: str) -> Any:
    """Value of a key in the configuration files; errors in files are reported when they are parsed."""
    import yaml

    name = None
    for path in config_files(argv):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, ValueError, RecursionError):
            continue
        name = found.get(key, name) if isinstance(found, dict) else name
    return name
