"""The tables of a study: every run as CSV, every arm as Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from textenv.agents.study.config import START
from textenv.agents.study.frontier import scores_at_kl
from textenv.agents.study.results import Results
from textenv.agents.study.run import FIGURES
from textenv.agents.study.statistics import Interval, Statistic, interval
from textenv.utils.extras import import_extra

_tabulate = import_extra("tabulate", extra="study", what="a comparison study")

SPENT_NAMES = ("env_tokens", "gradient_tokens", "reward_calls", "seconds")
"""Costs of a run."""


def arm_rows(results: Results) -> list[dict[str, Any]]:
    """One row per arm: how many of its runs are done, intervals of its scores, means of its other figures.

    The start and the best-of-n anchors come first.
    """
    rows = []
    for arm, (label, coef) in results.arms.items():
        runs = results.of_arm(arm)
        planned = sum(run.spec.arm == arm for run in results.runs)
        row: dict[str, Any] = {"arm": arm, "label": label, "kl_coef": coef}
        row |= {"runs": len(runs), "planned": planned}
        scores = {key: value for key, value in results.scores(arm).items() if math.isfinite(value)}
        if scores:
            tasks = results.by_task(scores)
            kinds: tuple[Statistic, ...] = ("iqm", "median", "mean")
            row |= {kind: interval(tasks, kind) for kind in kinds}
        for name in FIGURES:
            values = [run.figures[name] for run in runs if name in run.figures]
            if values:
                row[f"mean_{name}"] = float(np.mean(values))
        rows.append(row)
        if label == START:
            rows += _best_of_rows(results)
    return rows


def _best_of_rows(results: Results) -> list[dict[str, Any]]:
    if len(results.config.tasks) > 1:
        return []  # their scales differ; the frontiers have them task by task
    (task,) = results.config.tasks
    return [
        {
            "arm": f"best of {n}",
            "label": START,
            "kl_coef": None,
            "runs": len(results.of_arm(START)),
            "planned": len(results.config.seed_list),
            "mean": Interval(results.score(found, task), math.nan, math.nan),
            **{f"mean_{name}": value for name, value in found.items()},
        }
        for n, found in results.best_of(task).items()
    ]


def score_table(results: Results, rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the main table."""
    columns = ["agent", "runs", "IQM [95 %]", "mean [95 %]", "median [95 %]"]
    figures = ["reward", *(["judge"] if results.judged else []), "kl", "length", "repetition"]
    cells = []
    for row in rows:
        shown = [row["arm"], f"{row['runs']}/{row['planned']}"]
        shown += [_interval(row.get(kind)) for kind in ("iqm", "mean", "median")]
        shown += [_number(row.get(f"mean_{name}")) for name in figures]
        cells.append(shown)
    return [*columns, *figures], cells


def cost_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of what the runs of each arm cost on average."""
    trained = [row for row in rows if row["label"] != START]
    columns = ["agent", "env tokens", "gradient tokens", "reward calls", "seconds"]
    return columns, [[row["arm"], *(_number(row.get(f"mean_{n}")) for n in SPENT_NAMES)] for row in trained]


def frontier_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of each agent's mean score within each KL budget."""
    budgets = results.config.kl_budgets
    cells = []
    for label in results.config.agents:
        row = [label]
        for budget in budgets:
            found = {k: v for k, v in scores_at_kl(results, label, budget).items() if math.isfinite(v)}
            row.append(_interval(interval(results.by_task(found), "mean") if found else None))
        cells.append(row)
    return ["agent", *(f"within {budget:g} nats" for budget in budgets)], cells


def markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return str(_tabulate.tabulate(cells, columns, tablefmt="github", disable_numparse=True)) + "\n"


def titled(title: str, part: str) -> str:
    """A study's title and the name of a part of it, with a colon between them unless the title ends itself.

    >>> titled("Two agents", "Scores"), titled("Which is better?", "Scores")
    ('Two agents: Scores', 'Which is better? Scores')
    """
    title = title.rstrip()
    return f"{title} {part}" if title.endswith((".", "?", "!", ":", "…")) else f"{title}: {part}"


def latex(columns: Sequence[str], cells: Sequence[Sequence[str]], *, caption: str, label: str) -> str:
    r"""A table in LaTeX that floats, for the package booktabs.

    Args:
        columns: heads of the columns.
        cells: rows of texts.
        caption: caption; special characters of LaTeX are escaped.
        label: name for ``\label``; only its letters and digits are kept.

    >>> print(latex(["agent"], [["b_1"]], caption="wide & narrow", label="Wide & narrow: scores"))
    \begin{table}
    \centering
    \caption{wide \& narrow}
    \label{tab:wide-narrow-scores}
    \begin{tabular}{l}
    \toprule
     agent   \\
    \midrule
     b\_1    \\
    \bottomrule
    \end{tabular}
    \end{table}
    <BLANKLINE>
    """
    escaped = "".join(_tabulate.LATEX_ESCAPE_RULES.get(character, character) for character in caption)
    name = "-".join(re.findall(r"[a-z0-9]+", label.lower()))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped}}}",
            rf"\label{{tab:{name}}}",
            _tabulate.tabulate(cells, columns, tablefmt="latex_booktabs", disable_numparse=True),
            r"\end{table}",
            "",
        ]
    )


def run_csv(results: Results) -> str:
    """Every run as a line of CSV: what it is, its status, its figures."""
    out = io.StringIO()
    columns = ["agent", "task", "seed", "kl_coef", "status", *FIGURES, "error"]
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for run in results.runs:
        spec = run.spec
        row = {"agent": spec.label, "task": spec.task, "seed": spec.seed, "status": run.status}
        row |= {"kl_coef": "" if spec.kl_coef is None else spec.kl_coef, "error": run.error}
        writer.writerow({**row, **{name: run.figures[name] for name in FIGURES if name in run.figures}})
    return out.getvalue()


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _interval(found: Interval | None) -> str:
    if found is None:
        return "n/a"
    value = f"{found.value:.3f}"
    return value if math.isnan(found.low) else f"{value} [{found.low:.3f}, {found.high:.3f}]"
