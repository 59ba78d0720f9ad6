"""The results of a study in its folder, as scores by agent, task and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.study.cells import agent_setup
from textenv.agents.study.config import START, StudyConfig
from textenv.agents.study.plan import RunSpec, plan
from textenv.agents.study.run import figures
from textenv.agents.study.statistics import Floats
from textenv.tasks.registry import make_task

Key = tuple[str, int]
"""Task and seed."""


@dataclass(kw_only=True)
class Run:
    """A run and its results."""

    spec: RunSpec
    """Task, agent, seed and coefficient."""
    status: str
    """"done", "failed" or "missing"."""
    error: str = ""
    """Error message of a failed run."""
    figures: dict[str, float] = field(default_factory=dict)
    """The figures at its end."""
    trajectory: list[dict[str, float]] = field(default_factory=list)
    """The figures of every evaluation, the last at its end."""
    best_of: dict[int, dict[str, float]] = field(default_factory=dict)
    """Of a baseline: n -> score of the best of n texts, and its KL."""


class Results:
    """What is in a study's folder.

    Args:
        config: the study's settings.
        folder: its folder.
    """

    def __init__(self, config: StudyConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.runs = [_read(spec, folder) for spec in plan(config)]
        self.done = {run.spec: run for run in self.runs if run.status == "done"}
        self.arms = {run.spec.arm: (run.spec.label, run.spec.kl_coef) for run in self.runs}
        """Arm -> (label, coefficient); the start comes first."""
        self.notes: list[str] = []
        """Notes on the numbers for the reader."""
        self._scales = {task: self._scale(task) for task in config.tasks}

    @property
    def versions(self) -> dict[str, str]:
        """Package -> version, as the first finished run noted it; {} if none has."""
        folders = (RunFolder(run.spec.folder(self.folder)) for run in self.done.values())
        infos = (folder.read_info() for folder in folders if folder.info_path.is_file())
        return dict(next(infos, {}).get("versions", {}))

    @property
    def judged(self) -> bool:
        """Whether every task has a judge, so that agents are compared by it rather than by their reward."""
        return all(task.judge is not None for task in self.config.tasks.values())

    @property
    def metric(self) -> str:
        """Figure that agents are compared by."""
        return "judge" if self.judged else "reward"

    @property
    def normalized(self) -> bool:
        """Whether scores are normalised (0 is the start, 1 the best known), as tasks differ in scale."""
        return len(self.config.tasks) > 1

    def score(self, run: Run | dict[str, float], task: str, metric: str | None = None) -> float:
        """The score of a run, or of one of its evaluations, on a task."""
        found = run.figures if isinstance(run, Run) else run
        low, high = self._scales[task]
        value = found.get(metric or self.metric, math.nan)
        return (value - low) / (high - low) if self.normalized and metric in (None, self.metric) else value

    def of_arm(self, arm: str) -> list[Run]:
        """Finished runs of an arm, by task and seed."""
        return [run for run in self.done.values() if run.spec.arm == arm]

    def scores(self, arm: str, metric: str | None = None) -> dict[Key, float]:
        """(task, seed) -> score of the finished runs of an arm."""
        return {
            (run.spec.task, run.spec.seed): self.score(run, run.spec.task, metric) for run in self.of_arm(arm)
        }

    def tuned_scores(self, label: str) -> dict[Key, float]:
        """(task, seed) -> score of an agent with the KL coefficient that is best on the other seeds.

        Choosing the coefficient by the reported run itself would favour agents with more coefficients.
        """
        arms = [arm for arm, (owner, _) in self.arms.items() if owner == label]
        by_arm = {arm: self.scores(arm) for arm in arms}
        if len(arms) == 1:
            return by_arm[arms[0]]
        chosen = {}
        for task, seed in sorted({key for scores in by_arm.values() for key in scores}):
            others = {
                arm: [value for (t, s), value in scores.items() if t == task and s != seed]
                for arm, scores in by_arm.items()
                if (task, seed) in scores
            }
            best = max(others, key=lambda arm: np.mean(others[arm]) if others[arm] else -math.inf)
            chosen[task, seed] = by_arm[best][task, seed]
        return chosen

    def by_task(self, scores: dict[Key, float], keys: Sequence[Key] | None = None) -> list[Floats]:
        """Scores as one array per task, by seed, of ``keys`` or of all; tasks without any are left out."""
        keys = sorted(scores if keys is None else keys)
        tasks = [task for task in self.config.tasks if any(key[0] == task for key in keys)]
        return [np.array([scores[key] for key in keys if key[0] == task]) for task in tasks]

    def trajectory(self, run: Run) -> list[dict[str, float]]:
        """The figures of a run from its start on: the start's own come first, at no cost."""
        anchor = self.done.get(RunSpec(label=START, task=run.spec.task, seed=run.spec.seed))
        costs = ("seconds", "env_tokens", "gradient_tokens", "reward_calls", "episodes", "optimizer_steps")
        begin = [] if anchor is None else [{**anchor.figures, **dict.fromkeys(costs, 0.0)}]
        setup = agent_setup(self.config, run.spec.label, run.spec.task)
        return [*(begin if setup.start and setup.model is None else []), *run.trajectory]

    def best_of(self, task: str) -> dict[int, dict[str, float]]:
        """Score of the best of n texts of the initial policy on a task, for each n: means over seeds."""
        anchors = [run.best_of for run in self.of_arm(START) if run.spec.task == task]
        return {
            n: {name: float(np.mean([one[n][name] for one in anchors])) for name in anchors[0][n]}
            for n in (anchors[0] if anchors else ())
        }

    def _scale(self, task: str) -> tuple[float, float]:
        """The scores of a task that count as 0 and 1: the start, and its optimum or else best-of-n."""
        if not self.normalized:
            return 0.0, 1.0
        found = [run.figures[self.metric] for run in self.of_arm(START) if run.spec.task == task]
        low = float(np.mean(found)) if found else math.nan
        setup = self.config.tasks[task]
        high = math.nan
        if setup.reward is None and setup.judge is None:
            optimum = make_task(setup.task or "").build("train", **setup.env.task_kwargs).optimum
            high = math.nan if optimum is None else optimum
        anchors = self.best_of(task)
        if math.isnan(high) and anchors:
            high = anchors[max(anchors)][self.metric]
        if not high > low:
            self.notes.append(
                f"Scores on {task} can't be normalised: its start scores {low:.4g} and "
                f"its anchor {high:.4g}. They are left out of figures over several tasks."
            )
            return math.nan, math.nan
        return low, high


def _read(spec: RunSpec, folder: Path) -> Run:
    found = spec.result(folder)
    if found is None:
        return Run(spec=spec, status="missing")
    if found["status"] == "failed":
        return Run(spec=spec, status="failed", error=found["error"])
    numbers = {name: math.nan if value is None else float(value) for name, value in found["figures"].items()}
    best_of: dict[str, Any] = found.get("best_of", {})
    return Run(
        spec=spec,
        status="done",
        figures=numbers,
        trajectory=figures(spec.folder(folder)),
        best_of={int(n): values for n, values in best_of.items()},
    )
