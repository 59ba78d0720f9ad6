"""Warnings about a data set, counted while it is read: repeated records, prompts repeated in completions."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from textenv.prompts.messages import are_plain

_LONG = 12
"""A completion that starts with a prompt of at least this many characters does not do so by chance."""


class Repeats:
    """Counts repeated records. It stores a hash of 8 bytes per record, not the record.

    Args:
        source: name of the data, for the warning.
        what: which part of a record is compared, for the warning.
    """

    def __init__(self, source: str, what: str) -> None:
        self._source, self._what = source, what
        self._hashes = array("q")

    def add(self, content: object) -> None:
        """Count one record."""
        self.extend([content])

    def extend(self, contents: Sequence[Any]) -> None:
        """Count several records."""
        if set(map(type, contents)) == {str}:
            self._hashes.extend(map(hash, contents))
        elif are_plain(contents):
            self._hashes.extend(hash(tuple([tuple(m.items()) for m in messages])) for messages in contents)
        elif len(contents) > 1:  # the hash of a record must not depend on the other records in the call
            for content in contents:
                self.extend([content])
        else:
            self._hashes.extend(
                hash(content if isinstance(content, str) else repr(content)) for content in contents
            )

    def warn(self, stacklevel: int = 3) -> None:
        """Warn if records repeat; the warning gives their number."""
        hashes = np.sort(np.frombuffer(self._hashes, dtype=np.int64))
        if repeats := int((hashes[1:] == hashes[:-1]).sum()):
            warnings.warn(
                f"{self._source}: {repeats} of {len(hashes)} records repeat an earlier one's {self._what}",
                stacklevel=stacklevel,
            )


class RepeatedPrompts:
    """Counts records whose completions begin with the text of their prompt.

    A short prompt may be repeated by chance. So short prompts are counted only if every record has several
    completions and all of them begin with the prompt.

    Args:
        source: name of the data, for the warning.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._count = self._in_pairs = self._long = 0

    def add(self, prompt: object, *completions: object) -> None:
        """Count one record; prompts and completions that are not texts are ignored."""
        self._count += 1
        if isinstance(prompt, str) and prompt.strip():
            start = prompt.strip()
            if all(isinstance(text, str) and text.lstrip().startswith(start) for text in completions):
                self._in_pairs += len(completions) > 1
                self._long += len(start) >= _LONG

    def warn(self) -> None:
        """Warn if completions begin with their prompt; the warning gives their number."""
        if found := max(self._long, self._in_pairs if self._in_pairs == self._count else 0):
            warnings.warn(
                f"{self._source}: in {found} of {self._count} records the completion begins with the text of "
                "the prompt, so it is learned twice; leave the prompt out of the completions",
                stacklevel=3,
            )
