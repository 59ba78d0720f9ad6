"""JSON files: written whole, and read back; a damaged file is an error that names it and what is wrong."""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textenv.utils.files import write_text


def json_values(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinities become None, keys texts, named tuples objects.

    >>> json_values({"loss": float("nan"), 2: (1.5, "a")})
    {'loss': None, '2': [1.5, 'a']}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "_asdict"):
        return json_values(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    return value


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = 2) -> None:
    """Write ``json_values(content)``; the file appears whole, and missing folders are made.

    Raises:
        TypeError: if JSON has no form for a value.
    """
    text = json.dumps(json_values(content), indent=indent, allow_nan=False)
    write_text(path, f"{text}\n")


def read_object(
    path: str | os.PathLike[str],
    fields: Mapping[str, type | tuple[type, ...]] | None = None,
    *,
    error: type[ValueError] = ValueError,
) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Args:
        path: the file.
        fields: name -> type or types, of fields that it must have; a float may be written as an integer.
        error: the exception for a file that does not hold what it should.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: (or ``error``) if it is no UTF-8 or no JSON, holds something else than an object, or a
            field is missing or of another type.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "run.json"
        >>> _ = file.write_text('{"step": 3}')
        >>> read_object(file, {"step": int})
        {'step': 3}
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as reason:  # UnicodeDecodeError and JSONDecodeError are both
        raise error(f"{path} is damaged, it is not JSON: {reason}") from reason
    except RecursionError as reason:
        raise error(f"{path} is damaged, it is nested too deeply") from reason
    if not isinstance(found, dict):
        raise error(f"{path} is damaged, it must hold a JSON object, got {reprlib.repr(found)}")
    for name, kind in (fields or {}).items():
        if name not in found:
            raise error(f"{path} is damaged, it lacks {name!r}")
        if not _is(found[name], kind):
            raise error(f"{path} is damaged, {name} must be {_spell(kind)}, got {reprlib.repr(found[name])}")
    return found


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def _spell(kind: type | tuple[type, ...]) -> str:
    words = {dict: "an object", list: "a list", str: "a text", int: "an integer", float: "a number"}
    words |= {bool: "true or false", type(None): "null"}
    return " or ".join(words.get(one, one.__name__) for one in (kind if isinstance(kind, tuple) else (kind,)))
