"""Which text each row's keys and values are of, so that decoding knows whose cache still holds.

A row's cache holds if what it was filled with is a prefix of the observation. Where the host knows what
happened to the rows (``host_mirror``) it tells by itself, else the device compares the tokens and the host
waits for the answer. Shape letters: N rows, L columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from textenv.envs.host_mirror import HostMirror


class RowFacts(NamedTuple):
    """What decides the work of a decoding step, on the host."""

    stale: np.ndarray
    """(N,) bool: what is cached of the row is not the observation without its last token."""
    acts: np.ndarray
    """(N,) bool: the row wants a token."""
    lengths: np.ndarray
    """(N,) int64: tokens of the row."""


class RowMemo:
    """The texts that were last decoded from.

    Args:
        rows: N.
        length: L.
    """

    def __init__(self, rows: int, length: int) -> None:
        self._ids = torch.zeros(rows, length, dtype=torch.int64)
        self._lengths = torch.zeros(rows, dtype=torch.int64)
        self._host: tuple[HostMirror, np.ndarray, np.ndarray] | None = None

    def forget(self) -> None:
        """Nothing is cached any more."""
        self._lengths = torch.zeros_like(self._lengths)
        if self._host is not None:
            self._host[2][:] = -1

    def compare(
        self, ids: Tensor, lengths: Tensor, acting: Tensor | None, known: HostMirror | None
    ) -> RowFacts:
        """What the observation asks for.

        Args:
            ids: (N, L) int64.
            lengths: (N,) int64.
            acting: (N,) bool, None = all.
            known: what the host knows of just this observation, if it does.
        """
        if known is not None and self._host is not None and self._host[0] is known:
            _, texts, cached = self._host
            stale = (known.version != texts) | (known.lengths - 1 != cached)
            acts = np.ones_like(known.active) if acting is None else known.active.copy()
            return RowFacts(stale, acts, known.lengths)
        if self._ids.device != ids.device:
            self._ids, self._lengths = self._ids.to(ids.device), self._lengths.to(ids.device)
        columns = torch.arange(ids.shape[1], device=ids.device)
        differs = (ids != self._ids).logical_and_(columns < self._lengths.unsqueeze(-1)).any(-1)
        stale_ = differs.logical_or_(self._lengths != lengths - 1)
        told = torch.stack([stale_, stale_ if acting is None else acting, lengths]).cpu().numpy()
        acts = np.ones(len(ids), dtype=bool) if acting is None else told[1].astype(bool)
        return RowFacts(told[0].astype(bool), acts, told[2])

    def keep(
        self, ids: Tensor, lengths: Tensor, acting: Tensor | None, facts: RowFacts, known: HostMirror | None
    ) -> None:
        """The rows that act are decoded from this observation now; arguments as ``compare`` has them."""
        self._ids.copy_(ids)
        self._lengths = lengths if acting is None else lengths * acting
        self._host = None if known is None else (known, known.version.copy(), known.lengths * facts.acts)
