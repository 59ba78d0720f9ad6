"""Lists of token ids with different lengths, stored in one array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np

from textenv.utils.names import shown

CHUNK = 1024
"""Number of rows that are converted at once, so that few exist as Python lists."""
T = TypeVar("T")
_KINDS: list[np.dtype[Any]] = [np.dtype(np.uint16), np.dtype(np.int32), np.dtype(np.int64)]


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Split items into lists of up to ``size``, in order.

    >>> list(chunks("abc", 2))
    [['a', 'b'], ['c']]
    """
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])


class PackedIds:
    """P rows of token ids in 2 bytes per id (4 if an id is larger), plus 16 bytes per row.

    Ids outside int32 are stored as int64, so that a later check against the vocabulary can report them.

    Args:
        rows: P lists of token ids.

    Raises:
        TypeError: if a row is not a list of integers.

    Example:
        >>> packed = PackedIds([[1, 2], [3]])
        >>> packed.add([[4, 5, 6]])
        >>> packed.row(2).tolist(), packed.lengths.tolist(), packed.starts.tolist()
        ([4, 5, 6], [2, 1, 3], [0, 2, 3])
    """

    def __init__(self, rows: Iterable[Sequence[int] | np.ndarray] = ()) -> None:
        # One growing buffer: joining many arrays at the end would need twice the memory.
        self._bytes = bytearray()
        self._kind = _KINDS[0]
        self._lengths: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        self._starts = np.zeros(0, dtype=np.int64)
        self._count = 0
        for chunk in chunks(rows):
            start = len(self)
            arrays = [_id_array(row, start + i) for i, row in enumerate(chunk)]
            self._append(np.concatenate(arrays), [len(array) for array in arrays])

    def add(self, rows: Sequence[Sequence[int]]) -> None:
        """Append rows that a tokenizer returned; they are not checked."""
        self._append(np.fromiter(chain.from_iterable(rows), dtype=np.int64), list(map(len, rows)))

    def _append(self, flat: np.ndarray, lengths: list[int]) -> None:
        kind = self._kind
        if flat.size:
            low, high = flat.min(), flat.max()
            fitting = [one for one in _KINDS if low >= 0 and high <= np.iinfo(one).max] or _KINDS[-1:]
            kind = max(kind, fitting[0], key=_KINDS.index)
        if kind != self._kind:
            self._bytes, self._kind = bytearray(self.flat.astype(kind).tobytes()), kind
        try:
            self._bytes += flat.astype(self._kind).tobytes()
        except BufferError:  # a view of the buffer is in use, so it cannot be resized
            self._bytes = self._bytes + flat.astype(self._kind).tobytes()
        self._lengths.append(np.array(lengths, dtype=np.int64))
        self._count += len(lengths)

    def __len__(self) -> int:
        return self._count

    @property
    def flat(self) -> np.ndarray:
        """The ids of all rows, concatenated; uint16, int32 or int64, the smallest dtype that fits."""
        return np.frombuffer(self._bytes, self._kind) if self._bytes else np.zeros(0, self._kind)

    @property
    def lengths(self) -> np.ndarray:
        """(P,) int64: number of ids in each row."""
        if len(self._lengths) > 1:
            self._lengths = [np.concatenate(self._lengths)]
        return self._lengths[0]

    @property
    def starts(self) -> np.ndarray:
        """(P,) int64: start of each row in ``flat``."""
        if len(self._starts) != len(self):
            self._starts = np.cumsum(self.lengths) - self.lengths
        return self._starts

    def row(self, i: int) -> np.ndarray:
        """The ids of row i."""
        return self.flat[self.starts[i] : self.starts[i] + self.lengths[i]]


def _id_array(row: Any, i: int) -> np.ndarray:
    """Prompt i as an integer array; values are not converted from other types."""
    try:
        array = np.asarray(row)
    except ValueError:  # lists of unequal lengths
        array = np.zeros((0, 0))
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise TypeError(f"prompts[{i}] must be a list of token ids (integers), got {shown(row)}")
    return array if array.size else array.astype(np.int64)
