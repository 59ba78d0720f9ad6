"""Runs a function or a coroutine function, with a time-out."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

_GRACE = 0.5
"""Seconds that a coroutine has to end after it was cancelled."""


def run(function: Callable[..., Any], arguments: Mapping[str, Any], timeout: float | None) -> Any:
    """Call a function, or await a coroutine function, and return its result.

    With a time-out, a function runs in a thread of its own. Python cannot stop a thread: a function that
    takes too long goes on until it returns, and its result is dropped. A coroutine is cancelled.

    Args:
        function: what to call.
        arguments: by name.
        timeout: in seconds; None waits without limit.

    Raises:
        TimeoutError: if it takes longer than ``timeout``.
    """
    if inspect.iscoroutinefunction(function):
        return _in_thread(
            lambda: asyncio.run(asyncio.wait_for(function(**arguments), timeout)),
            None if timeout is None else timeout + _GRACE,
            timeout,
        )
    if timeout is None:
        return function(**arguments)
    return _in_thread(lambda: function(**arguments), timeout, timeout)


def _in_thread(call: Callable[[], Any], patience: float | None, timeout: float | None) -> Any:
    done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:
            done.put((None, error))

    # A tool that hangs must not keep the process alive.
    threading.Thread(target=work, name="textenv-tool", daemon=True).start()
    try:
        result, error = done.get(timeout=patience)
    except queue.Empty:
        raise TimeoutError(f"no result within {timeout} seconds") from None
    if isinstance(error, TimeoutError) and not str(error):
        raise TimeoutError(f"no result within {timeout} seconds") from error
    if error is not None:
        raise error
    return result
