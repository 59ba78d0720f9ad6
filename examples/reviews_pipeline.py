"""Complete RLHF on real film reviews: fine-tuning, reward model, judge and PPO, in one call.

    python -m textenv.tasks.fetch                      # the texts and ratings, once (2.4 MB)
    python examples/reviews_pipeline.py --run-dir runs/reviews

Run it again with the same folder to reuse finished stages and continue an interrupted one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import yaml
from rich.console import Console
from transformers.utils import logging

from textenv.agents.pipeline import PipelineConfig, run_pipeline


def main() -> None:
    """Read the settings, run, show what changed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(__file__).parents[1] / "configs" / "reviews.yaml"
    parser.add_argument("--config", type=Path, default=default, help="YAML file of settings")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/reviews"), help="folder of the run")
    parser.add_argument("--overwrite", action="store_true", help="repeat stages whose settings changed")
    parser.add_argument("--loggers", nargs="*", default=["rich"], help="rich, tensorboard, wandb")
    args = parser.parse_args()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.perf_counter()
    config = PipelineConfig.from_dict(yaml.safe_load(args.config.read_text()))
    result = run_pipeline(config, args.run_dir, loggers=args.loggers, overwrite=args.overwrite)

    console = Console()
    for name, figures in result.stages.items():
        note = "reused" if figures["reused"] else f"{figures['seconds']:.0f} s"
        console.print(f"{name}: {note}")
    scores = result.stages.get("reward-model", {}).get("metrics", {})
    if "accuracy" in scores:
        console.print(
            f"reward model on prompts never seen: pair accuracy {scores['accuracy']:.3f}, "
            f"rank correlation with people's ratings {scores['spearman']:.3f}"
        )
    compared = result.comparison
    if compared is not None:
        console.print(compared.table())
        console.print(compared.sample_table())
        gain, error = compared.judge_gain, compared.judge_gain_error
        console.print(f"The judge's score moved by {gain:+.2f} (standard error {error:.2f}).")
    console.print(f"{time.perf_counter() - started:.0f} s; everything is in {result.run_dir}")


if __name__ == "__main__":
    main()
