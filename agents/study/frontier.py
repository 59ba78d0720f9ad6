"""Score of an agent within a KL budget from the initial policy."""

from __future__ import annotations

import math

import numpy as np

from textenv.agents.study.results import Key, Results


def scores_at_kl(results: Results, label: str, budget: float) -> dict[Key, float]:
    """(task, seed) -> score of an agent within a KL budget.

    Chosen is the evaluation with the highest training reward whose KL is within the budget, over all KL
    coefficients and with the initial policy included. The judge's score is reported but not used to choose.

    Args:
        results: of the study.
        label: the agent's.
        budget: nats.
    """
    chosen: dict[Key, float] = {}
    for key, trajectory in trajectories(results, label).items():
        within = [point for point in trajectory if point.get("kl", math.inf) <= budget]
        if within:
            best = max(within, key=lambda point: point["reward"])
            chosen[key] = results.score(best, key[0])
    return chosen


def frontier(results: Results, label: str, task: str, grid: list[float]) -> list[float]:
    """Mean over seeds of the score within each KL budget on a task; NaN where no run is within it."""
    found = [scores_at_kl(results, label, budget) for budget in grid]
    by_budget = [[value for key, value in scores.items() if key[0] == task] for scores in found]
    return [float(np.mean(values)) if values else math.nan for values in by_budget]


def trajectories(results: Results, label: str) -> dict[Key, list[dict[str, float]]]:
    """(task, seed) -> the figures of all evaluations of an agent, with all coefficients."""
    found: dict[Key, list[dict[str, float]]] = {}
    for run in results.done.values():
        if run.spec.label == label:
            found.setdefault((run.spec.task, run.spec.seed), []).extend(results.trajectory(run))
    return found
