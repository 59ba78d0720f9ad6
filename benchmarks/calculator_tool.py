"""Learning to call a tool: calls per episode and exact match on "calculator", before and after training.

    python -m benchmarks.calculator_tool [--agent grpo] [--seeds 3] [--json FILE]

An agent starts from a small model that was fine-tuned on mixed episodes, in a tenth of which the tool is
called. Settings are the task's own (``textenv.tasks.calculator_settings``). The figures are of sampled
episodes on the problems of the validation split, which no training sees.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

import textenv
from benchmarks.common import arguments, one_thread, print_table, write_json
from textenv.agents.base.callbacks import Callback
from textenv.partners.tools import tool_counts

TASK = "calculator"
EPISODES = 800


def tool_use(policy: Any, episodes: int = EPISODES) -> dict[str, float]:
    """Exact match, calls and failed calls per episode, and exact match where the tool was called."""
    envs = gym.make_vec("TextRLHF-v0", 128, task=TASK, split="validation")
    batch = textenv.collect(envs, policy, episodes, seed=0)
    envs.close()
    counts = [tool_counts(replies) for replies in batch.extras["replies"]]
    right = batch.returns.tolist()
    users = [value for value, (calls, _) in zip(right, counts, strict=True) if calls]
    return {
        "exact_match": statistics.mean(right),
        "calls": statistics.mean(calls for calls, _ in counts),
        "failed_calls": statistics.mean(failed for _, failed in counts),
        "exact_match_with_calls": statistics.mean(users) if users else 0.0,
    }


class Before(Callback):
    """Measures the policy with which an agent begins."""

    def on_start(self, agent: Any) -> None:
        """Measure it."""
        self.found = tool_use(agent.policy)


def run(agent: str, seed: int, **settings: Any) -> dict[str, Any]:
    """Train with one seed."""
    before, began = Before(), time.perf_counter()
    result = textenv.train(
        agent, task=TASK, seed=seed, callbacks=[before], loggers=(), eval_episodes=1, **settings
    )
    seconds = time.perf_counter() - began
    after = tool_use(result.agent.policy)
    matches = f"{before.found['exact_match']:.3f} -> {after['exact_match']:.3f}"
    print(f"{agent}, seed {seed}: exact match {matches} in {seconds:.0f} s", flush=True)
    return {
        "agent": agent,
        "seed": seed,
        "episodes": result.episodes,
        "before": before.found,
        "after": after,
        "seconds": seconds,
    }


def main() -> None:
    """Run the seeds and print a table."""
    parser: argparse.ArgumentParser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--agent", nargs="+", default=["grpo"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="settings of the agent")
    args = parser.parse_args()
    one_thread()
    settings = {name: json.loads(value) for name, _, value in (item.partition("=") for item in args.set)}
    if args.quick:
        settings |= {"iterations": 2, "episodes_per_iteration": 64, "start": {"steps": 5}}
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    runs = []
    for agent in args.agent:
        for seed in seeds:
            runs.append(run(agent, seed, **settings))
            write_json(args.json, {"task": TASK, "episodes": EPISODES, "runs": runs})
    columns = [
        "agent, seed",
        "calls before",
        "after",
        "exact match before",
        "after",
        "failed calls",
        "seconds",
    ]
    print_table("calculator: sampled episodes on the validation split", columns, rows(runs))


def rows(runs: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """A row of the table for each run."""
    return [
        [
            f"{one['agent']}, {one['seed']}",
            *(f"{one[when]['calls']:.2f}" for when in ("before", "after")),
            *(f"{one[when]['exact_match']:.3f}" for when in ("before", "after")),
            f"{one['after']['failed_calls']:.3f}",
            round(one["seconds"]),
        ]
        for one in runs
    ]


if __name__ == "__main__":
    main()
