"""JSON that people wrote, parsed with errors that name the place and hide nothing."""

from __future__ import annotations

import json
from typing import Any

from textenv.utils.names import shown


def parse_json(text: str, where: str, *, lines: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: the text.
        where: the place, for errors: a file, with its line if the text is one.
        lines: the text is a whole file; errors add the line to the place.

    Raises:
        ValueError: if it is not JSON, an object has a key twice (all but the last would be lost), an integer
            has thousands of digits, or brackets are nested too deeply.

    >>> parse_json('{"a": 1, "a": 2}', "rows.jsonl:3")
    Traceback (most recent call last):
    ...
    ValueError: rows.jsonl:3: the key 'a' stands twice in an object
    """
    try:
        return _DECODER.decode(text)
    except _TwiceError as error:
        raise ValueError(f"{where}: the key {shown(error.args[0])} stands twice in an object") from None
    except json.JSONDecodeError as error:
        place = f"{where}:{error.lineno}" if lines else where
        raise ValueError(f"{place}: not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"{where}: not JSON of records: brackets are nested too deeply") from None
    except ValueError as error:  # an integer that Python refuses to read
        raise ValueError(f"{where}: a number cannot be read: {error}") from None


class _TwiceError(Exception):
    """A key stands twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
