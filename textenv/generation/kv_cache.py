"""A key-value cache with one length per row (slot), so that episodes of any age share a batch.

Every layer stores keys and values of all columns; the attention mask hides the unused ones
(``textenv.modeling.attention_masks``). Shape letters: S slots, n live slots (always the first n), H key-value
heads, P prompt tokens, D head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class WriteTarget:
    """Slots and columns that the next forward pass writes; shared by all layers of one cache."""

    def __init__(self, layers: int) -> None:
        self.slots: Tensor = torch.empty(0, dtype=torch.int64)
        """(n,) int64: the slots of the batch rows."""
        self.positions: Tensor | None = None
        """(n,) int64: the column each row writes (decode); None writes columns 0..P-1 (prefill)."""
        self.extension: Extension | None = None
        """Where the tokens of an extension go."""
        self.width = 0
        """Number of columns that attention reads (decode)."""
        self.updates = [0] * layers
        """Number of updates of each layer, for the self-check."""


class Extension(NamedTuple):
    """The m tokens of a batch (n, K) that are no padding, and where they go."""

    row: Tensor
    """(m,) int64: row of the batch."""
    place: Tensor
    """(m,) int64: column of the batch."""
    position: Tensor
    """(m,) int64: column of the cache."""


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (S, H, columns, D) each, allocated at the first update."""

    is_sliding = False
    is_compileable = False

    def __init__(self, index: int, slots: int, columns: int, target: WriteTarget) -> None:
        super().__init__()
        self.index = index
        self.slots = slots
        self.columns = columns
        self.target = target

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers, zeroed: a NaN in a masked column would make NaN logits."""

        def buffer(like: Tensor) -> Tensor:
            return like.new_zeros(self.slots, like.shape[1], self.columns, like.shape[3])

        self.keys, self.values = buffer(key_states), buffer(value_states)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values, and return those that queries attend to.

        Args:
            key_states: (n, H, 1, D) when decoding, (n, H, P, D) when prefilling.
            value_states: the values, of the same shape.
            args: unused; models pass them to other kinds of cache.
            kwargs: unused.

        Returns:
            Views of the first n slots and ``target.width`` columns (decode), copies of them (extend), or the
            arguments themselves (prefill: a row that starts at position 0 attends only to its new tokens).
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        target = self.target
        target.updates[self.index] += 1
        slots, positions = target.slots, target.positions
        assert self.keys is not None and self.values is not None
        if positions is None:
            length = key_states.shape[2]
            self.keys[:, :, :length].index_copy_(0, slots, key_states)
            self.values[:, :, :length].index_copy_(0, slots, value_states)
            return key_states, value_states
        if target.extension is not None:
            row, place, position = target.extension
            for buffer, states in ((self.keys, key_states), (self.values, value_states)):
                buffer[slots[row], :, position] = states[row, :, place]
            chosen = self.keys[:, :, : target.width], self.values[:, :, : target.width]
            return chosen[0].index_select(0, slots), chosen[1].index_select(0, slots)
        self.keys[slots, :, positions] = key_states[:, :, 0]
        self.values[slots, :, positions] = value_states[:, :, 0]
        live = key_states.shape[0]
        return self.keys[:live, :, : target.width], self.values[:live, :, : target.width]

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Columns and first column of the mask."""
        return self.target.width, 0

    def get_seq_length(self) -> int:
        """Always 0: rows differ in length, so positions are passed explicitly."""
        return 0

    def get_max_length(self) -> int:
        """Columns of the buffers."""
        return self.columns

    def get_max_cache_shape(self) -> int:
        """Name of ``get_max_length`` in transformers 5.0."""
        return self.columns


class SlotCache(Cache):
    """A transformers cache of ``slots`` rows of up to ``columns`` tokens.

    Call ``prefill`` or ``decode`` to set what the next forward pass writes, then pass the cache as
    ``past_key_values``.
    """

    def __init__(self, layers: int, slots: int, columns: int) -> None:
        self.target = WriteTarget(layers)
        self.columns = columns
        self._slot_layers = [SlotLayer(i, slots, columns, self.target) for i in range(layers)]
        super().__init__(layers=list(self._slot_layers))

    def resize(self, columns: int, live: int) -> None:
        """Change the number of columns; the first ``live`` slots keep their content as far as it fits."""
        kept = min(columns, self.columns)
        self.columns = columns
        for layer in self._slot_layers:
            layer.columns = columns
            if layer.keys is not None and layer.values is not None:
                before = layer.keys, layer.values
                layer.lazy_initialization(*before)
                for old, new in zip(before, (layer.keys, layer.values), strict=True):
                    new[:live, :, :kept] = old[:live, :, :kept]

    def prefill(self, slots: Tensor) -> None:
        """The next forward pass writes columns 0..P-1 of ``slots`` (n,) int64."""
        self.target.slots, self.target.positions, self.target.extension = slots, None, None

    def decode(self, slots: Tensor, positions: Tensor, width: int) -> None:
        """The next forward pass writes columns ``positions`` (n,) and reads the first ``width`` columns."""
        self.target.slots, self.target.positions, self.target.width = slots, positions, width
        self.target.extension = None

    def extend(self, slots: Tensor, extension: Extension, width: int) -> None:
        """The next forward pass appends tokens to ``slots`` (n,) and reads the first ``width`` columns."""
        self.target.slots, self.target.positions, self.target.width = slots, slots, width
        self.target.extension = extension

    def copy(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first ``length`` columns of the slots ``source`` (m,) to the slots ``target`` (m,)."""
        for layer in self._slot_layers:
            for buffer in (layer.keys, layer.values):
                if buffer is not None:
                    columns = buffer[:, :, :length]
                    columns.index_copy_(0, target, columns.index_select(0, source))

    def copy_from(self, other: SlotCache, source: Tensor, target: Tensor, length: int) -> None:
        """Copy ``length`` columns of ``other``'s slots ``source`` (m,) to the slots ``target`` (m,)."""
        for layer, origin in zip(self._slot_layers, other._slot_layers, strict=True):
            assert origin.keys is not None and origin.values is not None
            if not layer.is_initialized:
                layer.lazy_initialization(origin.keys, origin.values)
            for buffer, stored in ((layer.keys, origin.keys), (layer.values, origin.values)):
                assert buffer is not None
                buffer[:, :, :length].index_copy_(0, target, stored[:, :, :length].index_select(0, source))
