"""The origin of settings while an object is made: values from a file, and values given by the user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

loading: ContextVar[bool] = ContextVar("saved settings are being made", default=False)
_names: ContextVar[frozenset[str] | None] = ContextVar("settings given to the next object", default=None)


@contextmanager
def as_saved() -> Iterator[None]:
    """Within the block, settings count as saved ones, which may be without effect."""
    token = loading.set(True)
    try:
        yield
    finally:
        loading.reset(token)


@contextmanager
def as_given(names: Iterable[str]) -> Iterator[None]:
    """The first settings object made within the block counts these settings as given by the user."""
    token = _names.set(frozenset(names))
    try:
        yield
    finally:
        _names.reset(token)


def take_given(keywords: Iterable[str]) -> frozenset[str]:
    """Names of the settings that count as given for the object being made: those of ``as_given``, else all.

    Args:
        keywords: names of the settings that it is made with.
    """
    names = _names.get()
    if names is None:
        return frozenset(keywords)
    _names.set(None)  # settings inside these have names of their own
    return names
