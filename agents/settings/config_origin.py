"""Where the values of settings come from while the settings are made: saved ones, and those a user gave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

loading: ContextVar[bool] = ContextVar("saved settings are being made", default=False)
_names: ContextVar[frozenset[str] | None] = ContextVar("settings given to the next object", default=None)


@contextmanager
def as_saved() -> Iterator[None]:
    """Within the block settings are made as saved ones, which may be without effect."""
    token = loading.set(True)
    try:
        yield
    finally:
        loading.reset(token)


@contextmanager
def as_given(names: Iterable[str]) -> Iterator[None]:
    """The first settings object made within the block counts these of its settings as given."""
    token = _names.set(frozenset(names))
    try:
        yield
    finally:
        _names.reset(token)


def take_given(keywords: Iterable[str]) -> frozenset[str]:
    """Names of the settings that an object being made counts as given: those of ``as_given``, else all.

    Args:
        keywords: names of the settings that it is made with.
    """
    names = _names.get()
    if names is None:
        return frozenset(keywords)
    _names.set(None)  # settings inside these have names of their own
    return names
