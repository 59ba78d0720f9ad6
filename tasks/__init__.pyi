"""Where the public names live; they load on first use."""

from .letters import letter_tokenizer
from .make import make_env, make_vec_env
from .preferences import PreferencePairs, preference_pairs
from .random_walks import WalkGraph
from .registry import describe, make_task, register_task, task_names
from .snippets import RatedSnippets, load_snippets
from .task import Task, TaskData
from .walk_values import WalkValues, exact_optimality

__all__ = [
    "PreferencePairs",
    "RatedSnippets",
    "Task",
    "TaskData",
    "WalkGraph",
    "WalkValues",
    "describe",
    "exact_optimality",
    "letter_tokenizer",
    "load_snippets",
    "make_env",
    "make_task",
    "make_vec_env",
    "preference_pairs",
    "register_task",
    "task_names",
]
