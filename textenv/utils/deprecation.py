"""Warnings for names that were replaced and still work for one version."""

from __future__ import annotations

import warnings


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller of a deprecated name.

    Args:
        old: the name that was used.
        new: the name to use instead.
    """
    warnings.warn(f"{old} goes in version 0.3: use {new}", DeprecationWarning, stacklevel=3)
