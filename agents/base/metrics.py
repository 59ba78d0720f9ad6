"""Timers and means of metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch


class Timer:
    """Seconds of the parts of an iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Time the block as the part ``name``; on a GPU until its work is done."""
        self._last = time.perf_counter()
        yield
        self.split(name)

    def split(self, name: str) -> None:
        """End the part ``name``, which began when the last one ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now

    def metrics(self, generated: int, trained: int) -> dict[str, float]:
        """Seconds of each part, and tokens per second.

        Args:
            generated: response tokens of the part "rollout".
            trained: tokens, prompts included, of the part "update".
        """
        row = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        row["throughput/rollout_tokens_s"] = generated / max(self.seconds["rollout"], 1e-9)
        row["throughput/train_tokens_s"] = trained / max(self.seconds["update"], 1e-9)
        return row


def mean_row(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over optimizer steps.

    >>> mean_row([{"loss": 1.0}, {"loss": 2.0}])
    {'loss': 1.5}
    """
    rows = list(rows)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
