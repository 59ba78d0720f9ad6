"""Tasks: prompts, tokenizer, rewards and limits that make an environment; imported as ``textenv.tasks``.

Names load on first use, so importing this package is light (no torch).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "textenv.tasks":
    raise ImportError(
        "this folder is imported as textenv.tasks; "
        "put your own tasks.py elsewhere on sys.path or import textenv.tasks"
    )

if TYPE_CHECKING:
    from textenv.tasks.letters import letter_tokenizer as letter_tokenizer
    from textenv.tasks.make import make_env as make_env
    from textenv.tasks.make import make_vec_env as make_vec_env
    from textenv.tasks.preferences import PreferencePairs as PreferencePairs
    from textenv.tasks.preferences import preference_pairs as preference_pairs
    from textenv.tasks.random_walks import WalkGraph as WalkGraph
    from textenv.tasks.registry import describe as describe
    from textenv.tasks.registry import make_task as make_task
    from textenv.tasks.registry import register_task as register_task
    from textenv.tasks.registry import task_names as task_names
    from textenv.tasks.snippets import RatedSnippets as RatedSnippets
    from textenv.tasks.snippets import load_snippets as load_snippets
    from textenv.tasks.task import Task as Task
    from textenv.tasks.task import TaskData as TaskData
    from textenv.tasks.walk_values import WalkValues as WalkValues
    from textenv.tasks.walk_values import exact_optimality as exact_optimality

_HOME = {
    "letter_tokenizer": "letters",
    "make_env": "make",
    "make_vec_env": "make",
    "PreferencePairs": "preferences",
    "preference_pairs": "preferences",
    "WalkGraph": "random_walks",
    "describe": "registry",
    "make_task": "registry",
    "register_task": "registry",
    "task_names": "registry",
    "RatedSnippets": "snippets",
    "load_snippets": "snippets",
    "Task": "task",
    "TaskData": "task",
    "WalkValues": "walk_values",
    "exact_optimality": "walk_values",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'textenv.tasks' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"textenv.tasks.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
