"""The reward model and the judge of the reviews demo: held-out accuracy, calibration, human ratings.

    python -m benchmarks.reward_model [--seeds 3] [--config configs/reviews.yaml] [--json FILE]

Human figures for comparison: one rater against the mean of all, and half of a text's raters against the other
half. ``make data`` fetches the ratings.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import spearmanr

from benchmarks.common import arguments, one_thread, print_table, write_json
from textenv.agents.evaluation.reward_model import RewardEvaluation
from textenv.agents.pipeline.run import PipelineConfig
from textenv.agents.reward_model import RewardModelAgent, RewardModelConfig
from textenv.tasks.feedback import Feedback, reviews_feedback
from textenv.tasks.preferences import preference_pairs
from textenv.tasks.snippets import RatedSnippets, load_snippets

FIGURES = ("accuracy", "agreement", "ece", "log_loss", "spearman", "rmse", "score/std")


def people(films: RatedSnippets, seed: int = 0) -> dict[str, float]:
    """Human agreement on the held-out pairs and ratings: one rater, and half of them against the rest."""
    draw = random.Random(seed)
    halves: dict[str, tuple[float, float]] = {}
    for text, ratings in zip(films.texts, films.ratings, strict=True):
        mixed = draw.sample(ratings, len(ratings))
        middle = len(mixed) // 2
        halves[text] = (statistics.fmean(mixed[:middle]), statistics.fmean(mixed[middle:]))
    pairs = preference_pairs(films, split="test")
    by_text = {text.casefold(): half for text, half in halves.items()}

    def gap(i: int, half: int) -> float:
        # Upper or lower case of a prompt is that of most texts of its group.
        better, worse = pairs.prompts[i] + pairs.chosen[i], pairs.prompts[i] + pairs.rejected[i]
        return by_text[better.casefold()][half] - by_text[worse.casefold()][half]

    agree = []
    for i in range(len(pairs)):
        one, other = gap(i, 0), gap(i, 1)
        agree.append(0.5 if one == 0 or other == 0 else float((one > 0) == (other > 0)))
    judged = [halves[text] for text in films.select("judge").texts]
    return {
        "one person agrees": statistics.fmean(pairs.labels),
        "half the raters agree with the other half": statistics.fmean(agree),
        "spearman between halves": float(spearmanr(judged).statistic),
    }


def train(
    feedback: Feedback, settings: RewardModelConfig, *, judge: bool = False
) -> tuple[RewardEvaluation, float]:
    """A trained model's evaluation, and the seconds of its training."""
    assert feedback.make_scorer is not None
    model, tokenizer = feedback.make_scorer()
    agent = RewardModelAgent(
        model,
        dataset=feedback.judge if judge else feedback.train,
        config=settings,
        tokenizer=tokenizer,
    )
    started = time.perf_counter()
    agent.learn()
    seconds = time.perf_counter() - started
    return agent.evaluate(feedback.judge_held_out if judge else feedback.held_out), seconds


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train with each seed and collect the figures."""
    config = PipelineConfig.from_dict(yaml.safe_load(args.config.read_text()))
    feedback = reviews_feedback()
    found: dict[str, Any] = {"people": people(load_snippets("movie"))}
    rows = []
    for name, settings, judge in (("reward model", config.reward, False), ("judge", config.judge, True)):
        runs = []
        for seed in range(args.seeds):
            evaluation, seconds = train(feedback, settings.replace(seed=settings.seed + seed), judge=judge)
            runs.append({**evaluation.metrics, "seconds": seconds})
            if not judge and not seed:
                found["reliability"] = evaluation.to_dict()["reliability"]
        found[name] = runs
        means = {key: statistics.fmean(row[key] for row in runs) for key in runs[0]}
        rows.append([name, *(means.get(key, float("nan")) for key in (*FIGURES, "seconds"))])
    print_table(f"held-out data, mean of {args.seeds} seeds", ["", *FIGURES, "seconds"], rows)
    print_table("human raters", ["", "value"], [list(item) for item in found["people"].items()])
    table = [[row[key] for key in ("low", "count", "confidence", "accuracy")] for row in found["reliability"]]
    print_table("reliability of the reward model", ["from", "pairs", "confidence", "right"], table)
    return found


def main() -> None:
    """Read the arguments, run, report."""
    parser = arguments(__doc__.split("\n")[0])
    default = Path(__file__).parents[1] / "configs" / "reviews.yaml"
    parser.add_argument("--config", type=Path, default=default, help="settings of reward model and judge")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    one_thread()
    write_json(args.json, run(args))


if __name__ == "__main__":
    main()
