"""Write and read JSON files. Writing is atomic; errors about a damaged file name it and the fault."""

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
    """Convert to JSON values: NaN and infinity become None, keys strings, named tuples dictionaries.

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
    """Write ``json_values(content)`` atomically; missing parent folders are made.

    Raises:
        TypeError: if a value cannot be written as JSON.
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
        fields: required fields: name -> type or types. An integer is accepted for a float.
        error: exception to raise for invalid content.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: (or ``error``) if the file is not UTF-8 or not JSON, is not an object, or a field is
            missing or has the wrong type.

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
    except ValueError as reason:  # UnicodeDecodeError or JSONDecodeError
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
    words = {dict: "an object", list: "a list", str: "a string", int: "an integer", float: "a number"}
    words |= {bool: "true or false", type(None): "null"}
    return " or ".join(words.get(one, one.__name__) for one in (kind if isinstance(kind, tuple) else (kind,)))
