"""How long episodes take, on the host's clock."""

from __future__ import annotations

import time
from typing import Any

import numpy as np


class EpisodeClock:
    """When the episode of each of N rows began; a copy in another process goes on from the time so far."""

    def __init__(self, num_rows: int) -> None:
        self._began = np.zeros(num_rows)

    def start(self, rows: np.ndarray) -> None:
        """Episodes begin in ``rows`` (n,)."""
        self._began[rows] = time.perf_counter()

    def elapsed(self, rows: np.ndarray) -> np.ndarray:
        """Seconds since the episodes of ``rows`` (n,) began, 0 in the others: (N,) float32."""
        seconds = np.zeros(len(self._began), dtype=np.float32)
        seconds[rows] = time.perf_counter() - self._began[rows]
        return seconds

    def __getstate__(self) -> dict[str, Any]:
        return {"so_far": time.perf_counter() - self._began}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._began = time.perf_counter() - state["so_far"]
