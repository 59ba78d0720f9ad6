"""Learning on random walks: mean optimality over agent seeds, exact, against episodes and optimizer steps.

    python -m benchmarks.random_walks --agent ppo --seeds 5 [--graph-seed 1000] [--json FILE]

Online agents start from a language model pretrained briefly on the 1,000 walks, offline ones from random
weights. The figures are expected values of the sampling policy (no sampling noise), see
``textenv.tasks.walk_values``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.common import one_thread, write_json
from textenv.agents.callbacks import Callback
from textenv.agents.registry import get_agent
from textenv.agents.sft import SFT, SFTConfig
from textenv.tasks.registry import make_task
from textenv.tasks.walk_values import exact_optimality

BETAS = (0.0, 1.0, 4.0, 16.0, 100.0)
EPISODES = 2_800

PRETRAINING: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 100,
    "steps": 400,
    "lr_schedule": "cosine",
}
_ONLINE: dict[str, Any] = {"learning_rate": 1.5e-4, "episodes_per_iteration": 140, "kl_coef": 0.0}
_PLAIN = {**_ONLINE, "epochs": 1, "minibatches": 7}
_CLIPPED = {**_ONLINE, "epochs": 4, "minibatches": 2, "clip_range": 0.2, "stop_at_kl": 0.02}
_GROUPED = {**_CLIPPED, "samples_per_prompt": 7}
# The same on every graph; they were chosen on graph seed 1000.
CONFIGS: dict[str, dict[str, Any]] = {
    "ppo": {
        "learning_rate": 1.5e-4,
        "episodes_per_iteration": 140,
        "epochs": 4,
        "minibatches": 2,
        "adam_betas": (0.9, 0.999),
        # What follows the goal earns nothing: a discount makes the end of the text better than more text.
        "gamma": 0.95,
        "whiten_min_std": 0.3,
        "kl_coef": 0.0,
        "value_coef": 1.2,
        "value_head": "mlp",
    },
    "a2c": {**_PLAIN, "value_coef": 1.2, "value_head": "mlp", "center_by_prompt": True},
    "reinforce": {**_PLAIN, "whiten_advantages": True},
    "rloo": {**_GROUPED, "whiten_advantages": True},
    "grpo": _GROUPED,
    "reinforce++": _CLIPPED,
    "ilql": {
        "learning_rate": 2e-3,
        "lr_schedule": "cosine",
        "warmup_steps": 20,
        "batch_size": 100,
        "steps": 200,
        "gamma": 0.99,
        "expectile": 0.9,
        "head": "mlp",
        "target_alpha": 0.1,
        "target_every": 5,
        "standardize_returns": True,
    },
    "sft": {"learning_rate": 1e-3, "batch_size": 100, "steps": 200, "lr_schedule": "cosine"},
    "filtered-bc": {
        "learning_rate": 1e-3,
        "batch_size": 100,
        "steps": 200,
        "lr_schedule": "cosine",
        "percentile": 0.85,
    },
}


def new_model(task: Any, seed: int) -> Any:
    """The task's model with random weights."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(task.model_config())


def pretrained(task: Any, seed: int) -> Any:
    """The task's model after a short next-token pretraining on the walks."""
    model = new_model(task, seed)
    agent = SFT(
        model,
        dataset=task.demonstrations,
        tokenizer=task.tokenizer,
        config=SFTConfig(seed=seed, completion_only=False, **PRETRAINING),
    )
    agent.learn()
    return model


class Curve(Callback):
    """Exact optimality every so many iterations."""

    def __init__(self, graph_seed: int, every: int, betas: tuple[float, ...] | None) -> None:
        self.graph_seed, self.every, self.betas = graph_seed, every, betas
        self.points: list[dict[str, float]] = []
        self.per_start: dict[str, float] = {}

    def measure(self, agent: Any) -> None:
        """Add a point."""
        point = {"episodes": agent.episodes_seen, "optimizer_steps": agent.optimizer_steps}
        if self.betas is None:
            value = exact_optimality(agent.policy, seed=self.graph_seed)
            point["optimality"], self.per_start = value.optimality, value.per_start
        else:
            before = agent.policy.beta
            for beta in self.betas:
                agent.policy.beta = beta
                value = exact_optimality(agent.policy, seed=self.graph_seed)
                point[f"optimality@{beta:g}"], self.per_start = value.optimality, value.per_start
            agent.policy.beta = before
        self.points.append(point)

    def on_iteration(self, agent: Any, metrics: dict[str, float]) -> bool:
        """Measure when it is time."""
        if agent.iteration % self.every == 0:
            self.measure(agent)
        return False


