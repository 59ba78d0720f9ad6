"""Help for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def nearest_first(name: Any, known: Iterable[str]) -> list[str]:
    """Known names, those that look most like ``name`` first.

    >>> nearest_first("cat", ["dog", "bat"])
    ['bat', 'dog']
    """
    wanted = str(name).lower()
    return sorted(
        known, key=lambda item: (-difflib.SequenceMatcher(None, wanted, item.lower()).ratio(), item)
    )
