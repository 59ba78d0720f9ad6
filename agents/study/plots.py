"""The plots of a study: scores run by run, curves over costs, frontiers of reward and KL, profiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from textenv.agents.reports.plots import PALETTE, Plot, drawing, line
from textenv.agents.study.config import START
from textenv.agents.study.frontier import frontier, trajectories
from textenv.agents.study.results import Results, Run
from textenv.agents.study.statistics import interval, performance_profile

COSTS = {
    "env_tokens": "tokens generated to learn from",
    "gradient_tokens": "tokens trained on",
    "reward_calls": "reward calls",
    "seconds": "seconds of training",
}
"""Cost -> label of the axis."""
POINTS = 60
"""Places at which curves over a continuous axis are drawn."""


def draw_plots(results: Results, folder: Path) -> list[Plot]:
    """Draw all plots that have data, as PNG files in ``folder``."""
    found = [score_plot(results, folder / "scores.png"), profile_plot(results, folder / "profile.png")]
    for task in results.config.tasks:
        found += curve_plots(results, folder, task)
        found.append(frontier_plot(results, folder / f"frontier-{_file(task)}.png", task))
    return [plot for plot in found if plot is not None]


def score_plot(results: Results, path: Path) -> Plot | None:
    """A dot for every run, the IQM with its interval beside them."""
    arms = {
        arm: {key: value for key, value in results.scores(arm).items() if math.isfinite(value)}
        for arm in results.arms
    }
    arms = {arm: scores for arm, scores in arms.items() if scores}
    if not arms:
        return None
    described = []
    height = 1.2 + 0.42 * len(arms)
    with drawing(
        path,
        title="Scores at the end",
        x=axis(results),
        y="",
        alt="",
        caption="A dot is a run; the diamond is the interquartile mean with its 95 % bootstrap interval.",
        size=(6.4, height),
    ) as (axes, plot):
        for i, (arm, scores) in enumerate(arms.items()):
            colour, values = PALETTE[i % len(PALETTE)], list(scores.values())
            found = interval(results.by_task(scores))
            axes.scatter(values, np.full(len(values), i + 0.18), s=14, color=colour, alpha=0.55, linewidths=0)
            if not math.isnan(found.low):
                axes.plot([found.low, found.high], [i - 0.12, i - 0.12], color=colour, linewidth=2)
            axes.scatter([found.value], [i - 0.12], marker="D", s=26, color=colour)
            described.append(f"{arm} {found.value:.3g}")
        axes.set_yticks(range(len(arms)), list(arms))
        axes.invert_yaxis()
        plot.alt = f"Interquartile means: {', '.join(described)}"
    return plot


def curve_plots(results: Results, folder: Path, task: str) -> Iterator[Plot]:
    """Score over each cost on a task: the mean of an arm's runs, and each run as a thin line."""
    for cost, name in COSTS.items():
        arms = {
            arm: runs
            for arm in results.arms
            if arm != START
            and (runs := [run for run in results.of_arm(arm) if run.spec.task == task])
            and max(run.figures.get(cost, 0.0) for run in runs) > 0
        }
        if not arms:
            continue
        with drawing(
            folder / f"curve-{_file(task)}-{cost}.png",
            title=f"{task}: score over {name}",
            x=name,
            y=axis(results),
            alt=f"Score over {name} on {task} of {', '.join(arms)}",
            caption="Thick: mean of the runs. Thin: every run. The first point is the start.",
        ) as (axes, plot):
            for i, (arm, runs) in enumerate(arms.items()):
                curves = [_curve(results, run, cost) for run in runs]
                for x, y in curves:
                    axes.plot(x, y, color=PALETTE[i % len(PALETTE)], linewidth=0.6, alpha=0.45)
                last = min(x[-1] for x, _ in curves)
                grid = np.linspace(min(x[0] for x, _ in curves), last, POINTS)
                mean = np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)
                line(axes, grid.tolist(), mean.tolist(), label=arm, index=i, marks=False)
        yield plot


def frontier_plot(results: Results, path: Path, task: str) -> Plot | None:
    """Score within each KL budget, mean over seeds; the evaluations as dots; best-of-n as crosses."""
    found = {label: trajectories(results, label) for label in results.config.agents}
    points = {
        label: [point for key, trajectory in runs.items() if key[0] == task for point in trajectory]
        for label, runs in found.items()
    }
    points = {label: [p for p in trajectory if "kl" in p] for label, trajectory in points.items()}
    points = {label: trajectory for label, trajectory in points.items() if trajectory}
    if not points:
        return None
    highest = max(point["kl"] for trajectory in points.values() for point in trajectory)
    grid = np.linspace(0.0, max(highest, 1e-6), POINTS).tolist()
    with drawing(
        path,
        title=f"{task}: score against KL",
        x="KL from the initial policy (nats per text)",
        y=axis(results),
        alt=f"Score against KL on {task} of {', '.join(points)}",
        caption="Lines: mean over seeds of the evaluation within that KL that has the highest reward. "
        "Dots: all evaluations. Crosses: best of n texts of the initial policy, at their KL bound.",
    ) as (axes, plot):
        for i, (label, trajectory) in enumerate(points.items()):
            y = [results.score(point, task) for point in trajectory]
            colour = PALETTE[i % len(PALETTE)]
            axes.scatter([p["kl"] for p in trajectory], y, s=7, alpha=0.35, color=colour, linewidths=0)
            line(axes, grid, frontier(results, label, task, grid), label=label, index=i, marks=False)
        anchors = results.best_of(task)
        if anchors:
            x = [anchor["kl"] for anchor in anchors.values()]
            y = [results.score(anchor, task) for anchor in anchors.values()]
            axes.scatter(x, y, marker="x", s=28, color="#1c2733", label="best of n")
    return plot


def profile_plot(results: Results, path: Path) -> Plot | None:
    """Fraction of an agent's runs above each score (Agarwal et al. 2021)."""
    scores = {
        label: {key: value for key, value in results.tuned_scores(label).items() if math.isfinite(value)}
        for label in results.config.agents
    }
    scores = {label: values for label, values in scores.items() if values}
    if not scores:
        return None
    every = [value for values in scores.values() for value in values.values()]
    margin = 0.02 * (max(every) - min(every)) or 0.01
    grid = np.linspace(min(every) - margin, max(every) + margin, 4 * POINTS)
    with drawing(
        path,
        title="Performance profile",
        x=f"{axis(results)}: x",
        y="fraction of runs above x",
        alt=f"Fraction of runs above each score of {', '.join(scores)}",
        caption="A line that lies above another one everywhere is an agent that is better at every level.",
    ) as (axes, plot):
        for i, (label, values) in enumerate(scores.items()):
            fractions = performance_profile(results.by_task(values), grid)
            line(axes, grid.tolist(), fractions.tolist(), label=label, index=i, marks=False)
    return plot


def axis(results: Results) -> str:
    """What scores are, for an axis."""
    return f"normalised {results.metric} (start 0, anchor 1)" if results.normalized else results.metric


def _curve(results: Results, run: Run, cost: str) -> tuple[list[float], list[float]]:
    trajectory = [point for point in results.trajectory(run) if cost in point]
    return [p[cost] for p in trajectory], [results.score(p, run.spec.task) for p in trajectory]


def _file(task: str) -> str:
    return task.replace(" ", "-")