def run(
    name: str, graph_seed: int, seed: int, *, overrides: dict[str, Any], curve_every: int
) -> dict[str, Any]:
    """One agent, one seed."""
    task = make_task("random-walks").build(seed=graph_seed)
    cls = get_agent(name)
    settings = {**CONFIGS.get(name, {}), **overrides}
    if cls.online and not {"iterations", "total_episodes"} & set(settings):
        settings["total_episodes"] = EPISODES
    config = cls.config_class(seed=seed, **settings)
    betas = BETAS if name == "ilql" else None
    curve = Curve(graph_seed, curve_every, betas)
    if cls.online:
        model = pretrained(task, seed)
        group = cls.group_size(config) if hasattr(cls, "group_size") else 1
        envs = gym.make_vec(
            "TextRLHF-v0", num_envs=128, task_kwargs={"seed": graph_seed}, samples_per_prompt=group
        )
        agent = cls(model, envs=envs, config=config, callbacks=[curve])
    else:
        agent = cls(
            new_model(task, seed),
            dataset=task.demonstrations,
            tokenizer=task.tokenizer,
            config=config,
            callbacks=[curve],
        )
    started = time.perf_counter()
    agent.learn()
    seconds = time.perf_counter() - started
    if not curve.points or curve.points[-1]["optimizer_steps"] != agent.optimizer_steps:
        curve.measure(agent)
    final = {k: v for k, v in curve.points[-1].items() if k.startswith("optimality")}
    return {
        "seed": seed,
        "optimality": max(final.values()),
        "by_beta": {k.partition("@")[2]: v for k, v in final.items() if "@" in k},
        "per_start": curve.per_start,
        "curve": curve.points,
        "episodes": agent.episodes_seen,
        "optimizer_steps": agent.optimizer_steps,
        "seconds": seconds,
    }


def main() -> None:
    """Run the seeds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--agent", default="ppo")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--graph-seed", type=int, default=1000)
    parser.add_argument(
        "--curve-every", type=int, default=10**9, help="iterations between points of the curve"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="settings of the agent")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    one_thread()
    overrides = {}
    for item in args.set:
        field, _, value = item.partition("=")
        overrides[field] = json.loads(value) if value[:1] in "-0123456789tfn[" else value
    runs = [
        run(args.agent, args.graph_seed, seed, overrides=overrides, curve_every=args.curve_every)
        for seed in range(args.first_seed, args.first_seed + args.seeds)
    ]
    scores = [one["optimality"] for one in runs]
    result = {
        "agent": args.agent,
        "graph_seed": args.graph_seed,
        "settings": {**CONFIGS.get(args.agent, {}), **overrides},
        "pretraining": PRETRAINING if get_agent(args.agent).online else None,
        "optimality": {"mean": statistics.mean(scores), "min": min(scores), "per_seed": scores},
        "episodes": runs[0]["episodes"],
        "optimizer_steps": runs[0]["optimizer_steps"],
        "seconds": [one["seconds"] for one in runs],
        "runs": runs,
    }
    if runs[0]["by_beta"]:
        result["by_beta"] = {
            beta: statistics.mean(one["by_beta"][beta] for one in runs) for beta in runs[0]["by_beta"]
        }
    _print(result)
    if args.json:
        write_json(args.json, result)


def _print(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['agent']} on random walks, graph seed {result['graph_seed']}, exact optimality"
    )
    betas = list(result.get("by_beta", {}))
    for column in ("seed", *(f"beta {beta}" for beta in betas), "optimality", "episodes", "steps", "seconds"):
        table.add_column(column, justify="right")
    for one in result["runs"]:
        row = [str(one["seed"]), *(f"{one['by_beta'][b]:.3f}" for b in betas), f"{one['optimality']:.4f}"]
        table.add_row(*row, str(one["episodes"]), str(one["optimizer_steps"]), f"{one['seconds']:.1f}")
    means = [f"{result['by_beta'][b]:.3f}" for b in betas]
    table.add_row("mean", *means, f"{result['optimality']['mean']:.4f}", "", "", "")
    Console().print(table)


if __name__ == "__main__":
    main()
