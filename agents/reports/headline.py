"""First part of a report: figures before and after, warnings, and facts of the run."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from textenv.agents.evaluation.before_after import LABELS
from textenv.agents.reports.run_data import RunData, without_kl
from textenv.envs.turns import STOP_REASONS
from textenv.utils.terminal import number

TITLES = {
    "score": ("reward (without KL penalty)", 1),
    "return/mean": ("return (with KL penalty)", 1),
    "judge/mean": ("held-out judge", 1),
    "accuracy": ("accuracy on held-out pairs", 1),
    "log_loss": ("log loss, nats per pair", -1),
    "ece": ("calibration error (ECE)", -1),
    "spearman": ("Spearman correlation with ratings", 1),
    "pearson": ("Pearson correlation with ratings", 1),
    "rmse": ("root mean squared error of ratings", -1),
    "rollout/turns": ("turns per episode", 0),
    **{
        f"rollout/stop_reason/{reason}": (f"share of episodes ended by {reason}", 0)
        for reason in STOP_REASONS
    },
    "rollout/partner_errors": ("failed calls of the partner", -1),
    "rollout/partner_timeouts": ("time-outs of the partner", -1),
    "objective/kl": ("KL, nats per text", 0),
    "objective/entropy": ("entropy, nats per token", 0),
    "episode/length": ("length, tokens", 0),
    "episode/eos_rate": ("fraction that ends with EOS", 0),
    "text/repetition": ("repeated trigrams", -1),
    "text/distinct_2": ("distinct bigrams", 0),
}
"""Evaluation metric -> label, and whether higher is better (1), worse (-1) or neither (0)."""
LOGGED = {
    "objective/score": ("reward (without KL penalty), training", 1),
    "rollout/turns": ("turns per episode, training", 0),
    "objective/kl": ("KL, nats per text, training", 0),
    "sft/nll": ("negative log-likelihood, nats per token", -1),
    "pairs/accuracy": ("accuracy on pairs, training", 1),
    "rewards/accuracy": ("accuracy of the implicit reward", 1),
    "loss": ("loss", -1),
    "episode/length": ("length, tokens, training", 0),
}
"""The same for training metrics, used for runs without evaluations before and after."""
CARDS = 4
"""Figures that are shown large."""
_RARE = ("rollout/stop_reason/", "rollout/partner_")
"""Left out where they are 0 before and after."""
_JUDGED = {"reward": 1, "judge": 1, "repetition": -1}


@dataclass(frozen=True)
class Figure:
    """A number before and after."""

    name: str
    """Label."""
    before: float | None
    """None if unknown."""
    after: float | None
    """None if unknown."""
    better: int = 0
    """1 if more is better, -1 if less is, 0 if neither."""
    human: float | None = None
    """Value for human texts."""

    @property
    def change(self) -> float | None:
        """After minus before."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def tone(self) -> str:
        """Whether the change is "good", "bad" or neither ("")."""
        step = (self.change or 0.0) * self.better
        return "good" if step > 0 else "bad" if step < 0 else ""


def figures(run: RunData) -> tuple[list[Figure], str]:
    """Figures before and after, the most important first, and what "before" and "after" mean."""
    if run.results is not None:
        sides = [run.results.get(side) or {} for side in ("before", "after", "people")]
        rows = [
            Figure(
                title,
                _known(sides[0].get(name)),
                _known(sides[1].get(name)),
                _JUDGED.get(name, 0),
                human=_known(sides[2].get(name)),
            )
            for name, title in LABELS.items()
        ]
        return [row for row in rows if row.after is not None], (
            "Before: the fine-tuned policy. After: the policy after reinforcement learning. "
            "Both used the same prompts and sampling noise."
        )
    logged = _logged(run)
    if run.after is not None:
        rows, how = _evaluated(run)
        if run.before is None and logged:
            before = "In training: the first logged step and the last one."
            return logged + rows, f"{before} {how} The model was not evaluated before."
        return rows, how
    return logged, "Before: the first logged step. After: the last one. The run was not evaluated."


def _logged(run: RunData) -> list[Figure]:
    """Training metrics at the first and the last logged step."""
    rows = []
    for name, (title, better) in LOGGED.items():
        values = [value for value in run.series(name)[1] if math.isfinite(value)]
        if values:
            rows.append(Figure(title, values[0], values[-1], better))
    return rows


def _evaluated(run: RunData) -> tuple[list[Figure], str]:
    after = _with_score((run.after or {})["metrics"])
    before = _with_score({} if run.before is None else run.before["metrics"])
    if run.watch and "judge/mean" not in before and run.watch[0].get("iteration") == 0:
        before["judge/mean"] = run.watch[0]["judge/mean"]
    own = {
        name: (name.partition("/")[2], 0)
        for name in after
        if name.startswith(("metric/", "best_of_k/return", "terms/")) and not name.startswith("terms/raw/")
    }
    rows = [
        Figure(title, _known(before.get(name)), _known(after.get(name)), better)
        for name, (title, better) in {**TITLES, **own}.items()
        if name in after and not (name.startswith(_RARE) and not (before.get(name) or after[name]))
    ]
    when = f"after {number((run.after or {})['iteration'])} steps"
    how = f"After: the latest evaluation, {when}."
    if run.before is None:
        return rows, how
    return rows, f"Before: the model before the first step. {how} Both on the same prompts or data."


