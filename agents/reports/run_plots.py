"""The plots of a run: which metrics go together, and how they are drawn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textenv.agents.reports.frontier import reward_against_kl
from textenv.agents.reports.plots import PALETTE, Plot, drawing, line
from textenv.agents.reports.run_data import RunData
from textenv.envs.turns import STOP_REASONS
from textenv.utils.terminal import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH_FROM = 120
"""A line of at least so many points is drawn faint, with its moving average on top."""
MOST_LINES = 8
"""Lines in one plot; a group of more metrics gets several plots."""


@dataclass(frozen=True)
class Curves:
    """A plot of metrics over the steps of a run."""

    name: str
    """File name."""
    title: str
    """Heading."""
    unit: str
    """Label of the vertical axis."""
    lines: tuple[tuple[str, str], ...]
    """(metric, label) of each line; those that were not logged are left out."""
    caption: str = ""
    """Note below the plot."""
    without_zeros: bool = False
    """Leave out the lines that are 0 everywhere."""


CURVES = (
    Curves(
        "reward",
        "Reward",
        "reward per text",
        (
            ("objective/score", "training"),
            ("eval/score", "evaluation"),
            ("objective/reward", "training, KL penalty included"),
        ),
    ),
    Curves(
        "judge",
        "Held-out judge",
        "score per text",
        (("eval/judge/mean", "evaluation"),),
        "This judge is not used for training. Reward up and judge down is reward hacking.",
    ),
    Curves(
        "turns",
        "Turns of the policy",
        "turns per episode",
        (("rollout/turns", "training"), ("eval/rollout/turns", "evaluation")),
    ),
    Curves(
        "stop_reasons",
        "Why episodes ended",
        "fraction of episodes",
        tuple((f"rollout/stop_reason/{reason}", reason) for reason in STOP_REASONS),
        "done: the partner ended the episode. All others are budgets or failures and truncate it.",
        without_zeros=True,
    ),
    Curves(
        "partner_failures",
        "Failed calls of the partner",
        "calls per iteration",
        (("rollout/partner_errors", "errors"), ("rollout/partner_timeouts", "time-outs")),
        without_zeros=True,
    ),
    Curves(
        "kl",
        "KL from the reference",
        "nats per text",
        (("objective/kl", "training"), ("eval/objective/kl", "evaluation")),
    ),
    Curves(
        "length",
        "Length of the responses",
        "tokens",
        (("episode/length", "training"), ("eval/episode/length", "evaluation")),
    ),
    Curves(
        "entropy",
        "Entropy",
        "nats per token",
        (("objective/entropy", "training"), ("eval/objective/entropy", "evaluation")),
        "Estimated as the mean negative log-probability of the sampled tokens.",
    ),
    Curves(
        "texts",
        "Diversity of the texts",
        "fraction",
        (
            ("eval/text/distinct_2", "distinct bigrams"),
            ("eval/text/repetition", "repeated trigrams"),
            ("eval/episode/eos_rate", "ended with EOS"),
            ("episode/eos_rate", "ended with EOS, training"),
        ),
    ),
    Curves(
        "clip_fraction",
        "Clip fraction",
        "fraction of tokens",
        (("policy/clip_fraction", "policy"), ("value/clip_fraction", "value")),
    ),
    Curves("kl_coef", "KL coefficient", "", (("objective/kl_coef", "coefficient"),)),
    Curves("approx_kl", "KL of an update", "nats per token", (("policy/approx_kl", "approximate KL"),)),
    Curves(
        "explained_variance",
        "Explained variance of the critic",
        "fraction",
        (("value/explained_variance", "explained variance"),),
        "1: the critic predicts the returns exactly; 0: no better than their mean; below 0: worse.",
    ),
    Curves("nll", "Negative log-likelihood", "nats per token", (("sft/nll", "training"),)),
    Curves(
        "accuracy",
        "Accuracy on pairs",
        "fraction of pairs",
        (
            ("pairs/accuracy", "training"),
            ("rewards/accuracy", "training"),
            ("eval/accuracy", "held out"),
        ),
    ),
    Curves(
        "calibration_error",
        "Calibration error and log loss",
        "held-out pairs",
        (("eval/ece", "expected calibration error"), ("eval/log_loss", "log loss, nats per pair")),
    ),
    Curves(
        "rank_correlation",
        "Agreement with held-out ratings",
        "correlation",
        (("eval/spearman", "Spearman"), ("eval/pearson", "Pearson")),
    ),
    Curves("loss", "Loss", "loss", (("loss", "total"), ("policy/loss", "policy"), ("value/loss", "value"))),
    Curves("grad_norm", "Gradient norm", "L2 norm, before clipping", (("grad_norm", "gradient norm"),)),
    Curves("learning_rate", "Learning rate", "", (("lr", "learning rate"),)),
    Curves(
        "throughput",
        "Throughput",
        "tokens per second",
        (("throughput/rollout_tokens_s", "rollout"), ("throughput/train_tokens_s", "update")),
    ),
)
"""Named plots; all other metrics are grouped by the prefix before "/"."""
CONSTANTS = ("kl_coef", "learning_rate")
"""Plots that are left out if their values are constant: the settings show the value."""
_NOT_PLOTTED = (
    "step",
    "episodes",
    "time",
    "optimizer_steps",
    "env_tokens",
    "gradient_tokens",
    "reward_calls",
    "ratio",
    "objective/kl_per_token",
)
_NOT_PLOTTED_GROUPS = ("eval", "time", "terms")


def run_plots(run: RunData, folder: Path) -> list[Plot]:
    """Draw every plot that the run's metrics allow into ``folder``."""
    plots: list[Plot] = []
    frontier = reward_against_kl(run, folder)
    for curves in [*CURVES[:1], *_terms(run), *CURVES[1:], *_others(run)]:
        plot = draw_curves(run, curves, folder)
        plots += [plot] if plot is not None else []
        if curves.name == "kl" and frontier is not None:
            plots.append(frontier)
    for draw in (score_distribution, reliability):
        plot = draw(run, folder)
        plots += [plot] if plot is not None else []
    return plots


