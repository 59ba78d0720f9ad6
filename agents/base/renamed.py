"""Old names of methods that users' agents define or call: each works for one more version, with a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

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
                warnings.warn(
                    f"{each.__name__}.{old} is now called {new}: rename it, the next version ignores {old}",
                    DeprecationWarning,
                    stacklevel=4,
                )
                setattr(each, new, own[old])
            elif new in own and old not in own:
                setattr(each, old, _alias(own[new], old, new))


def _alias(method: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"{old} is now called {new}", DeprecationWarning, stacklevel=2)
        return method(*args, **kwargs)

    return call


def accept_old_names(cls: type) -> None:
    """Let a new subclass of ``Agent`` define hooks by their old names.

    Warns:
        DeprecationWarning: for each old name that it defines.
    """
    pair_names(cls)
    if "run_loop" in vars(cls):
        warnings.warn(
            f"{cls.__name__}.run_loop is deprecated: define train_loop, without open_loggers, and end "
            "each iteration with end_iteration(metrics)",
            DeprecationWarning,
            stacklevel=3,
        )


def run_loop(agent: Any) -> None:
    """Deprecated: ``train_loop``."""
    warnings.warn("run_loop is now called train_loop", DeprecationWarning, stacklevel=2)
    agent.run()


def finish(agent: Any, row: Mapping[str, float], loggers: Any, *, last: bool) -> bool:
    """Deprecated: ``end_iteration``. Returns whether a callback ended the run."""
    warnings.warn("finish is now called end_iteration(metrics)", DeprecationWarning, stacklevel=2)
    agent.loggers = loggers
    agent.end_iteration(row, last=last)
    return bool(agent.stopped)
