"""Names in registries: entering them, and help for mistyped ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def registrar(kind: str, name: str, known: dict[str, Any]) -> Callable[[T], T]:
    """Decorator: enter what it decorates into the registry ``known`` under ``name``.

    Args:
        kind: what is registered, for the error.
        name: its name.
        known: name -> what is registered.

    Raises:
        ValueError: if the name is taken.

    Example:
        >>> known = {}
        >>> registrar("sum", "double", known)(lambda x: 2 * x) is known["double"]
        True
        >>> registrar("sum", "double", known)
        Traceback (most recent call last):
            ...
        ValueError: sum 'double' is already registered
    """
    if name in known:
        raise ValueError(f"{kind} {name!r} is already registered")

    def register(value: T) -> T:
        known[name] = value
        return value

    return register


def nearest_first(name: Any, known: Iterable[str]) -> list[str]:
    """Known names: the three that look most like ``name``, then the others by the alphabet.

    >>> nearest_first("cat", ["dog", "bat"])
    ['bat', 'dog']
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(name).lower(), names, n=3, cutoff=0.0)
    return [*close, *(other for other in names if other not in close)]


def nearest(name: Any, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the known names, the nearest first.

    >>> nearest("clip", ["epochs", "clip_range"])
    'known: clip_range, epochs'
    """
    return f"known: {', '.join(nearest_first(name, known)) or 'none'}"
