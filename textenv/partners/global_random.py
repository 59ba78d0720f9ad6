"""Random numbers of libraries that use global generators: each user gets a state of its own."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any

import numpy as np


class GlobalRandom:
    """Within a ``with`` block, `random` and ``numpy.random`` go on from this object's own state.

    Outside, their state is what it was before, so calls of several objects do not disturb each other. Not for
    use in threads, which share the global generators.

    Args:
        seed: of the state.

    Example:
        >>> first, second = GlobalRandom(0), GlobalRandom(0)
        >>> with first:
        ...     a = random.random()
        >>> with second:
        ...     b = random.random()
        >>> with first:
        ...     c = random.random()
        >>> a == b, a == c
        (True, False)
    """

    def __init__(self, seed: int) -> None:
        legacy = np.random.RandomState(seed % 2**32)
        self._own: tuple[Any, Any] = random.Random(seed).getstate(), legacy.get_state()
        self._outside: tuple[Any, Any] | None = None

    def __enter__(self) -> GlobalRandom:
        self._outside = random.getstate(), np.random.get_state()
        self._set(self._own)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own = random.getstate(), np.random.get_state()
        assert self._outside is not None
        self._set(self._outside)
        self._outside = None

    @staticmethod
    def _set(state: tuple[Any, Any]) -> None:
        random.setstate(state[0])
        np.random.set_state(state[1])
