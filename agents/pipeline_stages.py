"""What a stage of the pipeline was made from, in its folder: whether it can be reused, and what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textenv.atomic import atomic_file

STAGE_FILE = "stage.json"


class StageError(RuntimeError):
    """A stage's folder can't be used."""


def identity(value: Any) -> Any:
    """What stands for an input in a stage's hash: of a file also its size and time of change."""
    if isinstance(value, str) and Path(value).is_file():
        facts = Path(value).stat()
        return [value, facts.st_size, facts.st_mtime_ns]
    return value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Settings that differ, by name and value."""
    mine, theirs = one["settings"], other["settings"]
    names = sorted({*mine, *theirs})
    listed = [
        f"{name}: {mine.get(name)!r}, now {theirs.get(name)!r}"
        for name in names
        if mine.get(name) != theirs.get(name)
    ]
    listed += [name for name in ("task", "inputs", "after") if one[name] != other[name]]
    return listed


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; the file appears whole."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
