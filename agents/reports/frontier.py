"""Reward against KL: where a run went, and what best-of-n sampling gets for the same KL without training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textenv.agents.reports.plots import PALETTE, Plot, drawing, line
from textenv.agents.reports.run_data import RunData
from textenv.utils.terminal import number


def reward_against_kl(run: RunData, folder: Path) -> Plot | None:
    """Reward and KL of the run's evaluations, compared with best-of-n sampling at the same KL."""
    paths = []
    for label, kl, score in (
        ("training", "objective/kl", "objective/score"),
        ("evaluation", "eval/objective/kl", "eval/score"),
    ):
        points = [
            (row[kl], row[score])
            for row in run.rows
            if all(
                isinstance(row.get(name), int | float) and math.isfinite(row[name]) for name in (kl, score)
            )
        ]
        if len(points) > 1 or (label == "training" and points):
            paths.append((label, points))
    if not paths:
        return None
    anchor, note = best_of_n_anchor(run)
    last = paths[-1][1][-1]
    alt = f"Reward against KL. The run ends at {number(last[0])} nats and reward {number(last[1])}."
    if anchor:
        alt += f" Best of {anchor[-1][0]} has {number(anchor[-1][1])} nats and {number(anchor[-1][2])}."
    with drawing(
        folder / "reward_kl.png",
        title="Reward against KL",
        x="KL from the reference (nats per text)",
        y="reward per text",
        alt=alt,
        caption=note,
    ) as (axes, plot):
        for i, (label, points) in enumerate(paths):
            x, y = zip(*points, strict=True)
            if label == "training":  # many points: a cloud with its path
                axes.plot(x, y, color=PALETTE[i], linewidth=0.6, alpha=0.35)
                axes.scatter(x, y, color=PALETTE[i], s=9, alpha=0.6, label=label)
            else:
                line(axes, x, y, label=label, index=i, marks=True)
            axes.plot(x[-1], y[-1], "*", color=PALETTE[i], markersize=11)
        if anchor:
            counts, nats, worth = zip(*anchor, strict=True)
            line(axes, nats, worth, label="best of n, untrained", index=2, marks=True)
            for i in (0, len(counts) - 1):
                axes.annotate(
                    f"n={counts[i]}", (nats[i], worth[i]), xytext=(4, -11), textcoords="offset points", size=8
                )
    return plot


def best_of_n_anchor(run: RunData) -> tuple[list[tuple[int, float, float]], str]:
    """(n, nats, reward) of best-of-n sampling from the policy before training, and what to say about it.

    The rewards are unbiased estimates from several texts of each prompt, written before the first update: by
    the first evaluation or the first iteration, whichever has more a prompt. n goes up to the number that
    every prompt has.
    """
    from textenv.agents.losses.best_of_n import best_of_k, best_of_n_kl

    sources = {"first evaluation": run.before, "first iteration": run.rollout}
    grouped = {
        name: groups
        for name, content in sources.items()
        if content is not None and (groups := _by_prompt(content.get("scores")))
    }
    usable = {name: min(map(len, groups)) for name, groups in grouped.items()}
    if not usable or max(usable.values()) < 2:
        why = "scored texts of the untrained policy" if not usable else "several texts of every prompt"
        return [], f"No best-of-n anchor: it needs {why}, which this run did not keep or write."
    name = max(usable, key=lambda key: usable[key])
    import torch

    most = usable[name]
    scores = torch.tensor([group[:most] for group in grouped[name]], dtype=torch.float64)
    worth = best_of_k(scores).mean(0).tolist()
    chosen = sorted({n for n in (1, 2, 4, 8, 16, 32, 64, 128, most) if n <= most})
    note = (
        f"Best of n: the best by reward of n texts of the untrained policy, estimated from {most} texts of "
        f"each of {len(grouped[name])} prompts ({name}); its KL is at most log n - (n-1)/n."
    )
    return [(n, best_of_n_kl(n), worth[n - 1]) for n in chosen], note


def _by_prompt(scores: Mapping[str, list[Any]] | None) -> list[list[float]]:
    """Scores of the texts of each prompt; none if the prompts are not known."""
    groups: dict[int, list[float]] = defaultdict(list)
    if scores is not None:
        for prompt, score in zip(scores["prompt_index"], scores["score"], strict=True):
            if prompt >= 0 and score is not None:
                groups[prompt].append(score)
    return list(groups.values())
