"""Names in registries: entering them, and help for mistyped ones; values as error messages show them."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_MOST_NAMES = 40
"""Names that an error lists; a vocabulary or a label set has many more."""


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
    """``repr(value)`` for an error message, cut where it is long.

    >>> shown("ab"), shown(list(range(1000)))
    ("'ab'", '[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...]')
    """
    return _SHORT.repr(value)


def listed(values: Iterable[Any], limit: int = _MOST_NAMES) -> str:
    """Values with commas between them; those after the first ``limit`` are only counted.

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
    """Decorator: enter what it decorates into the registry ``known`` under ``name``.

    Args:
        kind: what is registered, for the error.
        name: its name.
        known: name -> what is registered.

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
    # Comparing with everything takes seconds where there are tens of thousands.
    some = names if len(names) <= 1000 else [other for other in names if other in str(name)][:1000]
    close = close_names(name, some, cutoff=0.0)
    rest = [other for other in names if other not in set(close)]
    return f"{what}: {listed([*close, *rest]) or 'none'}"
