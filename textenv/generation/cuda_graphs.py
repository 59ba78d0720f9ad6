"""Decode steps as CUDA graphs: one replay instead of hundreds of kernel launches.

Shapes must be static, so live slots and columns are rounded up to a few buckets, each captured once. Slots
after the live ones compute values that are never read; the next prefill of these slots overwrites them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Step = tuple[Tensor, Tensor]
"""Logits (n, W) and the input of the LM head (n, d)."""

_WARM_UP = 2


def bucket(size: int, largest: int, smallest: int) -> int:
    """The next power of two, within [smallest, largest].

    >>> [bucket(size, 100, 8) for size in (3, 9, 33, 70)]
    [8, 16, 64, 100]
    """
    return min(max(smallest, 1 << (size - 1).bit_length()), largest)


class DecodeGraphs:
    """The captured decode steps of one decoder, by (slots, columns).

    A model that cannot be captured (for example data-dependent experts) decodes without graphs, after one
    warning.

    Args:
        model: the model whose weights the graphs read.
        compute: (tokens (n,), live slots n, columns) -> the step; running it twice changes nothing.
        slots: maximum number of live slots.
        capacity: columns of the cache.
    """

    def __init__(
        self, model: nn.Module, compute: Callable[[Tensor, int, int], Step], *, slots: int, capacity: int
    ) -> None:
        self._model, self._compute, self._slots, self._capacity = model, compute, slots, capacity
        self._device = next(model.parameters()).device
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Step]] = {}
        self._tokens = torch.zeros(slots, dtype=torch.int64, device=self._device)
        self._pool: Any = None
        self._addresses = self._weight_addresses()
        self._broken = False

    def _weight_addresses(self) -> tuple[int, ...]:
        tensors = (*self._model.parameters(), *self._model.buffers())
        return tuple(tensor.data_ptr() for tensor in tensors)

    def refresh(self) -> None:
        """Drop the graphs if weights have moved in memory; changes in place need no new graph."""
        addresses = self._weight_addresses()
        if addresses != self._addresses:
            self._graphs.clear()
            self._addresses = addresses

    def step(self, tokens: Tensor, live: int, width: int) -> Step | None:
        """Replay the step of the smallest bucket that is large enough; None if the model cannot be captured.

        Args:
            tokens: (live,) int64 in slot order.
            live: number of live slots.
            width: columns that attention must read.
        """
        if self._broken or live == 0:
            return None
        slots, columns = bucket(live, self._slots, 8), bucket(width, self._capacity, 256)
        self._tokens[:live] = tokens
        captured = self._graphs.get((slots, columns))
        if captured is None:
            try:
                captured = self._capture(slots, columns)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self._broken = True
                warnings.warn(f"decoding without CUDA graphs, the capture failed: {error}", stacklevel=2)
                return None
            self._graphs[slots, columns] = captured
        graph, (logits, hidden) = captured
        graph.replay()
        return logits[:live], hidden[:live]

    def _capture(self, slots: int, columns: int) -> tuple[torch.cuda.CUDAGraph, Step]:
        """Warm up on a side stream (a step can be repeated without effect), then record one step."""
        device = self._device
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._compute(self._tokens[:slots], slots, columns)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            output = self._compute(self._tokens[:slots], slots, columns)
        self._pool = graph.pool()
        return graph, output
