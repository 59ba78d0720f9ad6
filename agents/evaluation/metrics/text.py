"""Repetition and diversity of token sequences; they show a policy collapse that the reward can miss."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def ngrams(tokens: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
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
    """Fraction of n-grams that occurred earlier in it (seq-rep-n, Welleck et al. 2020, section 6.1).

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


def distinct_n(sequences: Iterable[Sequence[Any]], n: int) -> float:
    """Distinct n-grams over all n-grams of a set of responses (distinct-n, Li et al. 2016, section 5.2).

    It falls as the set grows: compare only sets of equal size.

    Returns:
        A fraction in (0, 1]; NaN if no response has n tokens.

    >>> distinct_n([[1, 2], [1, 2]], 1), distinct_n([[1, 2], [1, 2]], 2)
    (0.5, 0.5)
    """
    grams = [gram for tokens in sequences for gram in ngrams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def entropy_n(sequences: Iterable[Sequence[Any]], n: int) -> float:
    """Entropy in nats of the distribution of n-grams over a set of responses; NaN if none has n tokens.

    With log2 it is the "entropy-n" of RL4LMs and GEM-metrics.

    >>> round(entropy_n([[1, 2], [1, 2]], 1), 4)  # log 2
    0.6931
    """
    counts = Counter(gram for tokens in sequences for gram in ngrams(tokens, n))
    if not counts:
        return float("nan")
    shares = np.array(list(counts.values())) / counts.total()
    return float(np.sum([-share * math.log(share) for share in shares]))


def msttr(sequences: Iterable[Sequence[Any]], segment: int = 100) -> float:
    """Mean segmental type-token ratio: distinct tokens in consecutive segments (Johnson 1944).

    Args:
        sequences: responses, joined one after the other and cut into segments; the rest is left off.
        segment: tokens of a segment.

    Returns:
        Mean of distinct over all tokens of a segment, in (0, 1]; NaN if there is not one whole segment.

    Raises:
        ValueError: if ``segment`` is below 1.

    >>> msttr([[1, 1, 2], [3, 4, 5]], segment=2)
    0.8333333333333334
    """
    if segment < 1:
        raise ValueError(f"segment must be >= 1, got {segment}")
    tokens = [token for sequence in sequences for token in sequence]
    starts = range(0, len(tokens) - segment + 1, segment)
    ratios = [len(set(tokens[start : start + segment])) / segment for start in starts]
    return sum(ratios) / len(ratios) if ratios else float("nan")
