"""Columns of users' data in memory: Arrow arrays instead of one Python object per value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, repeat
from typing import Any, overload

from textenv.prompts.column_chunk import Chunk

CHUNK = 4096
"""Values in one Arrow array."""


class Column(Sequence[Any]):
    """A sequence of n values that keeps them in Arrow arrays where that is exact.

    Values are returned equal and with the same type. Texts, bools, 64-bit integers, floats and None are
    stored as such. Lists of messages are stored as their texts, other lists and dictionaries as JSON text;
    each access creates a new object. Other values stay the Python objects that were added.

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
        self._chunks: list[Chunk] = []
        self._tail: list[Any] = []
        self.extend(values)

    def append(self, value: Any) -> None:
        """Add one value."""
        self._tail.append(value)
        if len(self._tail) == CHUNK:
            self._chunks.append(Chunk(self._tail))
            self._tail = []

    def extend(self, values: Iterable[Any]) -> None:
        """Add several values."""
        values = iter(values)
        while more := list(islice(values, CHUNK - len(self._tail))):
            self._tail += more
            if len(self._tail) == CHUNK:
                self._chunks.append(Chunk(self._tail))
                self._tail = []

    def all_are(self, kind: type) -> bool:
        """Whether every value is an instance of ``kind``; stored types answer, no value is read.

        >>> Column(["a", "b"]).all_are(str), Column(["a", None]).all_are(str)
        (True, False)
        """
        kinds = {kind for chunk in self._chunks for kind in chunk.kinds} | set(map(type, self._tail))
        return all(issubclass(one, kind) for one in kinds)

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

    def extend(self, columns: Mapping[str, Sequence[Any]], count: int) -> None:
        """Append ``count`` rows, given as columns; see ``transposed``."""
        for name in columns:
            if name not in self.values:
                self.values[name] = Column(repeat(None, self._count))
        for name, column in self.values.items():
            column.extend(columns[name] if name in columns else repeat(None, count))
        self._count += count


def transposed(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns, None where a row lacks one.

    >>> transposed([{"a": 1}, {"b": 2}])
    {'a': [1, None], 'b': [None, 2]}
    """
    names = dict.fromkeys(chain.from_iterable(rows))
    if set(map(len, rows)) <= {len(names)}:  # then every row has them all
        return {name: [row[name] for row in rows] for name in names}
    return {name: [row.get(name) for row in rows] for name in names}


def all_texts(values: Sequence[Any]) -> bool:
    """Whether every value is a string."""
    return values.all_are(str) if isinstance(values, Column) else all(isinstance(v, str) for v in values)
