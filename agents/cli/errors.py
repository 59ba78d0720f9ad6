"""The error for invalid command lines."""

from __future__ import annotations


class UsageError(ValueError):
    """The command line or a configuration file is invalid."""