def draw_curves(run: RunData, curves: Curves, folder: Path) -> Plot | None:
    """Metrics over steps; None if none of them has a finite value."""
    found: list[tuple[str, list[float], list[float]]] = []
    for metric, label in curves.lines:
        steps, values = run.series(metric)
        if not any(map(math.isfinite, values)) or (curves.without_zeros and not any(values)):
            continue
        if any(values == known for _, _, known in found):  # a return without a penalty is the score
            continue
        found.append((label, steps, values))
    if not found or (curves.name in CONSTANTS and all(len(set(values)) == 1 for _, _, values in found)):
        return None
    over = "optimizer step" if _is_offline(run) else "iteration"
    summaries = [_summary(label, steps, values) for label, steps, values in found]
    alt = f"{curves.title} over {over}s. {' '.join(summaries)}"
    with drawing(
        folder / f"{curves.name}.png",
        title=curves.title,
        x=over,
        y=curves.unit,
        alt=alt,
        caption=curves.caption,
    ) as (axes, plot):
        for i, (label, steps, values) in enumerate(found):
            _draw_line(axes, steps, values, label=label if len(found) > 1 else None, index=i)
        axes.locator_params(axis="x", integer=True)
    return plot


def score_distribution(run: RunData, folder: Path) -> Plot | None:
    """Histogram of the episodes' scores before and after."""
    sides = [
        (label, [score for score in content["scores"]["score"] if score is not None])
        for label, content in (("before", run.before), ("after", run.after))
        if content is not None and content.get("scores")
    ]
    if len(sides) < 2 or not all(scores for _, scores in sides):
        return None
    low, high = min(min(s) for _, s in sides), max(max(s) for _, s in sides)
    if low == high:
        return None
    means = ", ".join(f"{label} {number(sum(scores) / len(scores))}" for label, scores in sides)
    with drawing(
        folder / "scores.png",
        title="Rewards of the evaluated texts",
        x="reward per text",
        y="fraction of texts",
        alt=f"Histograms of the rewards of texts before and after training. Means: {means}.",
    ) as (axes, plot):
        for i, (label, scores) in enumerate(sides):
            axes.hist(
                scores,
                bins=24,
                range=(low, high),
                weights=[1 / len(scores)] * len(scores),
                color=PALETTE[i],
                alpha=0.55,
                label=label,
            )
    return plot


