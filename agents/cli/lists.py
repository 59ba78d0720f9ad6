"""The commands ``tasks``, ``agents`` and ``rewards``: list all, or show the documentation of one."""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Sequence

from textenv.agents.base.registry import list_agents
from textenv.agents.cli.errors import UsageError
from textenv.rewards.catalog import BUILTIN as reward_lines
from textenv.tasks.catalog import BUILTIN as task_lines
from textenv.tasks.plugins import installed_tasks
from textenv.utils.names import nearest


def run(what: str, argv: Sequence[str]) -> int:
    """List, or show the documentation of the one that ``argv`` names."""
    if what == "tasks" and argv and argv[0] == "new":
        return _new_task(argv[1:])
    lines = _lines(what)
    if "--help" in argv or "-h" in argv:
        print(f"usage: textenv {what} [NAME]\n\nList the {what}, or show the documentation of one.")
        if what == "tasks":
            print("\ntextenv tasks new NAME [FOLDER] writes a package with a task, to begin with.")
        return 0
    if len(argv) > 1 or (argv and argv[0].startswith("-")):
        raise UsageError(f"textenv {what} takes at most a name, got {' '.join(argv)}")
    if not argv:
        _print_list(lines)
        return 0
    name = argv[0]
    if name not in lines:
        raise UsageError(f"unknown {what.removesuffix('s')} {name!r}; {nearest(name, lines)}")
    print(_documentation(what, name))
    return 0


def _lines(what: str) -> dict[str, str]:
    """Name -> one line. The registries of tasks and rewards need torch, so they are not loaded for this."""
    if what == "agents":
        return list_agents()
    builtin = task_lines if what == "tasks" else reward_lines
    if what == "tasks" and installed_tasks():
        from textenv.tasks.registry import describe

        return describe()
    registry = sys.modules.get(f"textenv.{what}.registry")  # loaded if the user's code registered something
    return builtin | (registry.describe() if registry is not None else {})


def _new_task(argv: Sequence[str]) -> int:
    """Write the package of a new task."""
    if "--help" in argv or "-h" in argv:
        print("usage: textenv tasks new NAME [FOLDER]\n\nWrite a package with a task, to begin with.")
        return 0
    if not 1 <= len(argv) <= 2 or any(token.startswith("-") for token in argv):
        raise UsageError("textenv tasks new takes the task's name, and optionally a folder")
    from textenv.tasks.scaffold import new_task

    folder = new_task(argv[0], *argv[1:])
    print(f"package: {folder}\nnext: cd {folder}; pip install -e .; textenv check {argv[0]}")
    return 0


def _print_list(lines: dict[str, str]) -> None:
    width = max(map(len, lines)) + 2
    columns = max(60, shutil.get_terminal_size((100, 24)).columns)
    for name, text in sorted(lines.items()):
        print(
            textwrap.fill(
                text.replace("``", ""),
                width=columns,
                initial_indent=f"{name:<{width}}",
                subsequent_indent=" " * width,
                break_on_hyphens=False,
            )
            if text
            else name
        )


def _documentation(what: str, name: str) -> str:
    if what == "tasks":
        from textenv.tasks.registry import make_task

        text = inspect.getdoc(make_task(name).builder)
    elif what == "rewards":
        from textenv.rewards.registry import REWARDS, reward_names

        reward_names()
        text = inspect.getdoc(REWARDS[name])
    else:
        from textenv.agents.base.registry import get_agent

        text = inspect.getdoc(get_agent(name))
        text = f"{text}\n\nIts settings: textenv train {name} --help"
    return f"{name}\n{'-' * len(name)}\n{text}"
