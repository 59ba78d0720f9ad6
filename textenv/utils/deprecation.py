"""Warnings for names that were replaced and still work for one version."""

from __future__ import annotations

import warnings


def warn_renamed(old: str, new: str | None, *, stacklevel: int = 3) -> None:
    """Warn the caller of a deprecated name.

    Args:
        old: the name that was used.
        new: the name to use instead; None if there is none.
        stacklevel: see ``warnings.warn``; the default is the caller of the function that calls this one.
    """
    instead = "" if new is None else f": use {new}"
    warnings.warn(
        f"{old} is deprecated and will be removed in version 0.3{instead}",
        DeprecationWarning,
        stacklevel=stacklevel,
    )
