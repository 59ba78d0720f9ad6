"""Part of a column: values in Arrow arrays if that changes no value, without unused capacity."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

_SCALARS = (str, bool, int, float)


class Chunk:
    """n values as one Arrow array, or as the given list if Arrow would change a value or its type.

    Args:
        values: n values, n >= 1.
    """

    def __init__(self, values: list[Any]) -> None:
        self.kinds: frozenset[type] = frozenset(map(type, values))
        """The types of the values."""
        self._values: Any = values
        self._is_json = False
        kinds = self.kinds - {type(None)}
        if not kinds or (len(kinds) == 1 and kinds <= set(_SCALARS)):
            self._values = _as_arrow(values)
        elif kinds == self.kinds == {list} and (records := _Records.of(values)) is not None:
            self._values = records
        elif kinds <= {dict, list, *_SCALARS} and all(map(_is_json, values)):
            texts = _as_arrow([json.dumps(value, ensure_ascii=False) for value in values])
            if not isinstance(texts, list):
                self._values, self._is_json = texts, True

    def __getitem__(self, i: int) -> Any:
        if isinstance(self._values, list | _Records):
            return self._values[i]
        value = self._values[i].as_py()
        return json.loads(value) if self._is_json else value

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._values, list | _Records):
            return iter(self._values)
        values = self._values.to_pylist()
        return map(json.loads, values) if self._is_json else iter(values)


class _Records(Sequence[Any]):
    """n lists of dictionaries with string values and the same keys in the same order, such as messages.

    Equal texts (roles, a system message) are stored once.
    """

    def __init__(self, keys: tuple[str, ...], starts: np.ndarray, codes: np.ndarray, texts: pa.Array) -> None:
        self._keys = keys
        self._starts = starts
        """(n + 1,): list i is ``_codes[_starts[i] : _starts[i + 1]]``."""
        self._codes = codes
        """(m, number of keys): index into ``_texts`` of each value of the m dictionaries of all lists."""
        self._texts = texts

    @classmethod
    def of(cls, values: list[list[Any]]) -> _Records | None:
        """Store ``values``; None if they do not have this form."""
        rows = list(chain.from_iterable(values))
        if set(map(type, rows)) != {dict}:
            return None
        forms = set(map(tuple, rows))
        keys = forms.pop()
        cells = list(chain.from_iterable(map(dict.values, rows)))
        if forms or set(map(type, keys)) != {str} or set(map(type, cells)) != {str}:
            return None
        number: dict[str, int] = {}
        codes = [number.setdefault(cell, len(number)) for cell in cells]
        texts = _as_arrow(list(number))
        if isinstance(texts, list):
            return None
        small = np.uint16 if len(number) <= 2**16 else np.uint32
        return cls(
            keys,
            np.array([0, *accumulate(map(len, values))], dtype=np.uint32),
            np.array(codes, dtype=small).reshape(-1, len(keys)),
            texts,
        )

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, i: Any) -> list[dict[str, str]]:
        rows = self._codes[self._starts[i] : self._starts[i + 1]].tolist()
        return [
            {key: self._texts[code].as_py() for key, code in zip(self._keys, row, strict=True)}
            for row in rows
        ]

    def __iter__(self) -> Iterator[list[dict[str, str]]]:
        texts, keys = self._texts.to_pylist(), self._keys
        columns = [[texts[code] for code in column] for column in self._codes.T.tolist()]
        rows = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
        bounds = self._starts.tolist()
        return (rows[a:b] for a, b in pairwise(bounds))


def _as_arrow(values: list[Any]) -> Any:
    """An Arrow array, or the list if Arrow cannot hold the values (surrogates, integers beyond 64 bits)."""
    import pyarrow as pa

    try:
        return _text_array(values) if str in map(type, values) else pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return values


def _text_array(values: list[str | None]) -> pa.Array:
    """Texts in buffers of exactly the needed size. Buffers from Arrow's builder can be twice as large."""
    import pyarrow as pa

    valid = [value is not None for value in values] if None in values else None
    texts: list[str] = values if valid is None else [value or "" for value in values]  # type: ignore[assignment]
    joined = "".join(texts)
    lengths = map(len, texts) if joined.isascii() else (len(text.encode()) for text in texts)
    offsets = np.array([0, *accumulate(lengths)], dtype=np.int64)
    wide = offsets[-1] > np.iinfo(np.int32).max
    bits = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    kind = pa.LargeStringArray if wide else pa.StringArray
    ends = pa.py_buffer(offsets if wide else offsets.astype(np.int32))
    return kind.from_buffers(len(values), ends, pa.py_buffer(joined.encode()), bits)


def _is_json(value: Any) -> bool:
    """Whether a JSON round trip returns the same value: no tuples, only string keys, no NaN or infinity."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    if kind is list:
        return all(map(_is_json, value))
    return value is None or kind in (str, bool, int) or (kind is float and math.isfinite(value))
