"""Statistics of few runs: hand-worked numbers, scipy's own, and the coverage that intervals really have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from textenv.agents.study import statistics as st

RUNS = 10
DRAWS = {
    "normal": lambda random, shape: random.normal(size=shape),
    "uniform": lambda random, shape: random.random(shape),
    "skewed": lambda random, shape: random.lognormal(0.0, 0.5, size=shape),
    "two peaks": lambda random, shape: np.where(
        random.random(shape) < 0.25, random.normal(0.4, 0.1, shape), random.normal(0.95, 0.03, shape)
    ),
}


def test_iqm_is_the_trimmed_mean_over_all_runs_of_all_tasks() -> None:
    scores = [np.array([1.0, 9.0, 4.0]), np.array([7.0, -3.0, 2.0, 5.0, 100.0])]
    # Of the 8 runs the 2 lowest and 2 highest are left out: 2, 4, 5, 7 stay.
    assert st.aggregate(scores, "iqm") == stats.trim_mean(np.concatenate(scores), 0.25) == 4.5
    assert st.aggregate(scores, "median") == 4.5
    assert st.aggregate(scores, "mean") == pytest.approx(125 / 8)


@pytest.mark.parametrize("statistic", ["iqm", "mean", "median"])
@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_intervals_of_ten_runs_hold_the_truth_as_often_as_they_say(statistic: str, draw: str) -> None:
    random = np.random.default_rng(3)
    truth = float(st._FUNCTIONS[statistic](DRAWS[draw](random, 2_000_000)))
    studies = 400
    held = 0
    for study in range(studies):
        scores = [DRAWS[draw](random, RUNS)]
        found = st.interval(scores, statistic, resamples=400, seed=study)  # type: ignore[arg-type]
        held += found.low <= truth <= found.high
    # Within 90 and 97 %, with two standard errors (1.1 %) of this simulation on either side.
    assert 0.90 - 0.022 <= held / studies <= 0.97 + 0.022


def test_intervals_are_stratified_and_reproducible() -> None:
    # Resampling within tasks leaves the gap between the tasks out of the interval.
    scores = [[0.0, 0.1, 0.0, 0.1, 0.05], [10.0, 10.1, 10.0, 10.1, 10.05]]
    found = st.interval(scores, "mean", seed=1)
    assert found.value == pytest.approx(5.05) and found.high - found.low < 0.2
    assert found == st.interval(scores, "mean", seed=1)
    assert found != st.interval(scores, "mean", seed=2)


@pytest.mark.parametrize("scores", [[[1.0, 2.0, 2.0, 3.0]], [[1.0] * 5, [2.0]]])
def test_few_runs_have_no_interval(scores: list[list[float]]) -> None:
    found = st.interval(scores)
    assert 1.0 <= found.value <= 2.0 and math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(st.improvement_interval(scores, scores).low)


def test_equal_runs_have_an_interval_without_width() -> None:
    assert st.interval([[1.0] * 5]) == (1.0, 1.0, 1.0)


def test_probability_of_improvement_by_hand() -> None:
    # Pairs of x and y: (2,1) won, (2,2) drawn, (3,1) and (3,2) won: 3.5 of 4; on the other task none of 1.
    assert st.improvement_probability([[2.0, 3.0]], [[1.0, 2.0]]) == 3.5 / 4
    assert st.improvement_probability([[2.0, 3.0], [0.0]], [[1.0, 2.0], [1.0]]) == 3.5 / 8
    assert st.improvement_probability([[1.0, 2.0]], [[1.0, 2.0]]) == 0.5
    ours, theirs = np.random.default_rng(0).normal(size=(2, 7))
    wins = stats.mannwhitneyu(ours, theirs).statistic / 49
    assert st.improvement_probability([ours], [theirs]) == pytest.approx(wins)


def test_interval_of_the_probability_of_improvement() -> None:
    better = st.improvement_interval([[5.0, 6.0, 7.0, 8.0, 9.0]], [[0.0, 1.0, 2.0, 3.0, 4.0]])
    assert better == (1.0, 1.0, 1.0)
    alike = st.improvement_interval([[1.0, 2.0, 3.0, 4.0, 5.0]], [[5.0, 4.0, 3.0, 2.0, 1.0]])
    assert alike.low < 0.5 < alike.high
    with pytest.raises(ValueError, match=r"same tasks and seeds, got \[2\] and \[1\] runs"):
        st.improvement_interval([[1.0, 2.0]], [[1.0]])


def test_performance_profile_by_hand() -> None:
    profile = st.performance_profile([[0.2, 0.4, 0.9], [0.5]], [0.0, 0.3, 0.5, 0.9])
    assert profile.tolist() == pytest.approx([1.0, (2 / 3 + 1) / 2, (1 / 3 + 0) / 2, 0.0])


def test_sign_flips_of_few_pairs_are_exact() -> None:
    # Differences 2, 3, 2: of the sums of (+-2, +-3, +-2) two of eight are as far from 0 as 7.
    assert st.sign_flip_test([[3.0, 5.0, 4.0]], [[1.0, 2.0, 2.0]]) == 2 / 8
    # Differences 1, 2, 4, -3: sum 4; |sum| >= 4 for 10, 8, 6, 4, 4 and their opposites.
    sums = [a + 2 * b + 4 * c + 3 * d for a in (1, -1) for b in (1, -1) for c in (1, -1) for d in (1, -1)]
    expected = sum(abs(total) >= 4 for total in sums) / 16
    assert st.sign_flip_test([[1.0, 2.0, 4.0, 0.0]], [[0.0, 0.0, 0.0, 3.0]]) == expected
    assert st.sign_flip_test([[1.0], [2.0]], [[1.0], [2.0]]) == 1.0


@pytest.mark.parametrize("pairs", [1, 5, 6, 10])
def test_the_smallest_p_value_is_that_of_differences_of_one_sign(pairs: int) -> None:
    ours = [np.arange(1.0, pairs + 1)]
    assert st.sign_flip_test(ours, [np.zeros(pairs)]) == pytest.approx(st.smallest_p(pairs))


def test_many_pairs_are_sampled_and_reproducible() -> None:
    ours = [np.random.default_rng(0).normal(0.3, 1.0, 30)]
    theirs = [np.zeros(30)]
    found = st.sign_flip_test(ours, theirs, seed=1)
    assert found == st.sign_flip_test(ours, theirs, seed=1)
    assert found == pytest.approx(stats.ttest_1samp(ours[0], 0.0).pvalue, abs=0.02)
    assert st.sign_flip_test([np.ones(30)], theirs) == st.smallest_p(30)


def test_the_test_errs_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    zeros = [np.zeros(7)]
    rejected = [st.sign_flip_test([random.standard_cauchy(7)], zeros) <= 0.05 for _ in range(1000)]
    # Of the 128 patterns 6 are below 0.05: 4.7 %; the standard error is 0.7 %.
    assert 0.025 <= np.mean(rejected) <= 0.065


def test_holm_by_hand() -> None:
    # 0.01 * 4; max(0.04, 0.02 * 3); max(0.06, 0.03 * 2); 0.5 * 1.
    assert st.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert st.holm([0.6, 0.7]) == [1.0, 1.0] and st.holm([]) == []


def test_scores_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 1 task, got none"):
        st.aggregate([])
    with pytest.raises(ValueError, match=r"at least 1 run per task, got shape \(0,\)"):
        st.aggregate([[1.0], []])
