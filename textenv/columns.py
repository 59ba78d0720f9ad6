"""Columns of users' data in memory: Arrow arrays instead of one Python object per value."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK = 4096
"""Values in one Arrow array."""
_SCALARS = (str, bool, int, float)


class Column(Sequence[Any]):
    """A sequence of n values that keeps them in Arrow arrays where that is exact.

    Every value comes back equal and with the same type. Texts, bools, integers of 64 bits, floats and None
    are stored as such. Lists and dictionaries of them are stored as JSON text; each access makes a new one.
    Any other value stays the Python object that was added.

    Args:
        values: the first values, in order.

    Example:
        >>> column = Column(["a", None, {"b": [1, 2.0]}])
        >>> column[2], column[-3:], len(column)
        ({'b': [1, 2.0]}, ['a', None, {'b': [1, 2.0]}], 3)
        >>> column == ["a", None, {"b": [1, 2.0]}]
        True
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self._chunks: list[_Chunk] = []
        self._tail: list[Any] = []
        self.extend(values)

    def append(self, value: Any) -> None:
        """Add one value."""
        self._tail.append(value)
        if len(self._tail) == CHUNK:
            self._chunks.append(_Chunk(self._tail))
            self._tail = []

    def extend(self, values: Iterable[Any]) -> None:
        """Add several values."""
        for value in values:
            self.append(value)

    def __len__(self) -> int:
        return CHUNK * len(self._chunks) + len(self._tail)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number, place = divmod(range(len(self))[index], CHUNK)
        return self._chunks[number][place] if number < len(self._chunks) else self._tail[place]

    def __iter__(self) -> Iterator[Any]:
        return chain(chain.from_iterable(self._chunks), iter(self._tail))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return repr(list(self)) if len(self) <= 8 else f"<Column of {len(self):,} values>"


class _Chunk:
    """CHUNK values as one Arrow array, or as the list that they were."""

    def __init__(self, values: list[Any]) -> None:
        self._values: pa.Array | list[Any] = values
        self._is_json = False
        kinds = {type(value) for value in values if value is not None}
        if not kinds or (len(kinds) == 1 and kinds <= set(_SCALARS)):
            self._values = _as_arrow(values)
        elif kinds <= {dict, list, *_SCALARS} and all(map(_is_json, values)):
            texts = _as_arrow([json.dumps(value, ensure_ascii=False) for value in values])
            if not isinstance(texts, list):
                self._values, self._is_json = texts, True

    def __getitem__(self, i: int) -> Any:
        if isinstance(self._values, list):
            return self._values[i]
        value = self._values[i].as_py()
        return json.loads(value) if self._is_json else value

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._values, list):
            return iter(self._values)
        values = self._values.to_pylist()
        return map(json.loads, values) if self._is_json else iter(values)


def _as_arrow(values: list[Any]) -> pa.Array | list[Any]:
    """An Arrow array, or the list where Arrow has no such values (surrogates, integers beyond 64 bits)."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return values


def _is_json(value: Any) -> bool:
    """Whether JSON gives back the same value: no tuples, no keys but strings, no NaN."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    if kind is list:
        return all(map(_is_json, value))
    return value is None or kind in (str, bool, int) or (kind is float and math.isfinite(value))


class Columns:
    """Rows collected into columns, None where a row lacks one.

    >>> columns = Columns()
    >>> columns.add({"a": 1})
    >>> columns.add({"b": 2})
    >>> columns.values
    {'a': [1, None], 'b': [None, 2]}
    """

    def __init__(self) -> None:
        self.values: dict[str, Column] = {}
        self._count = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        for name in row:
            if name not in self.values:
                self.values[name] = Column([None] * self._count)
        for name, column in self.values.items():
            column.append(row.get(name))
        self._count += 1
