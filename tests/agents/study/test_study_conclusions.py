"""What studies conclude, from made-up results: conclusions, coefficients, frontiers, scales, tables."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.agents.study.study_helpers import pretended
from textenv.agents.study.conclusions import comparisons, conclusions, ranking
from textenv.agents.study.frontier import frontier, scores_at_kl
from textenv.agents.study.outputs import write_outputs
from textenv.agents.study.plots import draw_plots
from textenv.agents.study.statistics import smallest_p
from textenv.agents.study.tables import arm_rows, latex, markdown, run_csv, score_table

HIGH = [0.9 + 0.01 * i for i in range(10)]
LOW = [0.5 + 0.01 * i for i in range(10)]


def words(results: object) -> str:
    return "\n".join(conclusions(results, comparisons(results)))  # type: ignore[arg-type]


def test_an_agent_that_beats_all_others_wins(tmp_path: Path) -> None:
    results = pretended(tmp_path, {"a": LOW, "b": HIGH, "c": LOW[::-1]})
    assert words(results).startswith(
        "A winner can be called: the highest IQM by the reward has b (0.945), and it is better than "
        "a (adjusted p 0.0059), c (adjusted p 0.0059)."
    )
    (first, second, third) = comparisons(results)
    assert (first.better, first.worse, first.pairs) == ("b", "a", 10)
    assert first.p == smallest_p(10) and first.adjusted_p == pytest.approx(3 * smallest_p(10))
    assert first.gain == pytest.approx(0.4) and first.improvement.value == 1.0
    assert second.improvement.value == 0.5 and second.adjusted_p == 1.0 and third.better == "b"


def test_two_that_are_alike_are_not_told_apart(tmp_path: Path) -> None:
    alike = [value + (0.02 if i % 2 else -0.02) for i, value in enumerate(HIGH)]
    found = words(pretended(tmp_path, {"a": alike, "b": HIGH, "c": LOW}))
    assert found.startswith("No winner can be called: the highest IQM by the reward has")
    assert "is not significantly better than" in found and "it is better than c" in found
    assert "no test can reach significance" not in found


def test_five_seeds_are_too_few_for_the_test_and_the_conclusion_says_how_many_suffice(
    tmp_path: Path,
) -> None:
    found = words(pretended(tmp_path, {"a": LOW[:5], "b": HIGH[:5]}))
    assert found.startswith(
        "No winner can be called: the highest IQM by the reward has b (0.92), but it is not"
    )
    assert "With 5 paired runs and 1 comparison no test can reach significance" in found
    assert "the smallest possible adjusted p is 0.062. With 6 paired runs it could." in found


def test_fewer_than_five_seeds_call_no_winner(tmp_path: Path) -> None:
    results = pretended(tmp_path, {"a": LOW[:4], "b": HIGH[:4]})
    assert words(results).startswith(
        "No winner can be called: 4 seeds are too few to compare agents, at least 5 are needed. So far, the "
        "highest IQM by the reward has b"
    )
    assert math.isnan(arm_rows(results)[1]["iqm"].low)


def test_runs_that_failed_are_named_and_not_counted(tmp_path: Path) -> None:
    results = pretended(tmp_path, {"a": [*LOW[:6], None], "b": HIGH[:7]})
    found = words(results)
    assert (
        "1 run failed and is not counted, which biases the comparison in favour of agents that fail: "
        in found
    )
    assert "agents that fail: a on probe-end, seed 6" in found
    assert "NonFiniteError: loss is NaN" in found
    assert comparisons(results)[0].pairs == 6
    assert run_csv(results).count("NonFiniteError") == 1


def test_six_of_ten_seeds_is_what_counts_when_the_rest_is_missing(tmp_path: Path) -> None:
    results = pretended(tmp_path, {"a": LOW[:4] + [None] * 6, "b": HIGH})
    assert words(results).startswith("No winner can be called: 4 seeds are too few")


def test_an_agent_below_its_start_is_named(tmp_path: Path) -> None:
    found = words(pretended(tmp_path, {"a": LOW, "b": HIGH}, start=0.7))
    assert "No better than the policy they began with (0.7): a." in found


def test_the_coefficient_is_chosen_on_the_other_seeds(tmp_path: Path) -> None:
    # Coefficient 1 is best on seed 0 alone; seen from the other seeds, 2 is best.
    scores = {
        "a, KL 1": [9.0, 1.0, 1.0],
        "a, KL 2": [2.0, 2.0, 2.0],
        "b, KL 1": [0.0] * 3,
        "b, KL 2": [1.0] * 3,
    }
    results = pretended(tmp_path, scores, kl_coefs=[1.0, 2.0])
    tuned = results.tuned_scores("a")
    # Seed 0: others have means 1 and 2, so 2.0 counts. Seeds 1 and 2: (9 + 1) / 2 and 2, so coefficient 1.
    assert [tuned["probe-end", seed] for seed in range(3)] == [2.0, 1.0, 1.0]
    assert results.tuned_scores("b") == {("probe-end", seed): 1.0 for seed in range(3)}
    assert ranking(results)[0][0] == "a"


def test_the_frontier_takes_the_evaluation_that_the_reward_likes_best(tmp_path: Path) -> None:
    course = [
        {"reward": 0.5, "kl": 1.0},
        {"reward": 0.8, "kl": 2.5},
        {"reward": 0.6, "kl": 2.0},
        {"reward": 0.9, "kl": 8.0},
    ]
    results = pretended(tmp_path, {"a": [0.9, 0.9]}, courses={"a": course}, start=0.1)
    at = [scores_at_kl(results, "a", budget)["probe-end", 0] for budget in (0.5, 1.0, 2.2, 3.0, 10.0)]
    assert at == [0.1, 0.5, 0.6, 0.8, 0.9]
    assert frontier(results, "a", "probe-end", [-1.0, 0.0, 100.0])[1:] == [0.1, 0.9]
    assert math.isnan(frontier(results, "a", "probe-end", [-1.0])[0])


def test_scores_of_several_tasks_are_put_on_one_scale(tmp_path: Path) -> None:
    results = pretended(tmp_path, {"a": [0.6, 0.8]}, tasks=("probe-end", "probe-copy"), start=0.5)
    # From the start's 0.5 to the optimum, 1.
    assert results.normalized
    assert results.scores("a") == pytest.approx(
        {(task, seed): 0.2 + 0.4 * seed for task in ("probe-end", "probe-copy") for seed in (0, 1)}
    )
    assert results.scores("start") == {
        (task, seed): 0.0 for task in ("probe-end", "probe-copy") for seed in (0, 1)
    }
    assert [len(task) for task in results.by_task(results.scores("a"))] == [2, 2]


def test_a_task_without_a_scale_is_told(tmp_path: Path) -> None:
    results = pretended(tmp_path, {"a": [0.6, 0.8]}, tasks=("probe-end", "probe-copy"), start=1.0)
    assert "Scores on probe-end can't be normalised" in words(results)


def test_captions_of_a_study_whose_title_is_a_question(tmp_path: Path) -> None:
    config = pretended(tmp_path, {"a": [0.4, 0.6]}).config
    write_outputs(config.replace(title="Which is better?"), tmp_path)
    captions = re.findall(r"\\caption{(.*)}", (tmp_path / "table.tex").read_text())
    assert captions[0].startswith("Which is better? Scores (") and not any("?:" in text for text in captions)


def test_tables_and_plots(tmp_path: Path) -> None:
    results = pretended(tmp_path / "study", {"a": LOW, "b_1": HIGH})
    columns, cells = score_table(results, arm_rows(results))
    assert columns[:3] == ["agent", "runs", "IQM [95 %]"]
    assert [row[:2] for row in cells] == [["start", "10/10"], ["a", "10/10"], ["b_1", "10/10"]]
    assert cells[1][2].startswith("0.545 [0.5")
    assert markdown(columns, cells).splitlines()[2].startswith("| start")
    table = latex(columns, cells, caption="50 % of {a}", label="A study: Scores")
    assert r"b\_1" in table and r"95 \%" in table
    assert r"\caption{50 \% of \{a\}}" in table and r"\label{tab:a-study-scores}" in table
    assert table.startswith(r"\begin{table}") and table.endswith("\\end{table}\n")
    plots = draw_plots(results, tmp_path / "plots")
    assert {plot.name for plot in plots} == {"scores", "profile", "frontier-probe-end"}
    assert all(plot.path.read_bytes().startswith(b"\x89PNG") and plot.alt for plot in plots)
    assert np.isfinite(plots[0].width)


@pytest.mark.parametrize(("kind", "begins"), [("pdf", b"%PDF-"), ("svg", b"<?xml")])
def test_plots_are_written_as_vector_graphics_too(tmp_path: Path, kind: Any, begins: bytes) -> None:
    results = pretended(tmp_path, {"a": LOW})
    written = []
    for _ in range(2):
        write_outputs(results.config, tmp_path, plot_format=kind)
        written.append({file.name: file.read_bytes() for file in (tmp_path / "plots").glob(f"*.{kind}")})
    assert {"scores", "profile"} <= {Path(name).stem for name in written[0]}
    assert len(written[0]) == len(list((tmp_path / "plots").glob("*.png")))
    assert all(content.startswith(begins) for content in written[0].values())
    assert written[0] == written[1]
    with pytest.raises(ValueError, match="plot_format must be one of png, pdf, svg, got 'eps'"):
        write_outputs(results.config, tmp_path, plot_format="eps")  # type: ignore[arg-type]
