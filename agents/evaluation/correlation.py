"""Correlation coefficients of two lists of numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def pearson(x: Floats, y: Floats) -> float:
    """Pearson's linear correlation of two arrays (n,) that both vary, in [-1, 1].

    >>> round(pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])), 4)
    1.0
    """
    if len(x) == 2:
        return float(np.sign((x[1] - x[0]) * (y[1] - y[0])))
    return float(np.clip(np.vecdot(_direction(x), _direction(y)), -1.0, 1.0))


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's rank correlation of two arrays (n,) that both vary: Pearson's of the ranks, in [-1, 1].

    >>> round(spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 8.0, 27.0, 9.0])), 4)
    0.8
    """
    together = np.column_stack((ranks(x), ranks(y)))
    return float(np.asarray(np.corrcoef(together, rowvar=False))[1, 0])


def ranks(values: Floats) -> Floats:
    """Ranks from 1 on, (n,); equal values get the mean of their ranks.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def _direction(values: Floats) -> Floats:
    """Deviations from the mean, scaled to length 1 (first by the largest, so squares do not overflow)."""
    centered = values - values.mean()
    largest = np.abs(centered).max()
    return centered / (largest * np.linalg.norm(centered / largest, axis=-1))
