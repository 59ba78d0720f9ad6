"""Warnings about a whole data set, counted while it is read: records that repeat, prompts in completions."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from textenv.prompts.messages import are_plain

_SURELY = 12
"""Characters of a prompt that no completion repeats by chance."""


class Repeats:
    """Counts records that were there before; it keeps a hash of each, 8 bytes, not the record.

    Args:
        source: where the records come from, for the warning.
        what: what of a record is compared.
    """

    def __init__(self, source: str, what: str) -> None:
        self._source, self._what = source, what
        self._hashes = array("q")

    def add(self, content: object) -> None:
        """Note one record."""
        self.extend([content])

    def extend(self, contents: Sequence[Any]) -> None:
        """Note several records."""
        if set(map(type, contents)) == {str}:
            self._hashes.extend(map(hash, contents))
        elif are_plain(contents):
            self._hashes.extend(hash(tuple([tuple(m.items()) for m in messages])) for messages in contents)
        elif len(contents) > 1:  # what one record counts as must not depend on those beside it
            for content in contents:
                self.extend([content])
        else:
            self._hashes.extend(
                hash(content if isinstance(content, str) else repr(content)) for content in contents
            )

    def warn(self, stacklevel: int = 3) -> None:
        """Warn if records repeat, with their number."""
        hashes = np.sort(np.frombuffer(self._hashes, dtype=np.int64))
        if repeats := int((hashes[1:] == hashes[:-1]).sum()):
            warnings.warn(
                f"{self._source}: {repeats} of {len(hashes)} records repeat an earlier one's {self._what}",
                stacklevel=stacklevel,
            )


class HeldPrompts:
    """Counts records whose completions begin with the text of the prompt, which would be learned twice.

    Whether they do by chance cannot be seen in one record, so short prompts count only if all pairs agree.

    Args:
        source: where the records come from, for the warning.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._count = self._held = self._surely = 0

    def add(self, prompt: object, *completions: object) -> None:
        """Note one record; only texts are looked at."""
        self._count += 1
        if isinstance(prompt, str) and prompt.strip():
            start = prompt.strip()
            if all(isinstance(text, str) and text.lstrip().startswith(start) for text in completions):
                self._held += len(completions) > 1
                self._surely += len(start) >= _SURELY

    def warn(self) -> None:
        """Warn if completions hold the prompt, with their number."""
        if found := max(self._surely, self._held if self._held == self._count else 0):
            warnings.warn(
                f"{self._source}: in {found} of {self._count} records the completion begins with the text of "
                "the prompt, so it is learned twice; leave the prompt out of the completions",
                stacklevel=3,
            )