def cards(rows: list[Figure]) -> list[Figure]:
    """The figures that are shown large."""
    return [row for row in rows if row.after is not None][:CARDS]


def warnings_of(run: RunData) -> list[str]:
    """Warnings about the figures."""
    found = []
    for failure in run.failures:
        found.append(
            f"The run failed in iteration {failure.get('iteration')} for its {failure.get('term')}; "
            "the episodes are in the folder failures."
        )
    diverged = [row["step"] for row in run.rows if row.get("eval/watch/parted") == 1]
    if diverged:
        found.append(
            f"Reward and judge diverge at {_steps(diverged)}: the reward rose and the held-out judge fell. "
            "The policy may be exploiting the reward."
        )
    over = [row["step"] for row in run.rows if row.get("eval/watch/over_limit") == 1]
    if over:
        found.append(f"A limit of the reward-hacking watch (KL or repetition) was passed at {_steps(over)}.")
    broken = [
        name
        for name in ("loss", "grad_norm", "objective/reward")
        if any(isinstance(row.get(name), float) and not math.isfinite(row[name]) for row in run.rows)
    ]
    if broken:
        found.append(f"Not finite at some steps: {', '.join(broken)}.")
    planned = planned_steps(run.config)
    steps = int(run.rows[-1]["step"]) if run.rows else 0
    if planned is not None and steps < planned and not run.stages:
        found.append(f"The run has {steps} of {planned} steps: a callback ended it, or it was interrupted.")
    for name, stage in run.stages.items():
        found += [f"{name}: {text}" for text in warnings_of(stage)]
    return found


def watched(run: RunData) -> bool:
    """Whether a held-out judge watched the run."""
    return bool(run.watch) or any(stage.watch for stage in run.stages.values())


def optimises_reward(run: RunData) -> bool:
    """Whether the run trained a policy against a reward, so that the reward may have been exploited."""
    return run.results is not None or "objective/reward" in run.names()


def planned_steps(config: Mapping[str, Any]) -> int | None:
    """Iterations or optimizer steps that the settings ask for, None if they do not say it in numbers."""
    if config.get("iterations") or config.get("steps"):
        return int(config.get("iterations") or config["steps"])
    if config.get("total_episodes"):
        return int(config["total_episodes"]) // int(config["episodes_per_iteration"])
    return None


def facts(run: RunData) -> list[tuple[str, str]]:
    """Names and values of what the run was."""
    info, last = run.info, run.rows[-1] if run.rows else {}
    seconds = last.get("time")
    if run.results is not None:
        seconds = sum(stage.get("seconds", 0.0) for stage in run.results.get("stages", {}).values())
    seeds = {name: stage.config.get("seed") for name, stage in run.stages.items()}
    rows: list[tuple[str, Any]] = [
        ("agent", info.get("agent")),
        ("task", info.get("task")),
        ("model", info.get("model") or run.config.get("model")),
        ("steps", None if "step" not in last else number(last["step"])),
        ("episodes", None if "episodes" not in last else number(last["episodes"])),
        ("optimizer steps", None if "optimizer_steps" not in last else number(last["optimizer_steps"])),
        ("tokens generated", _count(last, "env_tokens")),
        ("tokens trained on", _count(last, "gradient_tokens")),
        ("wall time", None if seconds is None else duration(seconds)),
        ("seed", run.config.get("seed")),
        ("seeds", ", ".join(f"{name} {seed}" for name, seed in seeds.items()) or None),
        ("resumed", _resumes(info.get("resumes"))),
        ("command", shlex.join(map(str, info.get("command") or [])) or None),
        ("platform", info.get("platform")),
        ("versions", ", ".join(f"{k} {v}" for k, v in (info.get("versions") or {}).items()) or None),
    ]
    return [(name, str(value)) for name, value in rows if value is not None]


def duration(seconds: float) -> str:
    """Seconds as readable text.

    >>> duration(4.23), duration(75), duration(7384)
    ('4.2 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def settings(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings with dots for nested ones, as the command line names them."""
    rows: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            rows += settings(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows


def _with_score(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics with the score, and without the return where it is the same."""
    found = dict(metrics)
    if found.get("return/mean") is not None:
        found["score"] = without_kl(found)
        if found["score"] == found["return/mean"]:
            del found["return/mean"]
    terms = [name for name in found if name.startswith("terms/") and not name.startswith("terms/raw/")]
    if len(terms) == 1:
        del found[terms[0]]
    return found


def _count(row: Mapping[str, Any], name: str) -> str | None:
    return number(row[name]) if row.get(name) else None


def _resumes(resumes: Any) -> str | None:
    return ", ".join(f"after step {entry['step']}" for entry in resumes or []) or None


def _steps(steps: Iterable[float]) -> str:
    shown = [number(step) for step in steps]
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return f"step{'s' if len(shown) > 1 else ''} {', '.join(shown[:5])}{more}"


def _known(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
