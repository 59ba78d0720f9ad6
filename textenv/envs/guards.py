"""Guards of an environment: one thread at a time, no reset during a rollout, no call after ``close``."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from gymnasium.error import ClosedEnvironmentError

_Method = TypeVar("_Method", bound=Callable[..., Any])
# Not attributes of the environments, because locks cannot be pickled or copied.
_LOCKS: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_PLAYED: weakref.WeakSet[Any] = weakref.WeakSet()


def one_thread(method: _Method) -> _Method:
    """Decorator: only one thread may run the method at a time; another thread gets a RuntimeError."""

    @functools.wraps(method)
    def guarded(env: Any, *args: Any, **kwargs: Any) -> Any:
        lock = _LOCKS.get(env)
        if lock is None:
            lock = _LOCKS.setdefault(env, threading.RLock())
        if not lock.acquire(blocking=False):
            raise RuntimeError(
                f"{method.__name__}() was called while another thread is inside this environment; make an "
                "environment for each thread"
            )
        try:
            return method(env, *args, **kwargs)
        finally:
            lock.release()

    return cast(_Method, guarded)


@contextmanager
def played(env: Any) -> Iterator[None]:
    """Within the block a rollout uses ``env``, and a reset is an error."""
    _PLAYED.add(env)
    try:
        yield
    finally:
        _PLAYED.discard(env)


class Guarded:
    """Checks before every call of an environment."""

    closed: bool
    scored_by: str | None = None
    """Name of the reward that is being computed for this environment, or None."""

    def refuse_while_scored(self, method: str) -> None:
        """Refuse calls by a reward that is being computed for this environment.

        Raises:
            RuntimeError: if a reward is being computed.
        """
        if self.scored_by is not None:
            raise RuntimeError(
                f"{method}() was called on the environment for which reward {self.scored_by!r} is being "
                "computed; a reward may play another environment"
            )

    def _admit(self, method: str) -> None:
        """Refuse any call after ``close``, and a reset during a rollout."""
        if self.closed:
            raise ClosedEnvironmentError(f"{method}() was called after close(); make a new environment")
        if method in ("reset", "step"):
            self.refuse_while_scored(method)
        if method == "reset" and self in _PLAYED:
            raise RuntimeError(
                "reset() (or collect()) was called while collect() plays this environment, from a reward, a "
                "policy or another thread; use another environment there"
            )
