"""Conclusions of a study in sentences: which agents are better, and which differences are not significant."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from textenv.agents.study.config import START
from textenv.agents.study.results import Results
from textenv.agents.study.statistics import (
    MIN_SEEDS,
    Interval,
    aggregate,
    holm,
    improvement_interval,
    sign_flip_test,
    smallest_p,
)

ALPHA = 0.05
"""Significance level: a difference counts if its adjusted p-value is at most this."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two agents on the tasks and seeds that both have finished."""

    better: str
    """Label of the one with the higher mean."""
    worse: str
    """Label of the other."""
    pairs: int
    """Tasks and seeds that both have finished."""
    gain: float
    """Mean difference of their scores."""
    improvement: Interval
    """Probability that a run of the better one beats one of the other."""
    p: float
    """Two-sided p-value of the paired sign-flip test."""
    adjusted_p: float = math.nan
    """The same after Holm's correction for all comparisons of the study."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "improvement": self.improvement._asdict()}


def comparisons(results: Results) -> list[Comparison]:
    """Every pair of agents that have finished runs in common."""
    found = []
    scores = {label: results.tuned_scores(label) for label in results.config.agents}
    for one, other in itertools.combinations(scores, 2):
        keys = [key for key in scores[one] if key in scores[other]]
        keys = [key for key in keys if math.isfinite(scores[one][key] - scores[other][key])]
        if not keys:
            continue
        x, y = results.by_task(scores[one], keys), results.by_task(scores[other], keys)
        gain = float(np.mean(np.concatenate(x) - np.concatenate(y)))
        if gain < 0:
            one, other, x, y, gain = other, one, y, x, -gain
        found.append(
            Comparison(
                better=one,
                worse=other,
                pairs=len(keys),
                gain=gain,
                improvement=improvement_interval(x, y),
                p=sign_flip_test(x, y),
            )
        )
    adjusted = holm([pair.p for pair in found])
    return [Comparison(**{**vars(pair), "adjusted_p": p}) for pair, p in zip(found, adjusted, strict=True)]


def conclusions(results: Results, pairs: list[Comparison]) -> list[str]:
    """The sentences of the report, the most important first."""
    ranked = ranking(results)
    lines = [_winner(results, ranked, pairs)] if ranked else ["No run has finished."]
    if ranked:
        lines += [*_against_start(results, ranked), *_by_reward(results, ranked)]
    return [*lines, *_unfinished(results), *results.notes]


def ranking(results: Results) -> list[tuple[str, float]]:
    """(label, IQM of its scores), the best first."""
    found = []
    for label in results.config.agents:
        values = [v for v in results.tuned_scores(label).values() if math.isfinite(v)]
        if values:
            found.append((label, aggregate([values])))
    return sorted(found, key=lambda item: -item[1])


def _winner(results: Results, ranked: list[tuple[str, float]], pairs: list[Comparison]) -> str:
    first, value = ranked[0]
    seeds = min(len({seed for _, seed in results.tuned_scores(label)}) for label, _ in ranked)
    top = f"the highest IQM by the {results.metric} has {first} ({value:.4g})"
    if len(ranked) == 1:
        return f"There is only one agent, so nothing is compared: {top}."
    if seeds < MIN_SEEDS:
        return (
            f"No winner can be called: {_count(seeds, 'seed')} {'is' if seeds == 1 else 'are'} too few to "
            f"compare agents, at least {MIN_SEEDS} are needed. So far, {top}."
        )
    own = [pair for pair in pairs if first in (pair.better, pair.worse)]
    beaten = [pair for pair in own if pair.better == first and pair.adjusted_p <= ALPHA]
    open_ = [pair for pair in own if pair not in beaten]
    if not open_:
        return f"A winner can be called: {top}, and it is better than {_names(beaten, first)}."
    line = f"No winner can be called: {top}, but it is not significantly better than {_names(open_, first)}"
    line += f"; it is better than {_names(beaten, first)}." if beaten else "."
    least = min(smallest_p(pair.pairs) for pair in open_) * len(pairs)
    if least > ALPHA:
        needed = next((n for n in range(2, 100) if smallest_p(n) * len(pairs) <= ALPHA), None)
        line += (
            f" With {_count(own[0].pairs, 'paired run')} and {_count(len(pairs), 'comparison')} no test can "
            f"reach significance: the smallest possible adjusted p is {min(1.0, least):.2g}."
        )
        line += "" if needed is None else f" With {needed} paired runs it could."
    return line


def _against_start(results: Results, ranked: list[tuple[str, float]]) -> list[str]:
    """Compare the agents with their initial policy and with best-of-n."""
    start = [value for value in results.scores(START).values() if math.isfinite(value)]
    if not start:
        return []
    level, lines = aggregate([start]), []
    below = [label for label, value in ranked if value <= level]
    if below:
        lines.append(f"No better than the policy they began with ({level:.4g}): {', '.join(below)}.")
    for task in results.config.tasks:
        anchors = results.best_of(task)
        if not anchors:
            continue
        n = max(anchors)
        worth = results.score(anchors[n], task)
        above = [label for label, value in _on_task(results, task) if value > worth]
        lines.append(
            f"Taking the best of {n} texts of the start, without any training, gives {worth:.4g} on {task} "
            f"at a KL of at most {anchors[n]['kl']:.2f} nats; {', '.join(above) or 'no agent'} "
            f"{'score' if len(above) > 1 else 'scores'} higher."
        )
    return lines


def _on_task(results: Results, task: str) -> list[tuple[str, float]]:
    found = []
    for label in results.config.agents:
        values = [value for key, value in results.tuned_scores(label).items() if key[0] == task]
        if values:
            found.append((label, aggregate([values])))
    return found


def _by_reward(results: Results, ranked: list[tuple[str, float]]) -> list[str]:
    """Whether the training reward ranks the agents differently from the judge."""
    if not results.judged:
        return ["There is no judge: agents are compared by the reward that they were trained on."]
    means = {
        arm: float(np.mean(list(values.values())))
        for arm in results.arms
        if arm != START and (values := results.scores(arm, "reward"))
    }
    leader = max(means, key=lambda arm: means[arm])
    if results.arms[leader][0] == ranked[0][0]:
        return []
    return [f"By the reward that they were trained on, {leader} leads: it may be exploiting that reward."]


def _unfinished(results: Results) -> list[str]:
    lines = []
    failed = [run for run in results.runs if run.status == "failed"]
    missing = [run for run in results.runs if run.status == "missing"]
    if failed:
        which = "; ".join(f"{run.spec.name}: {run.error}" for run in failed[:5])
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        lines.append(
            f"{_count(len(failed), 'run')} failed and {'are' if len(failed) > 1 else 'is'} not counted, "
            f"which biases the comparison in favour of agents that fail: {which}{more}."
        )
    if missing:
        lines.append(f"{_count(len(missing), 'run')} of {len(results.runs)} not run yet.")
    return lines


def _names(pairs: list[Comparison], first: str) -> str:
    parts = []
    for pair in pairs:
        other = pair.worse if pair.better == first else pair.better
        parts.append(f"{other} (adjusted p {pair.adjusted_p:.2g})")
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
