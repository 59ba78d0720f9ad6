"""Studies for tests: a tiny real one, and folders of results that were never run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from textenv.agents.study.config import START, StudyConfig
from textenv.agents.study.plan import RESULT, plan
from textenv.agents.study.results import Results
from textenv.agents.study.run import FIGURES

ONLINE = {"iterations": 3, "episodes_per_iteration": 16, "minibatches": 1, "epochs": 1, "learning_rate": 1e-3}
OFFLINE = {"steps": 4, "batch_size": 16, "learning_rate": 1e-3}


def tiny(**changes: Any) -> StudyConfig:
    """Two agents on two seeds of a probe, the reward as judge."""
    settings: dict[str, Any] = {
        "agents": {"ppo": {"settings": ONLINE}, "clone": {"agent": "filtered-bc", "settings": OFFLINE}},
        "tasks": {
            "probe-end": {
                "start": {"steps": 2, "learning_rate": 1e-3},
                "judge": ["probe-end", {"budget": 8}],
                "num_envs": 16,
            }
        },
        "seeds": 2,
        "evaluations": 2,
        "eval_episodes": 16,
        "best_of": [2, 4],
        "best_of_prompts": 4,
    }
    return StudyConfig(**{**settings, **changes})


def pretended(
    folder: Path,
    scores: Mapping[str, Sequence[float | None]],
    *,
    kl_coefs: Sequence[float] = (),
    tasks: Sequence[str] = ("probe-end",),
    courses: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    start: float = 0.0,
) -> Results:
    """Results as if agents had been run: for each arm the scores seed by seed, None = the run failed.

    Args:
        folder: where to write them.
        scores: arm -> scores, one a seed, the same on every task.
        kl_coefs: of the study.
        tasks: of the study.
        courses: arm -> figures of its evaluations on every seed, instead of the score alone.
        start: score of the start.
    """
    labels = dict.fromkeys(arm.split(",")[0] for arm in scores)
    seeds = max(len(values) for values in scores.values())
    config = StudyConfig(
        agents={label: {"agent": "ppo"} for label in labels},
        tasks=dict.fromkeys(tasks),
        seeds=seeds,
        kl_coefs=tuple(kl_coefs),
        best_of=(),
    )
    for spec in plan(config):
        value = start if spec.label == START else scores[spec.arm][spec.seed]
        points: Sequence[Mapping[str, float]] = [{"reward": value or 0.0, "kl": 0.0}]
        if courses is not None and spec.arm in courses:
            points = courses[spec.arm]
        place = spec.folder(folder)
        place.mkdir(parents=True)
        rows = [
            {"step": step, **{FIGURES[name]: x for name, x in point.items()}}
            for step, point in enumerate(points)
        ]
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        outcome: dict[str, Any] = {"status": "done", "figures": points[-1]}
        if value is None:
            outcome = {"status": "failed", "error": "NonFiniteError: loss is NaN", "traceback": ""}
        (place / RESULT).write_text(json.dumps({**spec.to_dict(), **outcome}))
    return Results(config, folder)
