"""What the host knows of an environment's rows without asking the device where they live.

Reading a tensor makes the host wait until the device has done all that was asked of it. An environment reads
once a step, to learn which texts ended; from that, and from what it dealt itself, the host can tell all else
that decides what happens next. Shape letters: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Numbers of the host's as a tensor on ``device``, without waiting; don't change them afterwards."""
    return torch.as_tensor(values).to(device, non_blocking=True)


class HostRows:
    """The host's copy of the few numbers that decide what happens next; all arrays are changed in place.

    Args:
        num_rows: N.
    """

    def __init__(self, num_rows: int) -> None:
        self.lengths = np.zeros(num_rows, dtype=np.int64)
        """(N,) int64: tokens of prompt and response."""
        self.active = np.zeros(num_rows, dtype=bool)
        """(N,) bool: the row waits for an action."""
        self.texts = np.zeros(num_rows, dtype=np.int64)
        """(N,) int64: moves whenever another text takes the row's place."""
        self._shown: tuple[tuple[Tensor, int], ...] = ()

    def clear(self) -> None:
        """All rows are emptied."""
        self.lengths[:], self.active[:] = 0, False
        self.texts += 1
        self._shown = ()

    def park(self, rows: np.ndarray) -> None:
        """``rows``, indices or a (N,) bool mask, wait for no action any more."""
        self.active[rows] = False
        self._shown = ()

    def start(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        """Texts of ``lengths`` (n,) begin in ``rows`` (n,)."""
        self.lengths[rows], self.active[rows] = lengths, True
        self.texts[rows] += 1
        self._shown = ()

    def step(self, ended: np.ndarray) -> None:
        """Active rows got a token, and those of ``ended`` (n,) wait for none any more."""
        self.lengths += self.active
        self.park(ended)

    def show(self, obs: dict[str, Any], info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Remember these as what the rows are now, and return them; numpy is not recognised later."""
        shown = (obs["input_ids"], obs["attention_mask"], info["active"])
        known = all(isinstance(item, Tensor) and not item.is_inference() for item in shown)
        self._shown = tuple((item, item._version) for item in shown) if known else ()
        return obs, info

    def describe(self, obs: Mapping[str, Any], active: Any) -> bool:
        """Whether ``obs`` (and ``active``, unless that is None) are just what was handed out last."""
        if not self._shown:
            return False
        asked = (obs["input_ids"], obs["attention_mask"], self._shown[2][0] if active is None else active)
        return all(
            item is given and item._version == version
            for item, (given, version) in zip(asked, self._shown, strict=True)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shown": ()}
