"""Users' regular expressions, in Python's syntax and with a time limit.

``re`` cannot be interrupted: a pattern that backtracks, such as ``(a|aa)+$``, may run forever on a long text.
Patterns are checked with ``re`` and run with ``regex``, which has a time limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import regex

from textenv.scoring import RewardError

TIME_LIMIT = 5.0
"""Default time limit for one text, in seconds."""
_REPEAT = re.compile(r"\{(\d+(,\d*)?|,\d*)\}")
_SET = re.compile(r"\[\^?\]?")
"""A bracket that closes right at the start of a set is a member of it."""
_NAMED = re.compile(r"\\N\{[^}]*\}")


class Pattern:
    r"""A compiled pattern; ``regex``'s match objects work like those of ``re``.

    Character classes are those of ``regex``: ``\w`` contains combining marks, too.

    Args:
        name: of the field that holds it, for errors.
        pattern: a regular expression as Python's ``re`` takes it.
        flags: of ``re``.
        timeout: seconds for one text.

    Raises:
        ValueError: if it is not a regular expression.

    Example:
        >>> Pattern("regex: pattern", "a{e}").search("a{e}").span()
        (0, 4)
    """

    def __init__(
        self, name: str, pattern: Any, *, flags: int = re.NOFLAG, timeout: float = TIME_LIMIT
    ) -> None:
        self.name, self.pattern, self.timeout = name, pattern, timeout
        if not isinstance(pattern, str):
            raise ValueError(f"{name} must be a regular expression, got {pattern!r}")
        try:
            self._compiled: Any = _compiled(pattern, int(flags))
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{name} must be a regular expression, got {pattern!r}: {error}") from error

    @property
    def groups(self) -> int:
        """Number of groups."""
        return int(self._compiled.groups)

    def search(self, text: str, how: str = "search") -> Any:
        """The match or None; ``how`` is "search", "match" or "fullmatch".

        Raises:
            RewardError: if the time limit is over.
        """
        try:
            return getattr(self._compiled, how)(text, timeout=self.timeout)
        except TimeoutError as error:
            raise self._too_slow(text) from error

    def finditer(self, text: str) -> Iterator[Any]:
        """All matches, within one time limit.

        Raises:
            RewardError: if the time limit is over.
        """
        try:
            yield from self._compiled.finditer(text, timeout=self.timeout)
        except TimeoutError as error:
            raise self._too_slow(text) from error

    def _too_slow(self, text: str) -> RewardError:
        return RewardError(
            f"{self.name} {self.pattern!r} was not matched within {self.timeout:g} s, its time limit; "
            f"write it so that it does not backtrack, or raise timeout; the text was {text!r}"
        )


@lru_cache(maxsize=4096)
def _compiled(pattern: str, flags: int) -> Any:
    checked = re.compile(pattern, flags)
    return regex.compile(_as_regex(pattern, bool(checked.flags & re.VERBOSE)), flags | regex.VERSION0)


def _as_regex(pattern: str, verbose: bool) -> str:
    r"""The pattern with braces and brackets escaped that have a meaning in ``regex`` only.

    These are approximate matching (``{e}``) and named sets (``[[:alpha:]]``).

    >>> print(_as_regex(r"\boxed{e} a{2,} [[:x] \{i}", False))
    \boxed\{e} a{2,} [\[:x] \{i}
    """
    found: list[str] = []
    place, in_set = 0, False
    while place < len(pattern):
        here = pattern[place]
        taken = written = here
        if here == "\\":
            named = _NAMED.match(pattern, place)
            taken = written = named.group() if named else pattern[place : place + 2]
        elif in_set:
            in_set = here != "]"
            written = "\\[" if here == "[" else here
        elif pattern.startswith("(?#", place):
            taken = written = pattern[place : pattern.index(")", place) + 1]
        elif verbose and here == "#":
            taken = written = pattern[place:].split("\n", 1)[0]
        elif here == "[":
            opening = _SET.match(pattern, place)
            assert opening is not None
            taken = written = opening.group()
            in_set = True
        elif here == "{":
            repeat = _REPEAT.match(pattern, place)
            taken = written = repeat.group() if repeat else here
            written = written if repeat else "\\{"
        found.append(written)
        place += len(taken)
    return "".join(found)
