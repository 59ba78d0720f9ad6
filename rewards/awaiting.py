"""Wait for ``async`` rewards, whether or not an event loop runs already (as in a notebook).

All of them share one event loop in a separate thread, so that a client made in the first call (its
connections belong to the loop) still works in the next one.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class _Loop:
    """An event loop that runs in a thread until the process ends."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(
            target=self.loop.run_forever, name="textenv-async-rewards", daemon=True
        )
        self.thread.start()


_LOCK = threading.Lock()
_running: _Loop | None = None


def awaited(given: Any) -> Any:
    """The result of an awaitable, or of a list that contains some; other values are returned unchanged.

    The awaitables of a list run concurrently; if one fails, the others are cancelled.

    Raises:
        BaseException: if an awaitable raises it.

    Example:
        >>> async def late(value):
        ...     await asyncio.sleep(0)
        ...     return value
        >>> awaited([late(1.0), 2.0, late(3.0)]), awaited(late([4.0])), awaited(5.0)
        ([1.0, 2.0, 3.0], [4.0], 5.0)
    """
    if inspect.isawaitable(given):
        return _run(given)
    if isinstance(given, list | tuple) and any(map(inspect.isawaitable, given)):
        return _run(_all(list(given)))
    return given


async def _all(values: list[Any]) -> list[Any]:
    tasks = [asyncio.ensure_future(value) if inspect.isawaitable(value) else value for value in values]
    waiting = [task for task in tasks if isinstance(task, asyncio.Future)]
    try:
        await asyncio.gather(*waiting)
    except BaseException:
        for task in waiting:
            task.cancel()
        raise
    return [task.result() if isinstance(task, asyncio.Future) else task for task in tasks]


async def _one(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _run(awaitable: Awaitable[Any]) -> Any:
    global _running
    with _LOCK:
        if _running is None or _running.process != os.getpid():  # a fork has no thread
            _running = _Loop()
        running = _running
    if threading.current_thread() is running.thread:
        # A reward inside a reward: this thread is busy until the outer one has finished.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, _one(awaitable)).result()
    future = asyncio.run_coroutine_threadsafe(_one(awaitable), running.loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
