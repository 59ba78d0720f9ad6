"""Help for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


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
