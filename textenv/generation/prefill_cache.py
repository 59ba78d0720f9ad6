"""Keys and values of prompts that were prefilled before a row needs them.

The order of prompts is known in advance, and one large prefill costs far less than many of one row; equal
prompts (several samples of one) are computed once. Prompts are looked up by their tokens, so a wrong
prediction costs time and changes no result. Shape letters: m prompts, P tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from textenv.generation.kv_cache import SlotCache
from textenv.utils.devices import to_device

UpcomingPrompts = Callable[[int], tuple[Tensor, Tensor]]
"""count -> (tokens (m, P) int64 right-padded, lengths (m,) int64) of at most ``count`` next prompts."""

_AHEAD = 32
"""Number of prompts computed ahead: enough for efficient matrix products, few enough to be used before the
weights change."""


class PrefillCache:
    """The prompts of one batched prefill, by their tokens; the next batch replaces them.

    Args:
        compute: (tokens (m, P), lengths (m,)) -> a cache with these prompts in slots 0..m-1.
    """

    def __init__(self, compute: Callable[[Tensor, np.ndarray], SlotCache]) -> None:
        self._compute = compute
        self._slots: dict[bytes, int] = {}
        self._cache: SlotCache | None = None

    @property
    def cache(self) -> SlotCache:
        """The cache that the slots of ``find`` belong to."""
        if self._cache is None:
            raise RuntimeError("the prefill cache is empty: call find first")
        return self._cache

    def clear(self) -> None:
        """Drop all prompts and free their memory."""
        self._slots, self._cache = {}, None

    def find(self, tokens: Tensor, lengths: np.ndarray, upcoming: UpcomingPrompts) -> Tensor:
        """Slots of prompts (m, P) of ``lengths`` (m,) >= 1; missing ones are computed with the upcoming ones.

        Returns:
            (m,) int64 on the device of ``tokens``.
        """
        wanted = _texts(tokens, lengths)
        if any(text not in self._slots for text in wanted):
            self.clear()  # before the new batch is computed, so that the two are never in memory together
            more, more_lengths = upcoming(_AHEAD)
            ends = np.concatenate([lengths, more_lengths.numpy().astype(np.int64)])
            width = int(ends.max())
            together = tokens.new_zeros(len(ends), width)
            together[: len(tokens), : tokens.shape[1]] = tokens[:, :width]
            together[len(tokens) :, : more.shape[1]] = to_device(more[:, :width], tokens.device)
            texts = wanted + _texts(more, more_lengths.numpy())
            first = {text: i for i, text in reversed(list(enumerate(texts))) if text}
            chosen = np.array(list(first.values()), dtype=np.int64)
            self._cache = self._compute(together[to_device(chosen, tokens.device)], ends[chosen])
            self._slots = {text: slot for slot, text in enumerate(first)}
        slots = np.array([self._slots[text] for text in wanted], dtype=np.int64)
        return to_device(slots, tokens.device)


def _texts(tokens: Tensor, lengths: np.ndarray) -> list[bytes]:
    """Each row's tokens as bytes, without its padding."""
    host = tokens.cpu().numpy()
    return [row[:end].tobytes() for row, end in zip(host, lengths, strict=True)]
