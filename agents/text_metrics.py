"""Repetition and diversity of token sequences: what reward alone does not show when a policy collapses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """The n-grams of a sequence, in order; none if it is shorter than n.

    Raises:
        ValueError: if n is below 1.

    >>> ngrams([1, 2, 3], 2)
    [(1, 2), (2, 3)]
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def repetition_n(tokens: Sequence[int], n: int = 3) -> float:
    """Share of a sequence's n-grams that it has said before (seq-rep-n, Welleck et al. 2020, section 6.1).

    Args:
        tokens: one response.
        n: length of the n-grams.

    Returns:
        1 - distinct / all n-grams, in [0, 1); 0 for a response too short to repeat one.

    >>> repetition_n([1, 2, 3, 1, 2, 3]), repetition_n([1, 2])
    (0.25, 0.0)
    """
    grams = ngrams(tokens, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_n(sequences: Iterable[Sequence[int]], n: int) -> float:
    """Distinct n-grams over all n-grams of a set of responses (distinct-n, Li et al. 2016, section 5.2).

    It falls as the set grows: compare sets of one size only.

    Returns:
        A share in (0, 1]; NaN if no response has n tokens.

    >>> distinct_n([[1, 2], [1, 2]], 1), distinct_n([[1, 2], [1, 2]], 2)
    (0.5, 0.5)
    """
    grams = [gram for tokens in sequences for gram in ngrams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")
