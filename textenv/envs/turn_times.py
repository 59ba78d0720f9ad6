"""How much of a rollout its partners held up: seconds in their calls, and rows that acted in each step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class TurnTimes:
    """Sums over the steps since the last ``take``."""

    waiting: float = 0.0
    """Seconds in which steps called the partners or waited for their replies."""
    steps: int = 0
    """Number of steps."""
    acted: int = 0
    """Rows that got a token, summed over the steps."""

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Add the seconds of the block to ``waiting``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.waiting += time.perf_counter() - started

    def take(self) -> TurnTimes:
        """The sums so far; they start again at 0."""
        found = TurnTimes(self.waiting, self.steps, self.acted)
        self.waiting, self.steps, self.acted = 0.0, 0, 0
        return found
