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


def close_names(name: Any, known: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Known names that look most like ``name``, the nearest first; upper case counts as lower.

    Args:
        name: what was asked for.
        known: names to choose from.
        count: how many at most.
        cutoff: how alike they must be, 0 to 1.

    >>> close_names("Bad", ["dog", "bat", "bag", "zoo"])
    ['bat', 'bag']
    """
    lowered = {other.lower(): other for other in sorted(known)}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=count, cutoff=cutoff)
    return [lowered[word] for word in close]


def nearest(name: Any, known: Iterable[str], what: str = "known") -> str:
    """The end of an error about an unknown name: the three nearest, then the others by the alphabet.

    Args:
        name: what was asked for.
        known: what there is.
        what: to call that.

    >>> nearest("clip", ["epochs", "clip_range"])
    'known: clip_range, epochs'
    """
    names = sorted(map(str, known))
    close = close_names(name, names, cutoff=0.0)
    return f"{what}: {', '.join([*close, *(other for other in names if other not in close)]) or 'none'}"
