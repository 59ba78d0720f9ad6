"""A CPU copy of the few numbers per row that decide what happens next: lengths, activity and start times.

Reading a device tensor makes the host wait until all queued work is done. An environment reads once per step,
to learn which rows ended; the host can compute the rest from that and from the prompts that it assigned.
Shape letter: N rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


class HostMirror:
    """Row lengths, activity and start times on the CPU; all arrays are changed in place.

    Args:
        num_rows: N.
    """

    def __init__(self, num_rows: int) -> None:
        self.lengths = np.zeros(num_rows, dtype=np.int64)
        """(N,) int64: tokens of prompt and response."""
        self.active = np.zeros(num_rows, dtype=bool)
        """(N,) bool: the row needs an action."""
        self.waiting = np.zeros(num_rows, dtype=bool)
        """(N,) bool: the row waits for a reply, and keeps its place in a policy's cache."""
        self.turn_starts = np.zeros(num_rows, dtype=np.int64)
        """(N,) int64: column where the present turn begins."""
        self.version = np.zeros(num_rows, dtype=np.int64)
        """(N,) int64: changes whenever the row starts another episode."""
        self._began = np.zeros(num_rows)
        self._published: tuple[tuple[Tensor, int], ...] = ()

    def clear(self) -> None:
        """Empty all rows."""
        self.lengths[:], self.active[:], self.waiting[:] = 0, False, False
        self.version += 1
        self._published = ()

    def deactivate(self, rows: np.ndarray) -> None:
        """``rows``, indices or a (N,) bool mask, need no more actions."""
        self.active[rows] = False
        self.waiting[rows] = False
        self._published = ()

    def start(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        """Episodes with prompts of ``lengths`` (n,) start in ``rows`` (n,)."""
        self.lengths[rows], self.active[rows] = lengths, True
        self.turn_starts[rows] = lengths
        self.version[rows] += 1
        self._began[rows] = time.perf_counter()
        self._published = ()

    def step(self, ended: np.ndarray) -> None:
        """Active rows got a token, and ``ended`` (n,) are the rows whose episode ended."""
        self.lengths += self.active
        self.deactivate(ended)

    def wait(self, rows: np.ndarray) -> None:
        """``rows`` (n,) wait for a reply."""
        self.active[rows], self.waiting[rows] = False, True

    def add(self, rows: np.ndarray, counts: np.ndarray) -> None:
        """Replies of ``counts`` (n,) tokens follow in ``rows`` (n,), and new turns begin."""
        self.lengths[rows] += counts
        self.turn_starts[rows] = self.lengths[rows]
        self.active[rows], self.waiting[rows] = True, False

    def elapsed(self, rows: np.ndarray) -> np.ndarray:
        """Seconds since the episodes of ``rows`` (n,) started, 0 in other rows: (N,) float32."""
        seconds = np.zeros(len(self._began), dtype=np.float32)
        seconds[rows] = time.perf_counter() - self._began[rows]
        return seconds

    def publish(self, obs: dict[str, Any], info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Mark these as the present state of the rows, and return them. Only tensors are recognised later."""
        items = (obs["input_ids"], obs["attention_mask"], info["active"])
        known = all(isinstance(item, Tensor) and not item.is_inference() for item in items)
        self._published = tuple((item, item._version) for item in items) if known else ()
        return obs, info

    def is_current(self, obs: Mapping[str, Any], active: Any) -> bool:
        """Whether ``obs`` (and ``active``, unless it is None) are exactly what was published last."""
        if not self._published:
            return False
        items = (obs["input_ids"], obs["attention_mask"], self._published[2][0] if active is None else active)
        return all(
            item is given and item._version == version
            for item, (given, version) in zip(items, self._published, strict=True)
        )

    def __getstate__(self) -> dict[str, Any]:
        # Clocks differ between processes: keep the time so far.
        return {**self.__dict__, "_published": (), "_began": time.perf_counter() - self._began}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._began = time.perf_counter() - state["_began"]
