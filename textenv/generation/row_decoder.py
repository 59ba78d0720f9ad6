"""Next-token logits of environment rows with a KV cache: each row is prefilled, extended or only decoded.

A row is prefilled if its cached tokens are not a prefix of its observation, and extended if the observation
has grown by more than one token (after a reply). Shape letters: N environment rows, n rows that act, L
columns, W logits, d hidden width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from textenv.envs.host_mirror import HostMirror
from textenv.generation.cached_rows import CachedRows, RowStatus
from textenv.generation.decoder import DecodeOutput, Decoder
from textenv.generation.prefill_cache import UpcomingPrompts
from textenv.utils.devices import to_device


class RowDecoder:
    """A ``Decoder`` that also stores the observations from which its rows were computed.

    Args:
        model: a transformers causal LM.
        rows: N.
        length: L, the longest row in tokens.
        cuda_graphs: see ``Decoder``.

    Raises:
        UnsupportedModelError: see ``Decoder``.
    """

    def __init__(self, model: nn.Module, rows: int, length: int, *, cuda_graphs: bool | None = None) -> None:
        self._decoder = Decoder(model, rows, length, cuda_graphs=cuda_graphs)
        self._cached_rows = CachedRows(rows, length)
        self._every_row = np.arange(rows)
        self._longest = length

    def forget(self) -> None:
        """Drop the cache, because the weights have changed."""
        self._cached_rows.forget()
        self._decoder.invalidate()

    def next_logits(
        self,
        ids: Tensor,
        lengths: Tensor,
        acting: Tensor | None,
        known: HostMirror | None,
        upcoming: UpcomingPrompts | None = None,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Next-token logits of the rows that act; see ``DecodingPolicy.next_logits``.

        Args:
            ids: (N, L) int64, right-padded.
            lengths: (N,) int64.
            acting: (N,) bool, None = all.
            known: the CPU mirror of this observation, if there is one.
            upcoming: returns the next prompts of the environment.
        """
        decoder = self._decoder
        status = self._cached_rows.compare(ids, lengths, acting, known)
        acts = status.active
        if acts.any() and status.lengths[acts].min() < 1:
            raise ValueError(
                f"every observation must hold at least one token, got lengths {status.lengths[acts].tolist()}"
            )
        inactive = decoder.live & ~acts & ~status.waiting
        if inactive.any():
            decoder.release(torch.from_numpy(inactive.nonzero()[0]))
        # A new row of one token has nothing to cache, but it needs a slot.
        stale = (status.stale | ~decoder.live) & acts
        if stale.any():
            self._prefill(ids, status, stale.nonzero()[0], upcoming)
        grown = acts & ~stale & (status.lengths - 1 > status.cached)
        if grown.any():
            self._extend(ids, status, grown.nonzero()[0])
        output, rows = self._decode(ids, lengths, acts)
        self._cached_rows.keep(ids, lengths, acting, status, known)
        return rows, *output

    def _prefill(
        self, ids: Tensor, status: RowStatus, rows: np.ndarray, upcoming: UpcomingPrompts | None
    ) -> None:
        """Cache rows (n,) from their first token on."""

        def next_prompts(count: int) -> tuple[Tensor, Tensor]:
            """Prompts of the next episodes without the last token, as the decoder caches them."""
            assert upcoming is not None
            tokens, lengths = upcoming(count)
            return tokens, (lengths - 1).clamp_max(self._longest - 1)

        ends = status.lengths[rows] - 1
        tokens = ids[to_device(rows, ids.device), : max(int(ends.max()), 1)]
        ahead = None if upcoming is None else next_prompts
        self._decoder.prefill(torch.from_numpy(rows), tokens, torch.from_numpy(ends), upcoming=ahead)

    def _extend(self, ids: Tensor, status: RowStatus, rows: np.ndarray) -> None:
        """Cache the tokens appended to rows (n,), except the last one."""
        starts = status.cached[rows]
        counts = status.lengths[rows] - 1 - starts
        columns = to_device(starts[:, None] + np.arange(int(counts.max())), ids.device)
        tokens = ids[to_device(rows, ids.device)].gather(1, columns.clamp_max_(ids.shape[1] - 1))
        self._decoder.extend(torch.from_numpy(rows), tokens, torch.from_numpy(counts))

    def _decode(self, ids: Tensor, lengths: Tensor, acts: np.ndarray) -> tuple[DecodeOutput, Tensor | None]:
        """Decode the last token of the rows that act; and these rows, None if they are 0..N-1."""
        decoder, rows = self._decoder, self._decoder.rows
        moves = acts[rows.numpy()]
        if not moves.any():
            empty = torch.empty(0, 0, device=decoder.device)
            return DecodeOutput(empty, empty), rows[:0]
        last = ids.gather(1, (lengths - 1).clamp_min(0).unsqueeze(-1)).squeeze(-1)
        if len(rows) == len(ids) and moves.all() and np.array_equal(rows.numpy(), self._every_row):
            return decoder.decode(rows, last), None
        last = last[to_device(rows, ids.device)]
        if moves.all():
            return decoder.decode(rows, last), rows
        # Waiting rows are computed, too, but not returned.
        output = decoder.decode(rows, last, torch.from_numpy(moves))
        chosen = to_device(moves.nonzero()[0], decoder.device)
        return DecodeOutput(output.logits[chosen], output.hidden[chosen]), rows[torch.from_numpy(moves)]
