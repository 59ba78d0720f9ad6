"""Ctrl-C and SIGTERM: raised as exceptions, with notes on how to continue the run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Terminated(BaseException):
    """The process received SIGTERM. Like ``KeyboardInterrupt``, it is not an error."""


STOPS = (KeyboardInterrupt, Terminated)
"""Exceptions of a command that was stopped from outside."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM raises ``Terminated``, so files and locks are released as after an error.

    Python runs handlers of signals in the main thread only; in others the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def advising(advice: Any) -> Iterator[None]:
    """Add a note on how to continue to an interrupt that leaves the block.

    Args:
        advice: the note, or a function that returns it.
    """
    try:
        yield
    except STOPS as stop:
        stop.add_note(advice() if callable(advice) else advice)
        raise


def how_to_resume(run_dir: Path | str, *, named: bool, resume: Any) -> str:
    """How to continue a run of ``textenv train`` that was interrupted.

    Args:
        run_dir: the run's folder.
        named: whether the command line or its file names the folder.
        resume: what it says about resuming.
    """
    from textenv.modeling.saved_runs import latest_whole

    place = "" if named else f" --run_dir {run_dir}"
    newest = latest_whole(run_dir)[0] if Path(run_dir).is_dir() else None
    if newest is not None:
        same = "the same command" if resume and named else f"the same command with{place} --resume"
        return f"{same} continues from {newest}"
    if not Path(run_dir).is_dir():
        return "nothing was saved, so there is nothing to continue"
    same = "the same command" if resume == "auto" and named else f"the same command with{place} --resume auto"
    return f"no checkpoint was saved yet (see settings.checkpoint_every), so {same} starts again in {run_dir}"


def stop_message(stop: BaseException) -> str:
    """One line about an interrupt, with its notes."""
    what = "terminated" if isinstance(stop, Terminated) else "interrupted"
    return "; ".join([what, *getattr(stop, "__notes__", [])])
