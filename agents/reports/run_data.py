"""Reads a run's folder for its report; see ``docs/report.md`` for the files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textenv.agents.checkpointing.run_folder import STAGES, RunFolder
from textenv.agents.loggers.jsonl import read_metrics
from textenv.agents.loggers.missing_rewards import has_no_rewards, without_empty_returns
from textenv.agents.reports.tokens import TokenView, load_views
from textenv.utils.json_files import read_object
from textenv.utils.redaction import masked, masked_command

EPISODE_SETS = ("first", "last")


@dataclass(kw_only=True)
class RunData:
    """The content of a run's folder; what is not there is empty or None."""

    path: Path
    """The folder."""
    info: dict[str, Any] = field(default_factory=dict)
    """``run.json``: agent, task, settings, versions, command."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Metrics, one row a logged step. The evaluation before the first step is a row of step 0, and
    ``eval/score`` is the return without the KL penalty."""
    watch: list[dict[str, float]] = field(default_factory=list)
    """``watch.jsonl``: reward and judge of every evaluation."""
    before: dict[str, Any] | None = None
    """The first evaluation: metrics, samples, scores."""
    after: dict[str, Any] | None = None
    """The latest one."""
    rollout: dict[str, Any] | None = None
    """Scores of the first iteration's episodes."""
    views: dict[str, list[TokenView]] = field(default_factory=dict)
    """The names "first" and "last" -> episodes of that iteration, token by token."""
    results: dict[str, Any] | None = None
    """``results.json`` of a pipeline: before, after, people, figures of the stages."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Prompts with texts before and after, of a pipeline."""
    stages: dict[str, RunData] = field(default_factory=dict)
    """Stage of a pipeline -> its run."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Cause of a failed run: iteration, term, values."""

    @property
    def config(self) -> dict[str, Any]:
        """Settings."""
        found = self.info.get("config", {})
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a metric, where it was logged."""
        found = [(row["step"], row[name]) for row in self.rows if isinstance(row.get(name), int | float)]
        return [float(step) for step, _ in found], [float(value) for _, value in found]

    def names(self) -> list[str]:
        """Every metric that was logged, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def read_run(run_dir: str | os.PathLike[str]) -> RunData:
    """Read the folder of a run or of a pipeline; files that are not there are left out.

    Raises:
        FileNotFoundError: if the folder is not there.
        ValueError: if it is no run's, or a file in it is damaged.
    """
    folder = RunFolder(run_dir)
    path = folder.path
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not there, expected the folder of a run")
    pipeline = path / "pipeline.json"
    if not (folder.info_path.is_file() or folder.metrics_path.is_file() or pipeline.is_file()):
        raise ValueError(f"{path} holds neither run.json nor metrics.jsonl nor pipeline.json: it is no run's")
    run = RunData(path=path)
    run.info = masked(
        folder.read_info() if folder.info_path.is_file() else {}
    )  # older runs were written as they were given
    if isinstance(run.info.get("command"), list):
        run.info["command"] = masked_command([str(token) for token in run.info["command"]])
    if pipeline.is_file():
        run.info = {"agent": "pipeline", **run.info, "config": masked(_object(pipeline) or {})}
        run.info.setdefault("task", run.config.get("task"))
        run.stages = {
            name: read_run(path / name) for name in STAGES if RunFolder(path / name).metrics_path.is_file()
        }
        run.info.setdefault("versions", next((s.info.get("versions") for s in run.stages.values()), {}))
    run.rows = _rows(folder.metrics_path) if folder.metrics_path.is_file() else []
    run.watch = _lines(path / "watch.jsonl")
    run.before = _evaluation(path / "evaluations" / "before.json")
    run.after = _evaluation(path / "evaluations" / "after.json")
    run.rollout = _object(path / "evaluations" / "rollout.json")
    run.results = _object(path / "results.json")
    run.samples = _lines(path / "tables" / "samples.jsonl")
    for name in EPISODE_SETS:
        if (path / "episodes" / f"{name}.json").is_file():
            run.views[name] = load_views(path / "episodes" / f"{name}.json")
    run.failures = [
        found for file in sorted((path / "failures").glob("*/failure.json")) if (found := _object(file))
    ]
    if run.before is not None and run.rows:
        run.rows.insert(0, {"step": 0, **{f"eval/{k}": v for k, v in run.before["metrics"].items()}})
    _drop_empty_returns(run)
    _drop_eos_rate(run)
    for row in run.rows:
        if "eval/return/mean" in row:
            row["eval/score"] = without_kl(row, "eval/")
    return run


def _drop_empty_returns(run: RunData) -> None:
    """Leave out returns and scores of a run whose evaluations had no rewards."""
    sides = [side for side in (run.before, run.after) if side is not None]
    evaluated = [row for row in run.rows if "eval/return/mean" in row]
    if not all(has_no_rewards(side["metrics"]) for side in sides) or not all(
        has_no_rewards(row, "eval/") for row in evaluated
    ):
        return
    run.rows = [without_empty_returns(row, ("eval/",)) for row in run.rows]
    for side in sides:
        side["metrics"] = without_empty_returns(side["metrics"], ("",))
        side.pop("scores", None)


def _drop_eos_rate(run: RunData) -> None:
    """Leave out ``episode/eos_rate`` of episodes with a partner: it equals the share of "done"."""
    sides = [side["metrics"] for side in (run.before, run.after) if side is not None]
    for row in (*run.rows, *sides):
        for prefix in ("", "eval/"):
            if f"{prefix}rollout/turns" in row:
                row.pop(f"{prefix}episode/eos_rate", None)


def without_kl(metrics: Mapping[str, Any], prefix: str = "") -> float:
    """Mean return of an evaluation without KL penalties; NaN if it is not known."""
    total = metrics.get(f"{prefix}return/mean")
    start = f"{prefix}terms/"
    penalties = [
        value
        for name, value in metrics.items()
        if name.startswith(start) and name.removeprefix(start).split("#")[0] == "kl"
    ]
    return math.nan if total is None or None in penalties else total - sum(penalties)


def _object(path: Path) -> dict[str, Any] | None:
    """A JSON object, None if there is no file.

    Raises:
        ValueError: if the file holds something else.
    """
    if not path.is_file():
        return None
    return read_object(path)


def _rows(path: Path) -> list[dict[str, Any]]:
    """The metrics of a run.

    Raises:
        ValueError: if a row has no step, or something else than numbers.
    """
    rows = read_metrics(path)
    for number, row in enumerate(rows, start=1):
        if "step" not in row:
            raise ValueError(f"{path}, line {number} is damaged, it lacks 'step'")
        for name, value in row.items():
            if value is not None and not isinstance(value, int | float):
                raise ValueError(f"{path}, line {number} is damaged, {name} must be a number, got {value!r}")
    return rows


def _evaluation(path: Path) -> dict[str, Any] | None:
    """An evaluation that a run kept, None if there is no file.

    Raises:
        ValueError: if the file is damaged.
    """
    return read_object(path, {"metrics": dict}) if path.is_file() else None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Objects of JSON lines; none if there is no file."""
    return read_metrics(path) if path.is_file() else []
