"""Calls of partners: within the step, in threads or as coroutines, with time-outs.

An outcome depends on the partner and the turn only, never on the order in which replies arrive.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from textenv.partners.partner import Partner, Reply, as_reply, replies_by
from textenv.partners.registry import PartnerSpec


class PartnerError(RuntimeError):
    """A partner raised an exception or took too long, and its ``on_error`` is "raise"."""


@dataclass(frozen=True)
class Turn:
    """A finished turn of the policy, to which a partner replies."""

    row: int
    partner: Partner
    text: str
    ids: list[int]


@dataclass(frozen=True)
class Outcome:
    """What came of a call."""

    row: int
    reply: Reply | None = None
    """None if the call failed."""
    error: BaseException | None = None
    timed_out: bool = False
    """It took too long, or raised a TimeoutError."""


@dataclass
class _Call:
    """A call that runs or waits for a worker."""

    turn: Turn
    began: float | None = None
    """When a worker took it."""
    abandoned: bool = False
    thread: threading.Thread | None = None
    """The worker that took it."""
    task: Any = None
    """The future of a coroutine."""


class ReplyCalls:
    """Starts the calls of one environment and collects their outcomes.

    Args:
        spec: says how to call: ``workers`` threads, a coroutine, one call for all rows, or at once.
    """

    def __init__(self, spec: PartnerSpec) -> None:
        self.spec = spec
        self._method = replies_by(spec.cls)
        self._done: list[Outcome] = []
        self._pending: dict[int, _Call] = {}
        self._start()

    def _start(self) -> None:
        self._finished: queue.SimpleQueue[tuple[_Call, Outcome]] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._abandoned: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        # The threads know the queues only, so an environment that nobody refers to is collected with them.
        weakref.finalize(self, _stop_workers, self._jobs, self.spec.workers)

    @property
    def pending(self) -> list[int]:
        """Rows whose reply is not there yet, in order."""
        return sorted(self._pending)

    def ask(self, turns: Sequence[Turn]) -> None:
        """Start the calls for these turns, one per row at most."""
        if self.spec.batched:
            self._done += self._ask_together(turns)
            return
        if not (self.spec.workers or self.spec.is_async):
            self._done += [_answer(turn, self._method) for turn in turns]
            return
        for turn in turns:
            call = _Call(turn)
            self._pending[turn.row] = call
            if self.spec.is_async:
                self._schedule(call)
            else:
                self._jobs.put(call)
        while not self.spec.is_async and len(self._threads) < min(self.spec.workers, len(self._pending)):
            self._add_worker()

    def collect(self, wait: str) -> list[Outcome]:
        """The outcomes that have arrived since the last call, in the order of rows.

        Args:
            wait: "none" returns at once, "any" waits for one outcome at least, "all" for all of them.
        """
        self._expire()
        self._drain(0.0)
        while self._pending and (wait == "all" or (wait == "any" and not self._done)):
            self._drain(self._patience())
            self._expire()
        done, self._done = sorted(self._done, key=lambda outcome: outcome.row), []
        return done

    def forget(self, rows: Iterable[int]) -> None:
        """Drop the calls of rows whose episode was reset."""
        rows = set(rows)
        for row in rows & set(self._pending):
            self._abandon(self._pending.pop(row))
        self._done = [outcome for outcome in self._done if outcome.row not in rows]

    def close(self) -> None:
        """Stop the threads.

        Warns:
            RuntimeWarning: if a call that timed out still runs; its thread ends with the process.
        """
        self.forget(list(self._pending))
        for _ in (*self._threads, *self._abandoned):
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        if self._loop is not None:
            _stop_loop(self._loop)
            self._runner.join()
            self._loop.close()
        for thread in self._abandoned:
            thread.join(0.1)
        left = sum(thread.is_alive() for thread in self._abandoned)
        if left:
            warnings.warn(
                f"{left} calls of {self.spec.cls.__name__} that timed out are still running; let close() of "
                "the partner stop them",
                RuntimeWarning,
                stacklevel=3,
            )
        self._start()

    # -- one call -----

    def _ask_together(self, turns: Sequence[Turn]) -> list[Outcome]:
        reply_batch: Any = getattr(self.spec.cls, self._method)
        where = f"{self.spec.cls.__name__}.reply_batch"
        try:
            replies = list(reply_batch([turn.partner for turn in turns], [turn.text for turn in turns]))
            if len(replies) != len(turns):
                raise ValueError(f"{where} must return {len(turns)} replies, got {len(replies)}")
            return [Outcome(t.row, as_reply(r, where)) for t, r in zip(turns, replies, strict=True)]
        except Exception as error:
            return [Outcome(turn.row, error=error) for turn in turns]

    # -- threads -----

    def _add_worker(self) -> None:
        # A thread that hangs must not keep the process alive.
        job = (self._jobs, self._finished, self._method)
        thread = threading.Thread(target=_work, args=job, name="textenv-partner", daemon=True)
        self._threads.append(thread)
        thread.start()

    # -- coroutines -----

    def _schedule(self, call: _Call) -> None:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._runner = threading.Thread(
                target=self._loop.run_forever, name="textenv-partners", daemon=True
            )
            self._runner.start()
            weakref.finalize(self, _stop_loop, self._loop)

        answer = _answer_later(call, self._method, self._finished)
        call.task = asyncio.run_coroutine_threadsafe(answer, self._loop)

    # -- waiting -----

    def _patience(self) -> float | None:
        """Seconds until the next time-out can occur; None without time-outs."""
        if self.spec.timeout is None:
            return None
        now = time.monotonic()
        left = [self.spec.timeout - (now - call.began) for call in self._pending.values() if call.began]
        # A call that no worker has taken yet is looked at again soon.
        return max(0.001, min([*left, 0.05] if len(left) < len(self._pending) else left))

    def _drain(self, patience: float | None) -> None:
        """Take outcomes that have arrived; wait ``patience`` seconds at most for one (None: no limit)."""
        try:
            first = self._finished.get(timeout=patience) if patience != 0.0 else self._finished.get_nowait()
        except queue.Empty:
            return
        arrived = [first]
        while not self._finished.empty():
            arrived.append(self._finished.get())
        for call, outcome in arrived:
            if not call.abandoned:
                del self._pending[outcome.row]
                self._done.append(outcome)

    def _expire(self) -> None:
        """Give up the calls that take longer than the time-out."""
        if self.spec.timeout is None:
            return
        now = time.monotonic()
        for row, call in list(self._pending.items()):
            if call.began is not None and now - call.began > self.spec.timeout:
                self._drain(0.0)
                if row not in self._pending:
                    continue
                self._abandon(self._pending.pop(row))
                message = f"no reply within {self.spec.timeout} seconds"
                self._done.append(Outcome(row, error=TimeoutError(message), timed_out=True))

    def _abandon(self, call: _Call) -> None:
        """Ignore the outcome of a call; a worker that is busy with it is replaced."""
        call.abandoned = True
        if self.spec.is_async:
            call.task.cancel()
        elif call.thread in self._threads:
            self._threads.remove(call.thread)
            self._abandoned.append(call.thread)
            if self._pending:
                self._add_worker()
        if call.began is not None:
            call.turn.partner.close()

    def __getstate__(self) -> dict[str, Any]:
        # Threads can't be copied: all replies are awaited first.
        for outcome in self.collect("all"):
            self._done.append(outcome)
        return {"spec": self.spec, "_method": self._method, "_done": self._done, "_pending": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def _call(turn: Turn, method: str) -> Any:
    return getattr(turn.partner, method)(turn.ids if method == "reply_ids" else turn.text)


def _outcome(turn: Turn, method: str, value: Any) -> Outcome:
    return Outcome(turn.row, as_reply(value, f"{type(turn.partner).__name__}.{method}"))


def _answer(turn: Turn, method: str) -> Outcome:
    """The outcome of a call in this thread."""
    try:
        return _outcome(turn, method, _call(turn, method))
    except Exception as error:
        return Outcome(turn.row, error=error, timed_out=isinstance(error, TimeoutError))


async def _answer_later(call: _Call, method: str, finished: queue.SimpleQueue[tuple[_Call, Outcome]]) -> None:
    """Put the outcome of a coroutine into a queue."""
    call.began = time.monotonic()
    try:
        outcome = _outcome(call.turn, method, await _call(call.turn, method))
    except asyncio.CancelledError:
        return
    except Exception as error:
        outcome = Outcome(call.turn.row, error=error, timed_out=isinstance(error, TimeoutError))
    finished.put((call, outcome))


def _work(
    jobs: queue.SimpleQueue[_Call | None], finished: queue.SimpleQueue[tuple[_Call, Outcome]], method: str
) -> None:
    """A worker: make calls until there is None in the queue, or a call was given up."""
    while (call := jobs.get()) is not None:
        call.thread, call.began = threading.current_thread(), time.monotonic()
        if not call.abandoned:
            finished.put((call, _answer(call.turn, method)))
            if call.abandoned:  # another worker has taken its place
                return


def _stop_workers(jobs: queue.SimpleQueue[_Call | None], workers: int) -> None:
    for _ in range(workers):
        jobs.put(None)


def _stop_loop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
