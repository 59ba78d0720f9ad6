"""Tables, plots and pages of a study, written from its finished runs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from textenv.agents.reports.page import render
from textenv.agents.reports.plots import Plot, PlotFormat, check_plot_format, saving_as
from textenv.agents.study.conclusions import Comparison, comparisons, conclusions, ranking
from textenv.agents.study.config import StudyConfig
from textenv.agents.study.plots import axis, draw_plots
from textenv.agents.study.results import Results
from textenv.agents.study.tables import (
    arm_rows,
    cost_table,
    frontier_table,
    latex,
    markdown,
    run_csv,
    score_table,
    titled,
)
from textenv.utils.files import write_text
from textenv.utils.json_files import write_json
from textenv.utils.redaction import masked

REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Results of ``write_outputs``."""

    verdict: list[str]
    """Conclusions in sentences."""
    table: tuple[list[str], list[list[str]]]
    """Columns and cells of the main table."""
    costs: tuple[list[str], list[list[str]]]
    """Columns and cells of the table of costs."""
    comparisons: list[Comparison]
    """Every pair of agents."""
    report: Path
    """Path of the HTML report."""


def write_outputs(
    config: StudyConfig, folder: str | os.PathLike[str], *, plot_format: PlotFormat = "png"
) -> Outputs:
    """Write results.csv, results.json, report.md, table.tex, plots/ and report.html.

    No runs are made. The same results give the same files.

    Args:
        config: the study's settings.
        folder: the study's folder, with its runs.
        plot_format: "pdf" or "svg" also writes every plot in this format.

    Raises:
        ValueError: if the format is unknown.
    """
    check_plot_format(plot_format)
    folder = Path(folder)
    results = Results(config, folder)
    rows, pairs = arm_rows(results), comparisons(results)
    sentences = conclusions(results, pairs)
    tables = {
        f"Scores ({axis(results)})": score_table(results, rows),
        "Mean score within a KL budget": frontier_table(results),
        "Costs of a run": cost_table(rows),
        "Pairs of agents": pair_table(pairs),
    }
    tables = {name: table for name, table in tables.items() if table[1]}
    write_text(folder / "results.csv", run_csv(results))
    captioned = [
        latex(*table, caption=titled(config.title, name), label=f"{config.title} {name.partition(' (')[0]}")
        for name, table in tables.items()
    ]
    write_text(folder / "table.tex", "\n".join(captioned))
    summary = {
        "title": config.title,
        "verdict": sentences,
        "metric": results.metric,
        "normalized": results.normalized,
        "ranking": ranking(results),
        "arms": rows,
        "comparisons": [pair.to_dict() for pair in pairs],
        "best_of": {task: results.best_of(task) for task in config.tasks},
        "runs": [{**run.spec.to_dict(), "status": run.status, **run.figures} for run in results.runs],
    }
    write_json(folder / "results.json", summary)
    with saving_as(plot_format):
        plots = draw_plots(results, folder / "plots")
    facts = _facts(config, results)
    write_text(folder / "report.md", markdown_page(config, sentences, tables, plots, facts))
    report = render(
        "study.html",
        folder / REPORT,
        title=config.title,
        verdict=sentences,
        tables=tables,
        plots=plots,
        facts=facts,
        settings=masked(config.to_dict()),
    )
    return Outputs(
        verdict=sentences,
        table=score_table(results, rows),
        costs=cost_table(rows),
        comparisons=pairs,
        report=report,
    )


def pair_table(pairs: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the pairs of agents."""
    columns = [
        "better on average",
        "other",
        "paired runs",
        "mean gain",
        "P(better) [95 %]",
        "p",
        "p adjusted",
    ]
    cells = []
    for pair in pairs:
        low, high = pair.improvement.low, pair.improvement.high
        ends = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        cells.append(
            [
                pair.better,
                pair.worse,
                str(pair.pairs),
                f"{pair.gain:.4g}",
                f"{pair.improvement.value:.2f}{ends}",
                f"{pair.p:.2g}",
                f"{pair.adjusted_p:.2g}",
            ]
        )
    return columns, cells


def markdown_page(
    config: StudyConfig,
    verdict: list[str],
    tables: Mapping[str, tuple[list[str], list[list[str]]]],
    plots: list[Plot],
    facts: list[tuple[str, str]],
) -> str:
    """The report in Markdown, with links to the plots in plots/."""
    parts = [f"# {config.title[:1].upper()}{config.title[1:]}", *verdict]
    for name, table in tables.items():
        parts += [f"## {name}", markdown(*table).rstrip()]
    parts += [f"![{plot.alt}](plots/{plot.path.name})" for plot in plots]
    parts += ["## The study", markdown(["", ""], facts).rstrip()]
    settings = yaml.safe_dump(masked(config.to_dict()), sort_keys=False).rstrip()
    return "\n\n".join([*parts, f"```yaml\n{settings}\n```"]) + "\n"


def _facts(config: StudyConfig, results: Results) -> list[tuple[str, str]]:
    done = sum(run.status == "done" for run in results.runs)
    limits = ", ".join(f"{limit:g} {name}" for name, limit in config.budget.limits().items())
    return [
        ("runs", f"{done} of {len(results.runs)} done, {_counted(results, 'failed')} failed"),
        ("agents", ", ".join(config.agents)),
        ("tasks", ", ".join(config.tasks)),
        ("seeds", ", ".join(map(str, config.seed_list))),
        ("KL coefficients", ", ".join(f"{coef:g}" for coef in config.kl_coefs) or "the agents' own"),
        ("budget of a run", limits or "as the agents' settings say"),
        ("compared by", axis(results)),
        ("evaluation", f"{config.eval_episodes} episodes, the same prompts and noise for all"),
        ("versions", ", ".join(f"{name} {version}" for name, version in results.versions.items())),
    ]


def _counted(results: Results, status: str) -> int:
    return sum(run.status == status for run in results.runs)
