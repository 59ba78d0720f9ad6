"""Tracks which tokens each row's KV cache was computed from.

A row is stale if these are not a prefix of its observation. If the observation is the environment's last one,
the CPU decides this from ``host_mirror``; otherwise the device compares the tokens and the host waits for the
result. Shape letters: N rows, L columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from textenv.envs.host_mirror import HostMirror
from textenv.utils.devices import to_device


class RowStatus(NamedTuple):
    """Per row, on the CPU: whether it must be prefilled again, whether it acts, and its length."""

    stale: np.ndarray
    """(N,) bool: the cached tokens are not the beginning of the observation without its last token."""
    active: np.ndarray
    """(N,) bool: the row needs a token."""
    lengths: np.ndarray
    """(N,) int64: tokens of the row."""
    cached: np.ndarray
    """(N,) int64: tokens of the row that the cache holds; valid where the row is not stale."""
    waiting: np.ndarray
    """(N,) bool: the row does not act, but keeps its slot because it waits for a reply."""


class CachedRows:
    """The observation of the last decoding step.

    Args:
        rows: N.
        length: L.
    """

    def __init__(self, rows: int, length: int) -> None:
        self._ids = torch.zeros(rows, length, dtype=torch.int64)
        self._lengths = torch.zeros(rows, dtype=torch.int64)
        self._host: tuple[HostMirror, np.ndarray, np.ndarray] | None = None

    def forget(self) -> None:
        """Mark all rows as not cached."""
        self._lengths = torch.zeros_like(self._lengths)
        if self._host is not None:
            self._host[2][:] = -1

    def compare(
        self, ids: Tensor, lengths: Tensor, acting: Tensor | None, known: HostMirror | None
    ) -> RowStatus:
        """Compare an observation with what is cached.

        Args:
            ids: (N, L) int64.
            lengths: (N,) int64.
            acting: (N,) bool, None = all.
            known: the CPU mirror of this observation, if there is one.
        """
        if known is not None and self._host is not None and self._host[0] is known:
            _, texts, cached = self._host
            stale = (known.version != texts) | (known.lengths - 1 < cached) | (cached < 0)
            acts = np.ones_like(known.active) if acting is None else known.active.copy()
            return RowStatus(stale, acts, known.lengths, cached, known.waiting & (known.version == texts))
        if self._ids.device != ids.device:
            self._ids, self._lengths = self._ids.to(ids.device), self._lengths.to(ids.device)
        columns = torch.arange(ids.shape[1], device=ids.device)
        differs = (ids != self._ids).logical_and_(columns < self._lengths.unsqueeze(-1)).any(-1)
        stale_ = differs.logical_or_(self._lengths > lengths - 1).logical_or_(self._lengths < 1)
        found = (
            torch.stack([stale_, stale_ if acting is None else acting, lengths, self._lengths]).cpu().numpy()
        )
        acts = np.ones(len(ids), dtype=bool) if acting is None else found[1].astype(bool)
        return RowStatus(found[0].astype(bool), acts, found[2], found[3], np.zeros(len(ids), dtype=bool))

    def keep(
        self, ids: Tensor, lengths: Tensor, acting: Tensor | None, status: RowStatus, known: HostMirror | None
    ) -> None:
        """Store this observation as the cached one of the rows that act; waiting rows keep their entry.

        The arguments are those of ``compare``, and ``status`` is its result.
        """
        self._ids.copy_(ids)
        cached = lengths if acting is None else lengths * acting
        counts = known.lengths * status.active if known is not None else status.cached
        if status.waiting.any():
            waiting = to_device(status.waiting, ids.device)
            cached = torch.where(waiting, to_device(status.cached, ids.device), cached)
            counts = np.where(status.waiting, status.cached, counts)
        self._lengths = cached
        self._host = None if known is None else (known, known.version.copy(), counts)