def reliability(run: RunData, folder: Path) -> Plot | None:
    """Accuracy of a reward model over its confidence (reliability diagram)."""
    bins = [row for row in (run.after or {}).get("reliability", []) if row["count"]]
    if not bins:
        return None
    metrics = (run.after or {})["metrics"]
    ece = metrics.get("ece")
    error = "" if ece is None else f"Expected calibration error {number(ece)}."
    with drawing(
        folder / "reliability.png",
        title="Calibration on held-out pairs",
        x="confidence of the reward model",
        y="fraction of correct pairs",
        alt=f"Reliability diagram with {len(bins)} bins. {error}",
        caption=f"On the dashed line confidence is accuracy. Areas are numbers of pairs. {error}",
    ) as (axes, plot):
        axes.plot([0.5, 1], [0.5, 1], color="#9aa5b1", linestyle=(0, (4, 3)), linewidth=1.2)
        x, y = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
        most = max(row["count"] for row in bins)
        axes.plot(x, y, color=PALETTE[0], linewidth=1.2)
        axes.scatter(x, y, s=[15 + 150 * row["count"] / most for row in bins], color=PALETTE[0], alpha=0.75)
        axes.set(xlim=(0.48, 1.02), ylim=(min(0.45, *y) - 0.03, 1.03))
    return plot


def _draw_line(axes: Axes, x: list[float], y: list[float], *, label: str | None, index: int) -> None:
    if len(x) < SMOOTH_FROM:
        line(axes, x, y, label=label, index=index)
        return
    axes.plot(x, y, color=PALETTE[index % len(PALETTE)], linewidth=0.7, alpha=0.3)
    line(axes, x, moving_average(y, max(3, len(y) // 40)), label=label, index=index, marks=False)


def moving_average(values: Sequence[float], reach: int) -> list[float]:
    """Mean over the finite values up to ``reach`` places away; NaN where there is none.

    >>> moving_average([1.0, 2.0, 6.0], 1)
    [1.5, 3.0, 4.0]
    """
    sums, counts = [0.0], [0]
    for value in values:
        finite = math.isfinite(value)
        sums.append(sums[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    means = []
    for i in range(len(values)):
        a, b = max(0, i - reach), min(len(values), i + reach + 1)
        count = counts[b] - counts[a]
        means.append((sums[b] - sums[a]) / count if count else math.nan)
    return means


def _terms(run: RunData) -> Iterator[Curves]:
    """Reward terms, if there are several; only then do they say more than the reward."""
    names = [name for name in run.names() if name.startswith("terms/") and not name.startswith("terms/raw/")]
    if len(names) > 1:
        yield from _group(run, "terms", "Reward terms", "contribution per text", names)


def _others(run: RunData) -> Iterator[Curves]:
    """Metrics that no other plot shows, grouped by the prefix before the first "/"."""
    shown = {metric for curves in CURVES for metric, _ in curves.lines}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in run.names():
        group = name.split("/")[0]
        if name in shown or name in _NOT_PLOTTED or group in _NOT_PLOTTED_GROUPS:
            continue
        groups[group].append(name)
    for group, names in groups.items():
        yield from _group(run, f"more_{_file_name(group)}", f"More: {group}", "", names)
    own = [name for name in run.names() if name.startswith(("eval/metric/", "eval/best_of_k/return"))]
    yield from _group(run, "own_metrics", "Further metrics of the evaluation", "", own)


def _group(run: RunData, name: str, title: str, unit: str, metrics: Sequence[str]) -> Iterator[Curves]:
    for i in range(0, len(metrics), MOST_LINES):
        part = metrics[i : i + MOST_LINES]
        lines = tuple((metric, metric.partition("/")[2] or metric) for metric in part)
        suffix = f" ({i // MOST_LINES + 1})" if len(metrics) > MOST_LINES else ""
        yield Curves(f"{name}{i // MOST_LINES + 1 if suffix else ''}", f"{title}{suffix}", unit, lines)


def _file_name(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)


def _is_offline(run: RunData) -> bool:
    return not any(name.startswith("time/rollout") for name in run.names())


def _summary(label: str, steps: Sequence[float], values: Sequence[float]) -> str:
    """A line in words."""
    finite = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    (first, start), (last, end) = finite[0], finite[-1]
    return f"{label}: {number(start)} at {number(first)}, {number(end)} at {number(last)}."
