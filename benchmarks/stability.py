"""Multi-epoch stability: PPO with 4 epochs and a KL penalty on real reviews, for 100 iterations.

    python -m benchmarks.stability [--iterations 100] [--kl-coef 0.05] [--json FILE]

A small language model is first trained on the review snippets (``make data`` fetches them). Expected: no
NaN, a finite and bounded KL, and a moderate clip fraction.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import gymnasium as gym
import torch
from transformers import AutoModelForCausalLM

from benchmarks.common import arguments, one_thread, print_table, write_json
from textenv.agents.ppo import PPO, PPOConfig
from textenv.agents.sft import SFT, SFTConfig
from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.registry import make_task


def small_language_model(steps: int, seed: int) -> Any:
    """The task's model after ``steps`` of next-token training on its texts."""
    task = make_task("reviews").build()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(task.model_config(), trust_remote_code=False)
    texts = list(task.texts)
    episodes = EpisodeBatch.from_texts([""] * len(texts), texts, task.tokenizer, max_length=64)
    config = SFTConfig(
        seed=seed, steps=steps, batch_size=32, learning_rate=4e-3, lr_schedule="cosine", warmup_steps=20
    )
    SFT(model, dataset=episodes, tokenizer=task.tokenizer, config=config).learn()
    return model


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train and return KL, clip fraction and reward over the iterations."""
    model = small_language_model(args.sft_steps, args.seed)
    envs = gym.make_vec("TextRLHF-v0", num_envs=32, task="reviews", max_new_tokens=24)
    config = PPOConfig(
        seed=args.seed,
        iterations=args.iterations,
        episodes_per_iteration=args.episodes,
        epochs=4,
        minibatches=4,
        kl_coef=args.kl_coef,
        learning_rate=args.learning_rate,
    )
    history = PPO(model, envs=envs, config=config).learn().history
    names = (
        "objective/score",
        "objective/kl",
        "policy/approx_kl",
        "policy/clip_fraction",
        "objective/entropy",
    )
    points = sorted({0, *range(9, len(history), 10), len(history) - 1})
    rows = [[i + 1, *(history[i][name] for name in names)] for i in points]
    print_table(f"PPO on reviews, KL coefficient {args.kl_coef}", ["iteration", *names], rows)
    finite = all(math.isfinite(row[name]) for row in history for name in names)
    return {
        "finite": finite,
        "iterations": len(history),
        "max_kl": max(row["objective/kl"] for row in history),
        "max_clip_fraction": max(row["policy/clip_fraction"] for row in history),
        "final": {name: history[-1][name] for name in names},
        "curve": [
            {"iteration": i + 1, **{name: row[name] for name in names}} for i, row in enumerate(history)
        ],
        "settings": config.to_dict(),
    }


def main() -> None:
    """Read the arguments, run, report."""
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--episodes", type=int, default=64, help="episodes of an iteration")
    parser.add_argument("--sft-steps", type=int, default=400)
    parser.add_argument("--kl-coef", type=float, default=0.05)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    one_thread()
    figures = run(args)
    write_json(args.json, figures)
    print(
        "finite" if figures["finite"] else "NOT FINITE", f"max KL {figures['max_kl']:.2f} nats per sequence"
    )


if __name__ == "__main__":
    main()
