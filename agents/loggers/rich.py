"""Terminal output: a progress bar and a table of key metrics; without a terminal, one line at intervals."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from textenv.agents.loggers.missing_rewards import without_empty_returns
from textenv.agents.loggers.registry import RunInfo
from textenv.utils.terminal import number, shorten, text_table

KEY_METRICS = (
    "eval/return/mean",
    "eval/objective/kl",
    "objective/score",
    "objective/reward",
    "rollout/turns",
    "rollout/stop_reason/done",
    "rollout/partner_errors",
    "rollout/partner_timeouts",
    "objective/kl",
    "objective/entropy",
    "policy/loss",
    "policy/approx_kl",
    "policy/clip_fraction",
    "value/loss",
    "value/explained_variance",
    "loss",
    "episode/length",
    "episode/eos_rate",
    "throughput/rollout_tokens_s",
    "throughput/train_tokens_s",
)
"""Metrics that are shown first, in this order."""
SHOWN_FROM_ONE = ("rollout/partner_errors", "rollout/partner_timeouts", "rollout/stop_reason/")
"""Start of the names of counts and shares that are shown once they were not 0."""


class RichLogger:
    """Shows a run on standard error: live on a terminal, else one line at intervals and one at the end.

    Generated text and names are untrusted: control characters are dropped and markup is not interpreted.

    Args:
        info: the run.
        keys: metrics to show, in order; None for the known ones of ``KEY_METRICS`` and then others, without
            the returns of evaluations without rewards.
        max_rows: most metrics shown.
        window: logged rows that the column "mean" is taken over.
        every_seconds: shortest time between two lines without a terminal.
        samples: rows of a logged table that are shown (the newest table only).
        console: where to write; None for standard error.
    """

    def __init__(
        self,
        info: RunInfo | None = None,
        *,
        keys: Sequence[str] | None = None,
        max_rows: int = 14,
        window: int = 10,
        every_seconds: float = 30.0,
        samples: int = 3,
        console: Console | None = None,
    ) -> None:
        info = info or RunInfo()
        self.console = console or Console(stderr=True)
        self.total = info.total_steps
        self.keys, self.max_rows, self.window = keys, max_rows, window
        self.every_seconds, self.samples = every_seconds, samples
        self.encoding = self.console.encoding or "utf-8"
        self._history: dict[str, deque[float]] = {}
        self._table: tuple[str, list[str], list[list[Any]], int] | None = None
        self._step = info.resume_step or 0
        self._printed_step: int | None = None
        self._printed_at = -float("inf")
        self._name = shorten(info.name, max_chars=40, encoding=self.encoding)
        if info.device is not None:
            self.console.print(Text(f"{self._name} computes on {info.device}"), soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task(self._name, total=self.total, completed=self._step)
        self._live: Live | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(self._progress, console=self.console, refresh_per_second=4)
            self._live.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Show one row of numbers."""
        for name, value in metrics.items():
            self._history.setdefault(name, deque(maxlen=self.window)).append(value)
        self._step = step
        self._progress.update(self._task, completed=step)
        if self._live is not None:
            self._live.update(self._view())
        elif time.monotonic() - self._printed_at >= self.every_seconds:
            self._print_line()

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Show the first rows of a table below the numbers; without a terminal it is left to the files."""
        self._table = (name, list(columns), [list(row) for row in rows[: self.samples]], step)
        if self._live is not None:
            self._live.update(self._view())

    def close(self) -> None:
        """Leave the live display, or print the last line."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._history and self._printed_step != self._step:
            self._print_line()

    def _shown(self) -> list[str]:
        """Names of the metrics to show, at most ``max_rows``."""
        if self.keys is not None:
            return [name for name in self.keys if name in self._history][: self.max_rows]
        shown = without_empty_returns(
            {
                name: values[-1]
                for name, values in self._history.items()
                if any(values) or not name.startswith(SHOWN_FROM_ONE)
            }
        )
        known = [name for name in KEY_METRICS if name in shown]
        return [*known, *(name for name in shown if name not in known)][: self.max_rows]

    def _view(self) -> Group:
        rows = [(name, h[-1], sum(h) / len(h)) for name in self._shown() for h in [self._history[name]]]
        parts: list[Any] = [self._progress]
        if rows:
            parts.append(
                text_table(["metric", "last", f"mean of {self.window}"], rows, encoding=self.encoding)
            )
        if self._table is not None:
            name, columns, cells, step = self._table
            parts.append(text_table(columns, cells, title=f"{name} at step {step}", encoding=self.encoding))
        return Group(*parts)

    def _print_line(self) -> None:
        of = "" if self.total is None else f"/{self.total}"
        numbers = "  ".join(f"{name} {number(self._history[name][-1])}" for name in self._shown())
        line = shorten(f"{self._name} {self._step}{of}  {numbers}", encoding=self.encoding)
        self.console.print(Text(line), soft_wrap=True)
        self._printed_at, self._printed_step = time.monotonic(), self._step
