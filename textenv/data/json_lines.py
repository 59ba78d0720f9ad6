"""Read JSON-lines files: one row at a time with exact errors, or faster in blocks of rows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

from textenv.data.row_blocks import Block, Row, row_blocks
from textenv.utils.json_text import parse_json

_BLOCK_BYTES = 2**16
"""Bytes that are read and parsed at once (the last line is completed). Small blocks create too few objects to
start Python's garbage collector."""
_DECODER = json.JSONDecoder()


class JsonLines:
    """The rows of one file; blank lines are skipped.

    Calling it starts a pass over (place, row). ``blocks`` gives the same rows and errors, faster.

    Args:
        path: of the file, UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> Iterator[Row]:
        """The rows, one at a time."""
        return _rows(decoded_lines(self._path), self._path)

    def blocks(self) -> Iterator[Block]:
        """The rows in blocks.

        Raises:
            ValueError: as ``__call__``, after all rows before the invalid one.
        """
        path, number, start = self._path, 1, 0
        with open(path, "rb") as file:
            while raw := file.read(_BLOCK_BYTES) + file.readline():
                rows = _parsed(raw, number)
                if rows is not None:
                    yield Block(rows, partial(_place, path, number))
                else:
                    lines = _decoded(io.BytesIO(raw), path, number, start)
                    yield from row_blocks(_rows(lines, path))
                number += raw.count(b"\n")
                start += len(raw)


def _place(path: Path, first: int, i: int) -> str:
    return f"{path}:{first + i}"


def decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text with its line break) of a UTF-8 file, without a byte order mark.

    Raises:
        ValueError: if the file is not UTF-8. The message names the file, line and byte.
    """
    with open(path, "rb") as file:
        yield from _decoded(file, path)


def _decoded(file: IO[bytes], path: Path, first: int = 1, start: int = 0) -> Iterator[tuple[int, str]]:
    """``decoded_lines`` of a part of the file that begins with line ``first`` at byte ``start``."""
    for number, raw in enumerate(file, start=first):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}:{number}: not UTF-8: byte 0x{raw[error.start]:02x} at offset "
                f"{start + error.start} of the file; save it as UTF-8"
            ) from None
        start += len(raw)
        yield number, text


def _rows(lines: Iterable[tuple[int, str]], path: Path) -> Iterator[Row]:
    for number, text in lines:
        if text.strip():
            where = f"{path}:{number}"
            row = parse_json(text, where)
            if not isinstance(row, dict):
                raise ValueError(
                    f"{where}: expected a JSON object with column names, got {type(row).__name__}"
                )
            yield where, row


def _parsed(raw: bytes, number: int) -> list[dict[str, Any]] | None:
    """One object per line, or None if the lines need the slow reader (blank lines, errors, repeated keys)."""
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        values, ends = map(list, zip(*map(_DECODER.raw_decode, lines), strict=True))
    except (ValueError, RecursionError):
        return None
    if ends != list(map(len, lines)) or set(map(type, values)) != {dict}:
        return None
    if _pairs_at_most(text) == _keys(values, nested=text.count("{") > len(values)):
        return values
    for line, value in zip(lines, values, strict=True):
        if _pairs_at_most(line) != _keys([value], nested=True):
            try:
                parse_json(line, "")
            except ValueError:
                return None
    return values


def _pairs_at_most(text: str) -> int:
    """Upper bound on the number of keys in JSON texts.

    Every key is followed by a colon after a quote or white space. Strings may contain the same characters, so
    the count may be too high.
    """
    return sum(text.count(before) for before in ('":', " :", "\t:", "\r:", "\n:"))


def _keys(objects: list[dict[str, Any]], *, nested: bool) -> int:
    """Number of keys of parsed objects. It is lower than in their text if an object repeats a key."""
    count, level = sum(map(len, objects)), chain.from_iterable(map(dict.values, objects))
    while nested:
        inner = [value for value in level if type(value) is dict or type(value) is list]
        if not inner:
            break
        dicts = [value for value in inner if type(value) is dict]
        count += sum(map(len, dicts))
        lists = (value for value in inner if type(value) is list)
        level = chain(chain.from_iterable(map(dict.values, dicts)), chain.from_iterable(lists))
    return count
