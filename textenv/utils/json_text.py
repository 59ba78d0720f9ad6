"""Strict JSON parser for users' files: errors name the place, and repeated keys are errors."""

from __future__ import annotations

import json
from typing import Any

from textenv.utils.names import shown


def parse_json(text: str, where: str, *, lines: bool = False) -> Any:
    """Parse a JSON text.

    Args:
        text: JSON.
        where: place for errors: a file, with the line if ``text`` is one line of it.
        lines: ``text`` is a whole file; errors add the line to the place.

    Raises:
        ValueError: if it is not JSON, an object repeats a key (Python would keep only the last value), an
            integer has more than 4,300 digits, or brackets are nested too deeply.

    >>> parse_json('{"a": 1, "a": 2}', "rows.jsonl:3")
    Traceback (most recent call last):
    ...
    ValueError: rows.jsonl:3: an object has the key 'a' twice
    """
    try:
        return _DECODER.decode(text)
    except _TwiceError as error:
        raise ValueError(f"{where}: an object has the key {shown(error.args[0])} twice") from None
    except json.JSONDecodeError as error:
        place = f"{where}:{error.lineno}" if lines else where
        raise ValueError(f"{place}: not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"{where}: brackets are nested too deeply") from None
    except ValueError as error:  # an integer that Python refuses to read
        raise ValueError(f"{where}: a number cannot be read: {error}") from None


class _TwiceError(Exception):
    """An object has a key twice; the argument is the key."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
