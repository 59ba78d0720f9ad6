"""Registry of tasks by name, for built-in and custom tasks."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from typing import Any, TypeVar, overload

from textenv.tasks.catalog import BUILTIN, MODULES
from textenv.tasks.plugins import TaskLoadError, installed_tasks, package_of
from textenv.tasks.task import Task, TaskData
from textenv.utils.names import check_name, nearest, shown

_TASKS: dict[str, Task] = {}

AgentSettings = Mapping[str, Mapping[str, Any]]
"""Agent -> its settings and start on a task, see ``Task.settings``."""
Builder = TypeVar("Builder", bound=Callable[..., TaskData])


@overload
def register_task(
    name: str, /, *, description: str | None = None, settings: AgentSettings | None = None
) -> Callable[[Builder], Builder]: ...
@overload
def register_task(
    name: str,
    builder: Builder,
    /,
    *,
    description: str | None = None,
    settings: AgentSettings | None = None,
) -> Builder: ...


def register_task(
    name: str,
    builder: Any = None,
    /,
    *,
    description: str | None = None,
    settings: AgentSettings | None = None,
) -> Any:
    """Register a task, as a decorator or as a call: ``register_task("mine", build)``.

    Args:
        name: of the task in ``make_task``.
        builder: ``builder(split="train", **task_kwargs) -> TaskData``.
        description: one line; by default the first line of the builder's docstring.
        settings: agent -> the settings and start with which it learns this task, see ``Task.settings``.

    Raises:
        ValueError: if the name is malformed, or taken by another builder, or ``settings`` has an unknown key.
        TypeError: if the builder is not callable, or ``settings`` is no mapping of mappings.

    Example:
        >>> from textenv.tasks.letters import letter_tokenizer
        >>> @register_task("echo-example")
        ... def build(split="train", letter="a"):
        ...     '''Say a letter.'''
        ...     return TaskData(
        ...         prompts=[letter], tokenizer=letter_tokenizer("ab"), rewards=[], max_new_tokens=1
        ...     )
        >>> make_task("echo-example").build(letter="b").prompts
        ['b']
    """
    check_name("task", name)
    if settings is not None and not (
        isinstance(settings, Mapping) and all(isinstance(own, Mapping) for own in settings.values())
    ):
        raise TypeError(f"settings must be a dict of agent name to dict, got {shown(settings)}")

    def register(function: Builder) -> Builder:
        if not callable(function):
            raise TypeError(f"task {name!r} needs a callable builder(split=..., **kwargs), got {function!r}")
        if not _origin(function)[0].startswith("textenv.tasks."):
            _load_built_in()  # their names are taken, whoever comes first
        taken = _TASKS.get(name)
        if taken is not None and _origin(taken.builder) != _origin(function):
            raise ValueError(f"task {name!r} is already registered by {'.'.join(_origin(taken.builder))}")
        line = description if description is not None else BUILTIN.get(name) or _first_line(function)
        task = Task(name=name, description=line, builder=function, agent_settings=settings or {})
        for agent in task.agent_settings:
            task.settings(agent)  # which checks the keys
        _TASKS[name] = task
        return function

    return register if builder is None else register(builder)


def make_task(name: str | Task) -> Task:
    """Find a task by name; a ``Task`` passes through.

    Raises:
        ValueError: if no task has this name; the message lists the known ones, nearest first.
        TaskLoadError: if the task of an installed package cannot be loaded.

    Example:
        >>> make_task("random-walk")
        Traceback (most recent call last):
        ...
        ValueError: unknown task 'random-walk'; known: random-walks, ...
    """
    if isinstance(name, Task):
        return name
    _load_built_in()
    if isinstance(name, str) and name not in _TASKS and name in installed_tasks():
        _load_installed(installed_tasks()[name])
    if not isinstance(name, str) or name not in _TASKS:
        raise ValueError(f"unknown task {shown(name)}; {nearest(name, task_names())}")
    return _TASKS[name]


def task_names() -> list[str]:
    """Names of all tasks, those of installed packages included, sorted."""
    _load_built_in()
    return sorted({*_TASKS, *installed_tasks()})


def describe() -> dict[str, str]:
    """Name -> one line about it, for every task; of one that cannot be loaded, the reason."""
    found = {}
    for name in task_names():
        try:
            found[name] = make_task(name).description
        except TaskLoadError as error:
            found[name] = f"cannot be loaded: {' '.join(str(error).partition(': ')[2].split())}"
    return found


def _load_installed(point: EntryPoint) -> None:
    """Load a task of an installed package.

    Raises:
        TaskLoadError: if loading raises an exception, or gives no task.
    """
    where = f"task {point.name!r} of {package_of(point)} cannot be loaded"
    try:
        target = point.load()
        if callable(target) and point.name not in _TASKS:
            register_task(point.name, target)
    except Exception as error:
        raise TaskLoadError(f"{where}: {type(error).__name__}: {error}") from error
    if point.name not in _TASKS:
        what = (
            "registers no task of this name"
            if inspect.ismodule(target)
            else "is neither a module nor a builder"
        )
        raise TaskLoadError(f"{where}: {point.value} {what}")


def _load_built_in() -> None:
    for module in MODULES:
        importlib.import_module(f"textenv.tasks.{module}")


def _origin(function: Callable[..., Any]) -> tuple[str, str]:
    """Where a function was written: reloading a module or running a notebook cell again is no conflict."""
    return str(getattr(function, "__module__", "")), str(getattr(function, "__qualname__", repr(function)))


def _first_line(function: Callable[..., Any]) -> str:
    lines = (function.__doc__ or "").strip().splitlines()
    return lines[0] if lines else ""
