"""The assignment of rows to slots of the cache. Live slots are always 0..n-1. Shape letter: n live rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Moves(NamedTuple):
    """Slots that a release moves: from ``source`` (m,) to ``target`` (m,), both int64."""

    source: np.ndarray
    target: np.ndarray


class SlotTable:
    """Maps rows 0..S-1 to slots 0..S-1.

    Args:
        slots: S.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.count = 0
        """n, the number of live rows."""
        self._row_of_slot = np.full(slots, -1, dtype=np.int64)
        self._slot_of_row = np.full(slots, -1, dtype=np.int64)
        self._rows: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """(n,) int64 on the CPU: the live rows in slot order; the same tensor until they change."""
        if self._rows is None:
            self._rows = torch.from_numpy(self._row_of_slot[: self.count].copy())
        return self._rows

    @property
    def live(self) -> np.ndarray:
        """(S,) bool: whether each row is live."""
        return self._slot_of_row >= 0

    def checked(self, rows: Tensor) -> np.ndarray:
        """Row numbers as a numpy array.

        Raises:
            ValueError: if a row is outside 0..S-1 or repeated.
        """
        indices = rows.cpu().numpy()
        if len(indices) and not (indices.min() >= 0 and indices.max() < self.slots):
            raise ValueError(f"rows must lie in [0, {self.slots}), got {indices.tolist()}")
        if len(np.unique(indices)) != len(indices):
            raise ValueError(f"rows must be distinct, got {indices.tolist()}")
        return indices

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Slots of rows (m,), -1 for rows that are not live."""
        return self._slot_of_row[rows]

    def claim(self, rows: np.ndarray) -> np.ndarray:
        """Slots of rows (m,); rows without a slot get one at the end of the live ones."""
        new = rows[self._slot_of_row[rows] < 0]
        if len(new):
            slots = np.arange(self.count, self.count + len(new))
            self._slot_of_row[new], self._row_of_slot[slots] = slots, new
            self.count += len(new)
            self._rows = None
        return self._slot_of_row[rows]

    def release(self, rows: np.ndarray) -> Moves | None:
        """Free the slots of those rows that are live; the last live slots move into the gaps."""
        holes = self._slot_of_row[rows]
        holes = holes[holes >= 0]
        if not len(holes):
            return None
        live = self.count - len(holes)
        self._slot_of_row[self._row_of_slot[holes]] = -1
        self._row_of_slot[holes] = -1
        target = np.sort(holes[holes < live])
        tail = np.arange(live, self.count)
        source = tail[self._row_of_slot[tail] >= 0]
        moved = self._row_of_slot[source]
        self._row_of_slot[target], self._slot_of_row[moved] = moved, target
        self._row_of_slot[tail] = -1
        self.count = live
        self._rows = None
        return Moves(source, target)

    def clear(self) -> None:
        """Free all slots."""
        self._slot_of_row[:], self._row_of_slot[:] = -1, -1
        self.count = 0
        self._rows = None
