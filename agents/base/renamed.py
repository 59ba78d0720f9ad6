"""Old names of methods that users' agents define or call: each works for one more version, with a warning."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from textenv.utils.deprecation import warn_renamed

RENAMED: Mapping[str, str] = {
    "step": "optimizer_step",
    "describe": "rollout_metrics",
    "stop_early": "should_stop_early",
    "play": "generate",
    "pay": "compute_rewards",
}
"""Old name -> new name of methods of agents."""


def pair_names(cls: type, renamed: Mapping[str, str] = RENAMED) -> None:
    """Let old and new names of methods stand for each other in a class and its bases.

    A class that defines the old name gets the new one, so that the library finds the override. A class that
    defines the new name gets the old one, so that ``super().old(...)`` and calls of the old name work.

    Warns:
        DeprecationWarning: for each old name that a class defines; calls of an old name warn, too.
    """
    for each in reversed(cls.__mro__[:-1]):
        own = vars(each)
        for old, new in renamed.items():
            if old in own and new not in own:
                warn_renamed(f"{each.__name__}.{old}", new, stacklevel=5)
                setattr(each, new, own[old])
            elif new in own and old not in own:
                setattr(each, old, _alias(own[new], old, new))


def _alias(method: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        warn_renamed(old, new)
        return method(*args, **kwargs)

    return call


def accept_old_names(cls: type) -> None:
    """Let a new subclass of ``Agent`` define hooks by their old names.

    Warns:
        DeprecationWarning: for each old name that it defines.
    """
    pair_names(cls)
    if "run_loop" in vars(cls):
        new = "train_loop, without open_loggers, and end each iteration with end_iteration(metrics)"
        warn_renamed(f"{cls.__name__}.run_loop", new, stacklevel=4)
    if own := sorted({"state_values", "state_tensors", "load_state"} & vars(cls).keys()):
        warn_renamed(f"{cls.__name__}.{own[0]}", "training_state and load_training_state", stacklevel=4)


def add_old_names(agent: type) -> None:
    """Add the old names of hooks to the class ``Agent``."""
    pair_names(agent)
    for function in (run_loop, finish, state_values, state_tensors, load_state):
        setattr(agent, function.__name__, function)


def has_old_loop(agent: Any) -> bool:
    """Whether the agent's class defines ``run_loop``, which opens the loggers itself."""
    return type(agent).run_loop is not run_loop


def call_old_loop(agent: Any) -> None:
    """Train by the ``run_loop`` that the agent's class defines."""
    agent.run_loop()


def state_values(agent: Any) -> dict[str, Any]:
    """Deprecated: ``training_state().values``. Further JSON values that a resumed run needs."""
    return {}


def state_tensors(agent: Any) -> dict[str, Tensor]:
    """Deprecated: ``training_state().tensors``. Further tensors that a resumed run needs."""
    return {}


def load_state(agent: Any, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Deprecated: ``load_training_state``. Restores what ``state_values`` and ``state_tensors`` gave."""


def run_loop(agent: Any) -> None:
    """Deprecated: ``train_loop``."""
    warn_renamed("run_loop", "train_loop")
    agent.stopped = False
    with agent.open_loggers(agent.planned_iterations()) as agent.loggers:
        agent.train_loop()


def finish(agent: Any, row: Mapping[str, float], loggers: Any, *, last: bool) -> bool:
    """Deprecated: ``end_iteration``. Returns whether a callback ended the run."""
    warn_renamed("finish", "end_iteration(metrics)")
    agent.loggers = loggers
    agent.end_iteration(row, last=last)
    return bool(agent.stopped)
