"""Statistics of few runs (Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice").

Pure functions of numpy arrays. Shape letters: R runs (seeds) of an agent on one task, T tasks, K thresholds.
Scores come as one array of R runs for each of the T tasks; the number of runs may differ by task. Everything
random is a function of ``seed``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textenv.utils.extras import import_extra

stats = import_extra("scipy.stats", extra="study", what="a comparison study")

Floats = NDArray[np.float64]
Statistic = Literal["iqm", "mean", "median"]

RESAMPLES = 2000
"""Bootstrap resamples."""
EXACT_RUNS = 14
"""Up to this number of pairs the sign-flip test tries all 2^n signs."""
MIN_SEEDS = 5
"""With fewer seeds no winner is declared, and fewer runs have no interval."""


class Interval(NamedTuple):
    """A statistic with its confidence interval; the ends are NaN where there are too few runs for one."""

    value: float
    low: float
    high: float


def iqm(scores: ArrayLike, axis: int | None = None) -> Any:
    """Interquartile mean: the mean without the lowest and highest quarter (each rounded down to whole runs).

    >>> float(iqm([0.0, 1.0, 2.0, 3.0, 100.0]))
    2.0
    """
    return stats.trim_mean(np.asarray(scores, float), 0.25, axis=axis)


_FUNCTIONS: dict[str, Callable[..., Any]] = {"iqm": iqm, "mean": np.mean, "median": np.median}


def aggregate(scores: Sequence[ArrayLike], statistic: Statistic = "iqm") -> float:
    """IQM, mean or median over all runs of all tasks together, as in the paper's section 4.3.

    Args:
        scores: for each of T tasks, its R scores.
        statistic: "iqm", "mean" or "median".
    """
    return float(_FUNCTIONS[statistic](np.concatenate(_tasks(scores))))


def interval(
    scores: Sequence[ArrayLike],
    statistic: Statistic = "iqm",
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A statistic with a stratified bootstrap interval: runs are resampled within each task.

    Percentile and BCa intervals of a mean of 10 runs cover the true value in 87 to 92 % instead of 95 % of
    cases (simulated). So the percentiles are moved outwards (Hesterberg 2015, "What teachers should know
    about the bootstrap", section 4.3): by sqrt(R / (R - 1)) for the variance that resampling loses, and for
    the mean also from normal to t quantiles. With 10 runs the coverage is then 91 to 96 % for means,
    medians and IQMs of normal, uniform, skewed and two-peaked scores; with 5 runs it is 86 to 94 %, and as
    little as 74 % for the mean of scores with two peaks. Fewer than 5 runs in all, or 2 on a task, have no
    interval.

    Args:
        scores: for each of T tasks, its R scores.
        statistic: "iqm", "mean" or "median".
        confidence: nominal coverage.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.
    """
    tasks = _tasks(scores)
    value = aggregate(tasks, statistic)
    runs = min(len(task) for task in tasks)
    if _too_few(tasks):
        return Interval(value, math.nan, math.nan)
    function = _FUNCTIONS[statistic]

    def together(*resampled: Floats, axis: int) -> Any:
        return function(np.concatenate(resampled, axis=axis), axis=axis)

    tail = (1 - confidence) / 2
    quantile = stats.t.ppf(tail, runs - 1) if statistic == "mean" else stats.norm.ppf(tail)
    widened = 1 - 2 * float(stats.norm.cdf(math.sqrt(runs / (runs - 1)) * quantile))
    return Interval(value, *_percentiles(tasks, together, widened, resamples, seed))


def improvement_probability(x_scores: Sequence[ArrayLike], y_scores: Sequence[ArrayLike]) -> float:
    """P(X > Y): how likely a run of X scores above one of Y on a task drawn at random (section 4.3).

    A tie counts one half: the Mann-Whitney statistic divided by the number of pairs, averaged over tasks.

    >>> improvement_probability([[1.0, 2.0]], [[0.0, 2.0]])
    0.625
    """
    pairs = zip(_tasks(x_scores), _tasks(y_scores), strict=True)
    return float(np.mean([_wins(x, y) for x, y in pairs]))


