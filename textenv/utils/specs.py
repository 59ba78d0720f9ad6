"""Specs: a registered name with arguments, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def split_spec(spec: Any) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of a spec; None if it has none of the three forms.

    >>> split_spec("length"), split_spec(("length", {"n": 5})), split_spec({"name": "length", "n": 5})
    (('length', {}), ('length', {'n': 5}), ('length', {'n': 5}))
    >>> split_spec(["length", 5]) is None
    True
    """
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        arguments = dict(spec)
        return arguments.pop("name"), arguments
    if isinstance(spec, list | tuple) and len(spec) in (1, 2) and isinstance(spec[0], str):
        arguments = spec[1] if len(spec) == 2 else {}
        if isinstance(arguments, Mapping) and all(isinstance(key, str) for key in arguments):
            return spec[0], dict(arguments)
    return None
