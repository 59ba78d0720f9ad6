"""Names in registries, suggestions for mistyped ones, and values in error messages."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_MOST_NAMES = 40
"""Number of names that an error lists."""


class _Short(reprlib.Repr):
    """``repr`` of bounded length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxarray = 12
        self.maxstring = self.maxother = 240

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write an integer of more than 4,300 digits.
        return repr(x) if x.bit_length() < 512 else f"an integer of {x.bit_length()} bits"


_SHORT = _Short()


def shown(value: Any) -> str:
    """``repr(value)`` for an error message, shortened if it is long.

    >>> shown("ab"), shown(list(range(1000)))
    ("'ab'", '[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...]')
    """
    return _SHORT.repr(value)


def listed(values: Iterable[Any], limit: int = _MOST_NAMES) -> str:
    """Values separated by commas; those after the first ``limit`` are only counted.

    >>> listed(range(50), 3)
    '0, 1, 2 and 47 more'
    """
    items = [text if len(text) <= 80 else f"{text[:77]}..." for text in map(str, values)]
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def strings_in(value: Any) -> Iterator[str]:
    """Every string in nested mappings (their values), lists and tuples.

    >>> list(strings_in(["a", {"key": ("b", 1)}]))
    ['a', 'b']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from strings_in(inner)


def check_name(kind: str, name: Any) -> None:
    """Refuse a name that a file, a YAML key or a command line could not hold.

    >>> check_name("task", "my task")
    Traceback (most recent call last):
    ...
    ValueError: the name of a task must consist of letters, digits and '._+-', got 'my task'
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"the name of {_article(kind)} {kind} must consist of letters, digits and '._+-', "
            f"got {shown(name)}"
        )


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def registrar(kind: str, name: str, known: dict[str, Any]) -> Callable[[T], T]:
    """Decorator: add the object to the registry ``known`` under ``name``.

    Args:
        kind: of the object, for the error.
        name: of the object.
        known: the registry, name -> object.

    Raises:
        ValueError: if the name is malformed or taken.

    Example:
        >>> known = {}
        >>> registrar("sum", "double", known)(lambda x: 2 * x) is known["double"]
        True
        >>> registrar("sum", "double", known)
        Traceback (most recent call last):
            ...
        ValueError: sum 'double' is already registered
    """
    check_name(kind, name)
    if name in known:
        raise ValueError(f"{kind} {name!r} is already registered")

    def register(value: T) -> T:
        known[name] = value
        return value

    return register


def close_names(name: Any, known: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Known names most similar to ``name``, the nearest first; case is ignored.

    Args:
        name: the unknown name.
        known: names to choose from.
        count: largest number of results.
        cutoff: smallest similarity, 0 to 1.

    >>> close_names("Bad", ["dog", "bat", "bag", "zoo"])
    ['bat', 'bag']
    """
    lowered = {other.lower(): other for other in sorted(known)}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=count, cutoff=cutoff)
    return [lowered[word] for word in close]


def nearest(name: Any, known: Iterable[str], what: str = "known") -> str:
    """The end of an error about an unknown name: the three nearest, then the others in alphabetical order.

    Args:
        name: the unknown name.
        known: the known names.
        what: the word before the list.

    >>> nearest("clip", ["epochs", "clip_range"])
    'known: clip_range, epochs'
    """
    names = sorted(map(str, known))
    # Comparing with tens of thousands of names takes seconds.
    some = names if len(names) <= 1000 else [other for other in names if other in str(name)][:1000]
    close = close_names(name, some, cutoff=0.0)
    rest = [other for other in names if other not in set(close)]
    return f"{what}: {listed([*close, *rest]) or 'none'}"
