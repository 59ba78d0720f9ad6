"""Tasks of installed packages: the entry points of the group ``textenv.tasks``.

A package names a task in its ``pyproject.toml``, and the module or builder that makes it:

    [project.entry-points."textenv.tasks"]
    my-task = "my_package.my_task"           # a module that registers the task "my-task"
    other = "my_package.other:build"         # or a builder
"""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "textenv.tasks"


class TaskLoadError(ImportError):
    """A task of an installed package cannot be loaded."""


def installed_tasks() -> dict[str, EntryPoint]:
    """Name -> entry point of every task of an installed package, none of which is loaded."""
    return _found(tuple(sys.path))


@lru_cache(maxsize=8)
def _found(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Reading the metadata of all packages takes a while, so it is kept until ``sys.path`` changes."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def package_of(point: EntryPoint) -> str:
    """The package of an entry point with its version, for lists and errors."""
    return "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
