"""Decode steps as CUDA graphs: one replay instead of hundreds of kernel launches.

Shapes must be static, so live slots and columns are rounded up to a few buckets, each captured once. Slots
beyond the live ones compute garbage in their own rows, which their next prefill overwrites.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from textenv.generation.decoder import DecodeOutput, Decoder

_WARM_UP = 2


def bucket(size: int, largest: int, smallest: int) -> int:
    """The next power of two, within [smallest, largest].

    >>> [bucket(size, 100, 8) for size in (3, 9, 33, 70)]
    [8, 16, 64, 100]
    """
    return min(max(smallest, 1 << (size - 1).bit_length()), largest)


class DecodeGraphs:
    """The captured decode steps of one decoder, by (slots, columns).

    A model that cannot be captured (data-dependent experts, say) decodes without graphs after one warning.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, DecodeOutput]] = {}
        self._tokens = torch.zeros(decoder.slots, dtype=torch.int64, device=decoder.device)
        self._pool: Any = None
        self._addresses = self._weight_addresses()
        self._broken = False

    def _weight_addresses(self) -> tuple[int, ...]:
        model = self.decoder.model
        return tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))

    def refresh(self) -> None:
        """Drop the graphs if weights live elsewhere now; weights changed in place need nothing."""
        addresses = self._weight_addresses()
        if addresses != self._addresses:
            self._graphs.clear()
            self._addresses = addresses

    def step(self, tokens: Tensor, live: int, width: int) -> DecodeOutput | None:
        """Replay the step of the smallest bucket that holds it; None if this model cannot be captured.

        Args:
            tokens: (live,) int64 in slot order.
            live: how many slots are live.
            width: columns that attention must look at.
        """
        if self._broken or live == 0:
            return None
        decoder = self.decoder
        slots, columns = bucket(live, decoder.slots, 8), bucket(width, decoder.capacity, 256)
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
        graph, output = captured
        graph.replay()
        return type(output)(output.logits[:live], output.hidden[:live])

    def _capture(self, slots: int, columns: int) -> tuple[torch.cuda.CUDAGraph, DecodeOutput]:
        """Warm up on a side stream (a step can be repeated without effect), then record one step."""
        decoder, device = self.decoder, self.decoder.device
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                decoder.compute(self._tokens[:slots], slots, columns)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            output = decoder.compute(self._tokens[:slots], slots, columns)
        self._pool = graph.pool()
        return graph, output