def improvement_interval(
    x_scores: Sequence[ArrayLike],
    y_scores: Sequence[ArrayLike],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """P(X > Y) with a stratified percentile bootstrap interval, seeds resampled together.

    Args:
        x_scores: for each of T tasks, R scores of X, in the order of the seeds.
        y_scores: the same of Y, on the same seeds.
        confidence: nominal coverage.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.

    Raises:
        ValueError: if the runs do not pair up.
    """
    x, y = _tasks(x_scores), _tasks(y_scores)
    _check_paired(x, y)
    value = improvement_probability(x, y)
    if _too_few(x):
        return Interval(value, math.nan, math.nan)

    def probability(*index: NDArray[np.int64], axis: int) -> Any:
        wins = [_wins(a[i], b[i]) for a, b, i in zip(x, y, index, strict=True)]
        return np.mean(wins, axis=0)

    rows = [np.arange(len(task)) for task in x]
    return Interval(value, *_percentiles(rows, probability, confidence, resamples, seed))


def performance_profile(scores: Sequence[ArrayLike], thresholds: ArrayLike) -> Floats:
    """Fraction of runs that score above each threshold, averaged over tasks (section 4.2): (K,).

    >>> performance_profile([[0.2, 0.6], [0.9, 0.9]], [0.0, 0.5, 0.8, 1.0]).tolist()
    [1.0, 0.75, 0.5, 0.0]
    """
    at = np.asarray(thresholds, float)
    return np.mean([np.mean(task[:, None] > at, axis=0) for task in _tasks(scores)], axis=0)


def sign_flip_test(x_scores: Sequence[ArrayLike], y_scores: Sequence[ArrayLike], *, seed: int = 0) -> float:
    """Two-sided p-value of a paired permutation test of equal scores of X and Y.

    Under the null hypothesis each difference has either sign with equal probability. The statistic is the
    sum of the differences; all 2^n sign patterns count up to n = 14 pairs, 10,000 random ones beyond.

    Args:
        x_scores: for each of T tasks, R scores of X, in the order of the seeds.
        y_scores: the same of Y, on the same seeds.
        seed: seed of the random sign patterns.

    Raises:
        ValueError: if the runs do not pair up.

    >>> sign_flip_test([[3.0, 5.0, 4.0]], [[1.0, 2.0, 2.0]])  # 2 of the 8 patterns are as far from 0
    0.25
    """
    x, y = _tasks(x_scores), _tasks(y_scores)
    _check_paired(x, y)
    differences = np.concatenate(x) - np.concatenate(y)
    if len(differences) < 2 or not differences.any():
        return 1.0
    patterns = 2 ** len(differences) if len(differences) <= EXACT_RUNS else 10_000
    found = stats.permutation_test(
        (differences,),
        lambda values, axis: np.sum(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=patterns,
        rng=np.random.default_rng(seed),
    )
    return float(min(1.0, found.pvalue))


def smallest_p(pairs: int) -> float:
    """The smallest p-value that ``sign_flip_test`` can give for so many pairs: all differences of one sign.

    >>> smallest_p(5), smallest_p(6)
    (0.0625, 0.03125)
    """
    return 2.0 ** (1 - pairs) if pairs <= EXACT_RUNS else 2 / 10_001


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for multiple tests (Holm 1979), in the given order.

    >>> [round(p, 4) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, highest, count = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _tasks(scores: Sequence[ArrayLike]) -> list[Floats]:
    tasks = [np.asarray(task, float) for task in scores]
    for task in tasks:
        if task.ndim != 1 or not len(task):
            raise ValueError(f"scores must be one list of at least 1 run per task, got shape {task.shape}")
    if not tasks:
        raise ValueError("scores must hold at least 1 task, got none")
    return tasks


def _too_few(tasks: Sequence[Floats]) -> bool:
    """Whether there are too few runs for an interval."""
    return min(len(task) for task in tasks) < 2 or sum(len(task) for task in tasks) < MIN_SEEDS


def _check_paired(x: Sequence[Floats], y: Sequence[Floats]) -> None:
    x_runs, y_runs = [len(task) for task in x], [len(task) for task in y]
    if x_runs != y_runs:
        raise ValueError(f"paired runs must be on the same tasks and seeds, got {x_runs} and {y_runs} runs")


def _wins(x: Floats, y: Floats) -> Any:
    """Fraction of pairs that x wins; draws count half: (..., R) and (..., S) -> (...)."""
    gap = x[..., :, None] - y[..., None, :]
    return np.mean((gap > 0) + 0.5 * (gap == 0), axis=(-2, -1))


def _percentiles(
    samples: Sequence[NDArray[Any]],
    statistic: Callable[..., Any],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    found = stats.bootstrap(
        samples,
        statistic,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
