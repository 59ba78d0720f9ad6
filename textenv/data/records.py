"""Records: rows of users' data, checked by column name; errors name the place of a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from textenv.data.implicit_prompts import PAIR, has_implicit_prompt, with_prompts
from textenv.data.row_blocks import Block, Row, Source, row_blocks, source_blocks
from textenv.data.sources import DataLike, is_untyped, open_source
from textenv.prompts.columns import Column, Columns, transposed
from textenv.prompts.messages import are_plain, check_messages
from textenv.prompts.token_ids import are_unicode, is_unicode
from textenv.utils.names import nearest, shown

FORMATS = (
    ("prompt", "chosen", "rejected"),
    ("prompt", "completion"),
    ("messages",),
    ("prompt",),
    ("text",),
)
"""Sets of columns that can be used. If the caller names none, the first set that the data has is required."""
TEXT_COLUMNS = ("text", "prompt", "completion", "chosen", "rejected")
"""Columns of text or (except ``text``) of messages."""
FLOAT32_MAX = 3.4028234663852886e38
"""Largest finite float32; rewards are stored as float32."""
_NOT_EMPTY = ("text", "prompt")
"""Text columns whose texts must not be empty."""
NUMBER_COLUMNS = ("reward", "margin", "label")
"""Columns of numbers. ``label`` is a probability in preference pairs, and True or False otherwise."""


@dataclass(frozen=True)
class ColumnBlock:
    """Consecutive checked records."""

    columns: dict[str, list[Any]]
    """Name -> ``count`` values, None for a record without the column."""
    count: int
    """Number of records."""
    place: Callable[[int], str]
    """Index of a record in the block -> its place, for errors."""


@dataclass(frozen=True)
class Records:
    """Checked records of one source. Each iteration reads the source again, one row at a time."""

    name: str
    """Name of the data, for messages."""
    columns: tuple[str, ...]
    """Columns of the first record."""
    required: tuple[str, ...]
    """Columns that every record must have, with a value of the right type."""
    source: Source
    """Starts a pass over the unchecked rows."""
    rename: Mapping[str, str]
    """Column name in the source -> column name here."""

    def rows(self) -> Iterator[Row]:
        """Yield (place, record); each record is checked when it is read.

        Raises:
            ValueError: if a required column is missing or null, a prompt or text is empty, or a number is not
                finite.
            TypeError: if a value has the wrong type.
        """
        return self._checked_rows(self.source())

    def blocks(self, limit: int | None = None) -> Iterator[ColumnBlock]:
        """Yield the same records in blocks of columns, several times faster than ``rows``.

        Args:
            limit: read only the first ``limit`` records.

        Raises:
            ValueError: as ``rows``, after all records before the invalid one.
            TypeError: as ``rows``, after all records before the invalid one.
        """
        for block in source_blocks(self.source):
            if limit is not None:
                block = Block(block.rows[:limit], block.place)
                limit -= len(block.rows)
            columns = self._valid_columns(block.rows)
            if columns is not None:
                yield ColumnBlock(columns, len(block.rows), block.place)
            else:
                for checked in row_blocks(self._checked_rows(block)):
                    yield ColumnBlock(transposed(checked.rows), len(checked.rows), checked.place)
            if limit == 0:
                return

    def _checked_rows(self, rows: Iterable[Row]) -> Iterator[Row]:
        for place, raw in rows:
            row = (
                {self.rename.get(name, name): value for name, value in raw.items()}
                if self.rename
                else dict(raw)
            )
            for name in self.required:
                if name not in row:
                    raise ValueError(_no_column(place, name, row))
                row[name] = _checked(name, row[name], place, flag="chosen" not in self.required)
            yield place, row

    def _valid_columns(self, rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]] | None:
        """The rows of ``_checked_rows`` as columns, or None if the rows must be checked one by one."""
        found = transposed(rows)
        columns = {self.rename.get(name, name): values for name, values in found.items()}
        if len(columns) < len(found) or not columns.keys() >= set(self.required):
            return None
        for name in self.required:
            kinds = set(map(type, columns[name]))
            if type(None) in kinds or name in NUMBER_COLUMNS:
                return None
            if name in TEXT_COLUMNS and kinds == {str}:
                if not are_unicode(columns[name]) or (name in _NOT_EMPTY and not all(columns[name])):
                    return None
            elif name in TEXT_COLUMNS or name == "messages":
                if name == "text" or not are_plain(columns[name]):
                    return None
                columns[name] = [list(map(dict, messages)) for messages in columns[name]]
        return columns

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for _, row in self.rows())

    def require(self, *names: str) -> Records:
        """The same records with more required columns.

        Raises:
            ValueError: if the first record lacks one; the message names the most similar column.
        """
        for name in names:
            if name not in self.columns:
                raise ValueError(_no_column(self.name, name, self.columns))
        more = [name for name in dict.fromkeys(names) if name not in self.required]
        return replace(self, required=(*self.required, *more))

    def renamed(self, rename: Mapping[str, str]) -> Records:
        """The same records with some columns renamed. No column is required any more.

        Args:
            rename: old name -> new name.

        Raises:
            ValueError: if there is no such column, or the new name is taken.
        """
        for old, new in rename.items():
            if old not in self.columns:
                raise ValueError("rename: " + _no_column(self.name, old, self.columns))
            if new in self.columns:
                raise ValueError(f"rename: {self.name} has a column {new!r} already")
        back = {ours: raw for raw, ours in self.rename.items()}
        return replace(
            self,
            columns=tuple(rename.get(name, name) for name in self.columns),
            required=(),
            rename={**self.rename, **{back.get(old, old): new for old, new in rename.items()}},
        )

    def to_columns(self) -> dict[str, Column]:
        """Read all records into memory: column -> values, None for a record without the column."""
        columns = Columns()
        for block in self.blocks():
            columns.extend(block.columns, block.count)
        return columns.values


def load_columns(
    data: DataLike | Records,
    *,
    columns: Sequence[str] | None = None,
    split: str | None = None,
    rename: Mapping[str, str] | None = None,
    config: str | None = None,
) -> Records:
    """Open a data source and check that its first record has the required columns.

    Files are streamed in every pass, not kept in memory. Blank lines are skipped. For pairs without a column
    ``prompt`` the prompt is the common beginning of both sides; see ``textenv.data.implicit_prompts``.

    Args:
        data: a path to JSON lines, JSON, CSV or Parquet; a folder of such files (splits by file or folder
            name) or of a saved ``datasets.Dataset``; a ``Dataset`` or ``DatasetDict``; a list of dicts; a
            dict of lists; a hub id; or ``Records``.
        columns: columns that every record must have. None = the first of ``FORMATS`` that the data has.
        split: name of the split. None = the only split, or "train".
        rename: column name in the data -> column name here, for example ``{"question": "prompt"}``.
        config: name of the configuration of a hub data set.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ConnectionError: if a hub id cannot be loaded.
        ValueError: if the data are empty, lack a column or have no such split. Errors in later rows are
            raised when the records are read.
        TypeError: if ``columns``, ``rename`` or ``data`` has the wrong type.

    Example:
        >>> records = load_columns([{"prompt": "1 + 1 =", "answer": "2"}])
        >>> records.columns, records.required
        (('prompt', 'answer'), ('prompt',))
        >>> load_columns([{"promt": "1 + 1 ="}], columns=["prompt"])
        Traceback (most recent call last):
            ...
        ValueError: the list has no column 'prompt'; its columns: promt
    """
    if columns is not None and (
        isinstance(columns, str | bytes)
        or not isinstance(columns, Sequence)
        or not all(isinstance(name, str) for name in columns)
    ):
        raise TypeError(f"columns must be a list of names, got {shown(columns)}")
    if isinstance(data, Records):
        if split is not None or rename is not None or config is not None:
            raise ValueError("split, rename and config are for data that are not yet Records")
        return data.require(*(_format_of(data) if columns is None else columns))
    name, source = open_source(data, split=split, config=config)
    first = next(iter(source()), None)
    if first is None:
        raise ValueError(f"{name} holds no records")
    if rename is not None and not (
        isinstance(rename, Mapping) and all(isinstance(name, str) for name in rename.values())
    ):
        raise TypeError(f"rename must be a dict, name there -> name here, got {shown(rename)}")
    rename = dict(rename or {})
    for column in rename:
        if column not in first[1]:
            raise ValueError("rename: " + _no_column(name, column, first[1]))
    found = tuple(rename.get(column, column) for column in first[1])
    if len(set(found)) < len(found):
        raise ValueError(f"rename={rename} gives two columns of {name} the same name: {sorted(found)}")
    records = Records(name=name, columns=found, required=(), source=source, rename=rename)
    if has_implicit_prompt(found, columns):
        pairs = records.require(*PAIR)
        found = ("prompt", *found)
        records = Records(
            name=name, columns=found, required=(), source=lambda: with_prompts(pairs.rows()), rename={}
        )
    return records.require(*(_format_of(records) if columns is None else columns))


def _format_of(records: Records) -> Sequence[str]:
    """The first of ``FORMATS`` that the records have.

    Raises:
        ValueError: if they have none of them.
    """
    found = next((form for form in FORMATS if set(form) <= set(records.columns)), None)
    if found is None:
        known = " | ".join(", ".join(form) for form in FORMATS)
        there = nearest(FORMATS[0][0], records.columns, "its columns")
        raise ValueError(f"{records.name} has none of the known columns ({known}); {there}")
    return found


def _no_column(where: str, name: str, columns: Sequence[str] | Mapping[str, Any]) -> str:
    return f"{where} has no column {name!r}; {nearest(name, columns, 'its columns')}"


def _checked(name: str, value: Any, place: str, *, flag: bool) -> Any:
    """Check the value of a required column; errors name the place. ``flag``: a label must be a bool."""
    where = f"{place}: {name}"
    if value is None:
        raise ValueError(f"{where} is null")
    if name == "label" and flag:
        return _flag(value, place)
    if name in NUMBER_COLUMNS:
        return _number(value, name, place)
    if name == "messages":
        return check_messages(value, where)
    if name not in TEXT_COLUMNS:
        return value
    if isinstance(value, str):
        if not value and name in _NOT_EMPTY:
            raise ValueError(f"{where} is empty")
        if not is_unicode(value):
            raise ValueError(f"{where} holds half of a surrogate pair: {shown(value)}")
        return value
    if name == "text" or isinstance(value, bytes) or not isinstance(value, Sequence):
        expected = "a string" if name == "text" else "a string or a list of messages"
        raise TypeError(f"{where} must be {expected}, got {type(value).__name__} {shown(value)}")
    return check_messages(value, where)


def _flag(value: Any, place: str) -> bool:
    """A bool; 1 and 0 are accepted. CSV cells are parsed, because they have no type."""
    given = value.item() if isinstance(value, np.generic) else value
    if isinstance(given, str) and is_untyped(place):
        words = {"true": 1, "false": 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0}
        given = words.get(given.strip().lower(), math.nan)
    if not isinstance(given, bool | int | float):
        raise TypeError(f"{place}: label must be true or false, got {type(value).__name__} {shown(value)}")
    if given not in (0, 1):
        raise ValueError(f"{place}: label must be true or false, got {shown(value)}")
    return bool(given)


def _number(value: Any, name: str, place: str) -> float | bool:
    """A finite number, or a bool for ``label``. CSV cells are parsed, because they have no type."""
    where = f"{place}: {name}"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and is_untyped(place):
        word = value.strip().lower()
        if name == "label" and word in ("true", "false"):
            return word == "true"
        try:
            value = float(word)
        except ValueError:
            raise ValueError(f"{where} must be a number, got {shown(value)}") from None
    if not isinstance(value, (bool, int, float)) or (isinstance(value, bool) and name != "label"):
        raise TypeError(f"{where} must be a number, got {type(value).__name__} {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be finite, got {value}")
    if abs(value) > FLOAT32_MAX:
        raise ValueError(
            f"{where} must be a number up to {FLOAT32_MAX:.3g}, which float32 can hold, got {shown(value)}"
        )
    return value
