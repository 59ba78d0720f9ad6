"""The error of a command line that is not as it should be."""

from __future__ import annotations


class UsageError(ValueError):
    """The command line or a configuration file is not as it should be."""
