"""Blocks of rows. Many rows are processed at once, which takes less time per row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeAlias

Row: TypeAlias = tuple[str, dict[str, Any]]
"""(place, {column: value})."""
Source: TypeAlias = Callable[[], Iterator[Row]]
"""Starts a new pass over the rows."""
_ROWS = 512
"""Rows per block. Small blocks create too few objects to start Python's garbage collector."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows."""

    rows: list[dict[str, Any]]
    place: Callable[[int], str]
    """Index of a row in the block -> its place, for errors."""

    def __iter__(self) -> Iterator[Row]:
        return ((self.place(i), row) for i, row in enumerate(self.rows))


class ChainedSource:
    """Concatenation of several sources."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def __call__(self) -> Iterator[Row]:
        """The rows of all sources in order."""
        return chain.from_iterable(source() for source in self._sources)

    def blocks(self) -> Iterator[Block]:
        """The blocks of all sources in order."""
        return chain.from_iterable(map(source_blocks, self._sources))


def source_blocks(source: Source) -> Iterator[Block]:
    """The rows of a source in blocks: from its method ``blocks`` if it has one, else from its rows."""
    blocks = getattr(source, "blocks", None)
    return row_blocks(source()) if blocks is None else blocks()


def row_blocks(rows: Iterator[Row]) -> Iterator[Block]:
    """Group rows into blocks. If reading a row fails, the rows before it are yielded before the error."""
    while True:
        block: list[Row] = []
        try:
            block.extend(islice(rows, _ROWS))
        except Exception:
            if block:
                yield _block(block)
            raise
        if not block:
            return
        yield _block(block)


def _block(rows: list[Row]) -> Block:
    places = [place for place, _ in rows]
    return Block([row for _, row in rows], places.__getitem__)
