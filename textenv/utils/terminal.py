"""Text and tables for the terminal. Generated text is untrusted: control characters are escaped."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def printable(text: str) -> str:
    r"""Make text safe to print on one line: control and format characters are escaped.

    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb\\nc'
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else c
        for c in text
    )


def shorten(text: str, *, max_chars: int | None = None, encoding: str = "utf-8") -> str:
    r"""Text on one line, control characters escaped, cut to a length, encodable in ``encoding``.

    >>> shorten("\x1b[31mred\x1b[0m\nnext")
    '\\x1b[31mred\\x1b[0m\\nnext'
    >>> shorten("a" * 10, max_chars=4), shorten("é", encoding="ascii")
    ('aaa…', '?')
    """
    text = printable(text)
    if max_chars is not None and len(text) > max_chars:
        text = text[: max_chars - 1] + "…"
    return text.encode(encoding, "replace").decode(encoding)


def number(value: float) -> str:
    """A number in few characters.

    >>> number(0.123456), number(1.23456e-5), number(12345.6), number(-0.0), number(float("nan"))
    ('0.1235', '1.235e-05', '12,346', '0', 'nan')
    """
    value += 0.0  # minus zero would be printed as "-0", like a small negative number
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def text_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    title: str | None = None,
    max_chars: int = 200,
    encoding: str = "utf-8",
) -> Table:
    """A rich table of numbers and untrusted text; no cell is read as markup.

    Args:
        columns: headings.
        rows: cells; a number is right-aligned if its whole column is numbers.
        title: heading of the table.
        max_chars: longest text of a cell in characters.
        encoding: of the terminal.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def cell(value: Any) -> Text:
        shown = number(value) if isinstance(value, int | float) else str(value)
        return Text(shorten(shown, max_chars=max_chars, encoding=encoding))

    table = Table(box=box.SIMPLE, title=None if title is None else cell(title), show_edge=False)
    for i, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        table.add_column(cell(name), justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    return table
