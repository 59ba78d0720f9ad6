"""Prompts whose keys and values wait for the row that will need them.

The order of prompts is known before rows are free, and one large prefill costs far less than many of one row;
equal prompts (several samples of one) are computed once. Texts are found by their tokens, so a wrong guess
about what comes next wastes work and nothing else. Shape letters: m texts, P tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from textenv.generation.kv_cache import SlotCache
from textenv.utils.devices import to_device

Coming = Callable[[int], tuple[Tensor, Tensor]]
"""count -> (tokens (m, P) int64 right-padded, lengths (m,) int64) of at most ``count`` texts likely to come
next."""

_AHEAD = 32
"""Texts computed ahead of need: enough to fill matrix products, few enough to be used before weights
change."""


class PromptStock:
    """The texts of one batched prefill, by their tokens; the next batch replaces them.

    Args:
        compute: (tokens (m, P), lengths (m,)) -> a cache with these texts in slots 0..m-1.
    """

    def __init__(self, compute: Callable[[Tensor, np.ndarray], SlotCache]) -> None:
        self._compute = compute
        self._slots: dict[bytes, int] = {}
        self._cache: SlotCache | None = None

    @property
    def cache(self) -> SlotCache:
        """What the slots that ``find`` gave are slots of."""
        if self._cache is None:
            raise RuntimeError("the stock is empty: call find first")
        return self._cache

    def clear(self) -> None:
        """Forget every text and give their memory back."""
        self._slots, self._cache = {}, None

    def find(self, tokens: Tensor, lengths: np.ndarray, coming: Coming) -> Tensor:
        """Slots of texts (m, P) of ``lengths`` (m,) >= 1; a missing one is computed with all that comes next.

        Returns:
            (m,) int64 on the device of ``tokens``.
        """
        wanted = _texts(tokens, lengths)
        if any(text not in self._slots for text in wanted):
            self.clear()  # before the new batch is computed, so that the two are never in memory together
            more, more_lengths = coming(_AHEAD)
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
