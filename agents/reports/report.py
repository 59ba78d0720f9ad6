"""The report of a run: one HTML page in its folder, which opens without a server and can be sent as it is."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from textenv.agents.reports import headline, tokens
from textenv.agents.reports.page import render, shown_number, visible
from textenv.agents.reports.plots import Plot, PlotFormat, saving_as
from textenv.agents.reports.run_data import RunData, read_run
from textenv.agents.reports.run_plots import run_plots
from textenv.episodes.conversations import ERRORS, OPENING, TIMEOUTS

REPORT = "report.html"
PLOTS = "plots"
SAMPLES = 8
"""Prompts whose texts are shown."""
STAGE_TITLES = {
    "sft": "Supervised fine-tuning",
    "reward-model": "Reward model",
    "judge": "Judge",
    "rl": "Reinforcement learning",
}


def write_report(run_dir: str | os.PathLike[str], *, plot_format: PlotFormat = "png") -> Path:
    """Write ``report.html`` and ``plots/*.png`` into the folder of a run or a pipeline; returns the page.

    Everything comes from the folder, so a report can be made at any time, of a running run, too. The page
    holds its plots; the files in ``plots`` are for slides and papers.

    Args:
        run_dir: the folder.
        plot_format: "pdf" or "svg" writes every plot in this format, too, beside the PNG.

    Raises:
        FileNotFoundError: if the folder is not there.
        ValueError: if it is no run's, a file in it is damaged, or the format is unknown.
    """
    with saving_as(plot_format):
        return _write(read_run(run_dir))


def _write(run: RunData) -> Path:
    stages = [
        {
            "title": STAGE_TITLES[name],
            "plots": run_plots(stage, run.path / PLOTS / name),
            "facts": headline.facts(stage)[:8],
            "figures": headline.figures(stage)[0],
            "page": f"{name}/{REPORT}" if (stage.path / REPORT).is_file() else None,
        }
        for name, stage in run.stages.items()
    ]
    plots: list[Plot] = run_plots(run, run.path / PLOTS)
    rows, about = headline.figures(run)
    samples = _samples(run)
    source = run.stages.get("rl", run)
    return render(
        "report.html",
        run.path / REPORT,
        run=run,
        made=time.strftime("%Y-%m-%d %H:%M"),
        figures=rows,
        about=about,
        cards=headline.cards(rows),
        gain=_gain(run),
        warnings=headline.warnings_of(run),
        watched=headline.watched(run),
        unwatched=headline.optimises_reward(run) and not headline.watched(run),
        plots=plots,
        stages=stages,
        samples=samples,
        # A partner may begin without a prompt.
        with_prompts=any(sample.prompt or not sample.after_talk for sample in samples),
        views=_view_sets(source),
        facts=headline.facts(run),
        settings=headline.settings(run.config),
    )


@dataclass(frozen=True)
class Sample:
    """A prompt and what followed it before and after."""

    prompt: str
    """The prompt."""
    before: str | None
    """None if it is not known."""
    after: str
    """Sample responses of the trained policy."""
    numbers: tuple[tuple[str, float | None, float | None], ...]
    """(name, before, after) of each score."""
    before_talk: tuple[Mapping[str, Any], ...] = ()
    """Messages of an episode of several turns: role, text, reward."""
    after_talk: tuple[Mapping[str, Any], ...] = ()
    before_end: str = ""
    """Number of turns, stop reason and failed calls in words."""
    after_end: str = ""

    def scores(self, side: Literal["before", "after"]) -> str:
        """The scores of a side in words, in an episode of several turns with how it ended."""
        values = [(name, before if side == "before" else after) for name, before, after in self.numbers]
        parts = [f"{name} {shown_number(value)}" for name, value in values if value is not None]
        return " · ".join([*parts, *filter(None, [self.before_end if side == "before" else self.after_end])])


def _samples(run: RunData) -> list[Sample]:
    """Texts side by side; evaluations replay the same prompts, so they are paired by their place."""
    if run.samples:
        return [
            Sample(
                row["prompt"],
                row["before"],
                row["after"],
                tuple(
                    (name, row.get(f"{name}_before"), row.get(f"{name}_after"))
                    for name in ("reward", "judge")
                ),
            )
            for row in run.samples[:SAMPLES]
        ]
    after = [row for row in (run.after or {}).get("samples", []) if "completion" in row]
    before = [row for row in (run.before or {}).get("samples", []) if "completion" in row]
    found, has_returns = [], "return/mean" in (run.after or {}).get("metrics", {})
    for i, row in enumerate(after[:SAMPLES]):
        old = before[i] if i < len(before) and before[i]["prompt"] == row["prompt"] else None
        names = ["return", *row["metrics"]] if has_returns else [*row["metrics"]]
        values = [{"return": side["return"], **side["metrics"]} if side else {} for side in (old, row)]
        numbers = tuple((name, values[0].get(name), values[1].get(name)) for name in names)
        talks = [_talk(side, with_rewards=has_returns) for side in (old, row)]
        endings = [_ending(side) if side and "conversation" in side else "" for side in (old, row)]
        found.append(
            Sample(
                _before_opening(row["prompt"], talks[1]),
                old["completion"] if old else None,
                row["completion"],
                numbers,
                before_talk=talks[0],
                after_talk=talks[1],
                before_end=endings[0],
                after_end=endings[1],
            )
        )
    return found


def _talk(sample: Mapping[str, Any] | None, *, with_rewards: bool) -> tuple[Mapping[str, Any], ...]:
    """The messages of a sample; none for episodes of one turn."""
    messages = (sample or {}).get("conversation", ())
    return tuple(said if with_rewards else {**said, "reward": None} for said in messages)


def _before_opening(prompt: str, talk: Sequence[Mapping[str, Any]]) -> str:
    """The prompt without the partner's opening, which the conversation shows."""
    return prompt.removesuffix(talk[0]["text"]) if talk and talk[0]["role"] == OPENING else prompt


def _ending(sample: Mapping[str, Any]) -> str:
    """How an episode of several turns ended.

    >>> _ending({"turns": 3, "stop_reason": "done", "partner_errors": 1, "partner_timeouts": 0})
    '3 turns · ended by done · partner errors 1'
    """
    failed = [f"{name.replace('_', ' ')} {sample[name]}" for name in (ERRORS, TIMEOUTS) if sample[name]]
    turns = f"{sample['turns']} turn{'' if sample['turns'] == 1 else 's'}"
    return " · ".join([turns, f"ended by {sample['stop_reason']}", *failed])


def _gain(run: RunData) -> str | None:
    """The judge's gain with its standard error, for a pipeline."""
    gain, error = ((run.results or {}).get(name) for name in ("judge_gain", "judge_gain_error"))
    if gain is None or error is None:
        return None
    return (
        f"The judge's mean gain on the same prompts is {gain:+.3g}, with a standard error of {error:.2g} "
        f"({abs(gain) / error:.1f} standard errors)."
        if error > 0
        else None
    )


# -- token views ---------------------------------------------------------------------------------------------


def _view_sets(run: RunData) -> dict[str, Any] | None:
    """What the template needs to show episodes token by token, None if there are none."""
    if not run.views:
        return None
    everything = [view for views in run.views.values() for view in views]
    scale = tokens.spans(everything)
    titles = {"first": "Before learning: the first iteration", "last": "The last iteration that was saved"}
    return {
        "quantities": list(scale.items()),
        "with_replies": any(view.speakers for view in everything),
        "levels": [
            (step, tokens.shade(step)) for step in range(-tokens.LEVELS, tokens.LEVELS + 1) if step != 0
        ],
        "sets": [
            (titles[name], [(view, _cells(view, scale)) for view in views])
            for name, views in reversed(run.views.items())
        ],
    }


def _cells(view: tokens.TokenView, scale: dict[str, float]) -> list[tuple[str, str, str, bool, str]]:
    """(text, classes, what hovering tells, whether the line ends here, who begins to speak) of each token."""
    cells = []
    speakers = tokens.speaker_labels(view)
    for i, (token, own) in enumerate(zip(view.tokens, view.own, strict=True)):
        classes, hint = ["t"] if own else ["p"], [f"token {i}: {visible(token)!r}"]
        for index, (name, span) in enumerate(scale.items()):
            value = view.quantities[name][i] if name in view.quantities else None
            if value is None:
                continue
            hint.append(f"{name} {shown_number(value)}")
            step = tokens.level(value, span)
            if step:
                classes.append(f"q{index}{'p' if step > 0 else 'n'}{abs(step)}")
        text = token.replace("\n", "↵") if token else tokens.PARTIAL
        cells.append((text, " ".join(classes), "\n".join(hint), token.endswith("\n"), speakers.get(i, "")))
    return cells
