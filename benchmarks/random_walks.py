"""Learning on random walks: mean optimality over agent seeds, exact, against episodes and optimizer steps.

    python -m benchmarks.random_walks --agent ppo --seeds 5 [--graph-seed 1000] [--json FILE]
    python -m benchmarks.random_walks --all --seeds 5 [--starts FOLDER]

Online agents and some offline ones start from a language model pretrained briefly on the 1,000 walks, the
other offline ones from random weights. Settings are the task's own (``textenv.tasks.walk_settings``), with a
longer pretraining. The figures are expected values of the sampling policy (no sampling noise), see
``textenv.tasks.walk_values``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from filelock import FileLock
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.common import one_thread, print_table, write_json
from textenv.agents.base.agent import SPENT
from textenv.agents.base.callbacks import Callback
from textenv.agents.base.registry import get_agent
from textenv.agents.sft import SFTConfig
from textenv.agents.study.statistics import interval
from textenv.agents.train_setup.task_settings import task_settings, unsaid
from textenv.agents.train_setup.task_start import described, make_start, start_config
from textenv.tasks.registry import make_task
from textenv.tasks.walk_values import exact_optimality
from textenv.utils.files import atomic_folder

COSTS = ("episodes", "optimizer_steps", *SPENT)
BETAS = (0.0, 1.0, 4.0, 16.0, 100.0)
UNMEASURED = ("best-of-n", "reward-model")
"""The first has no exact value, and the second generates no walks."""
AGENTS = [name for name in make_task("random-walks").agent_settings if name not in UNMEASURED]
"""The agents of the table."""

PRETRAINING_STEPS = 1000
"""Five times as many as the task's quick start has, so that figures stay comparable with earlier ones."""


def settings_of(name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An agent's settings: the task's, changed by ``overrides``."""
    given = overrides or {}
    return {**unsaid(task_settings("random-walks", name).settings, given), **given}


def begins_pretrained(name: str) -> bool:
    """Whether an agent starts from the pretrained model instead of random weights."""
    return task_settings("random-walks", name).start is not None


def pretraining(seed: int = 0) -> SFTConfig:
    """Settings of the pretraining."""
    config = start_config(task_settings("random-walks", "ppo").start, {"steps": PRETRAINING_STEPS}, seed)
    assert config is not None
    return config


def new_model(task: Any, seed: int) -> Any:
    """The task's model with random weights."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(task.model_config(), trust_remote_code=False)


def pretrained(graph_seed: int, seed: int, starts: Path) -> Any:
    """The pretrained model, made once and kept in the folder ``starts`` for all agents."""
    folder = starts / f"graph-{graph_seed}-seed-{seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            task = make_task("random-walks").build(seed=graph_seed)
            policy = make_start(new_model(task, seed), task, pretraining(seed), seed=seed)
            with atomic_folder(folder, marker="config.json") as temporary:
                policy.model.save_pretrained(temporary)
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)


class Curve(Callback):
    """Exact optimality after every given number of iterations."""

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
        """Measure if a point is due."""
        if agent.iteration % self.every == 0:
            self.measure(agent)
        return False


def run(
    name: str, graph_seed: int, seed: int, *, overrides: dict[str, Any], curve_every: int, starts: Path
) -> dict[str, Any]:
    """One agent, one seed."""
    task = make_task("random-walks").build(seed=graph_seed)
    cls = get_agent(name)
    config = cls.config_class(seed=seed, **settings_of(name, overrides))
    betas = BETAS if name == "ilql" else None
    curve = Curve(graph_seed, curve_every, betas)
    if cls.online:
        model = pretrained(graph_seed, seed, starts)
        group = cls.group_size(config)
        envs = gym.make_vec(
            "TextRLHF-v0", num_envs=128, task_kwargs={"seed": graph_seed}, samples_per_prompt=group
        )
        agent = cls(model, envs=envs, config=config, callbacks=[curve])
    else:
        agent = cls(
            pretrained(graph_seed, seed, starts) if begins_pretrained(name) else new_model(task, seed),
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
    print(f"{name}, agent seed {seed}: {max(final.values()):.4f} in {seconds:.0f} s", flush=True)
    return {
        "seed": seed,
        "optimality": max(final.values()),
        "by_beta": {k.partition("@")[2]: v for k, v in final.items() if "@" in k},
        "per_start": curve.per_start,
        "curve": curve.points,
        "episodes": agent.episodes_seen,
        "optimizer_steps": agent.optimizer_steps,
        **{name: getattr(agent, name) for name in SPENT},
        "seconds": seconds,
    }


def measure(name: str, graph_seed: int, seeds: Sequence[int], **options: Any) -> dict[str, Any]:
    """One agent, all seeds."""
    runs = [run(name, graph_seed, seed, **options) for seed in seeds]
    scores = [one["optimality"] for one in runs]
    result = {
        "agent": name,
        "graph_seed": graph_seed,
        "settings": settings_of(name, options["overrides"]),
        "pretraining": described(pretraining()) if begins_pretrained(name) else None,
        "optimality": {"mean": statistics.mean(scores), "min": min(scores), "per_seed": scores},
        **{cost: statistics.mean(one[cost] for one in runs) for cost in COSTS},
        "seconds": [one["seconds"] for one in runs],
        "runs": runs,
    }
    if runs[0]["by_beta"]:
        result["by_beta"] = {
            beta: statistics.mean(one["by_beta"][beta] for one in runs) for beta in runs[0]["by_beta"]
        }
    return result


def main() -> None:
    """Run the seeds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--agent", nargs="+", default=["ppo"])
    which.add_argument("--all", action="store_true", help="every agent with settings here, in one table")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--graph-seed", type=int, default=1000)
    parser.add_argument(
        "--curve-every", type=int, default=10**9, help="iterations between points of the curve"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="settings of the agent")
    parser.add_argument("--starts", type=Path, help="folder that keeps the pretrained models for other runs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    one_thread()
    overrides = {}
    for item in args.set:
        field, _, value = item.partition("=")
        overrides[field] = json.loads(value) if value[:1] in "-0123456789tfn[" else value
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    names = AGENTS if args.all else args.agent
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            result = measure(
                name,
                args.graph_seed,
                seeds,
                overrides=overrides,
                curve_every=args.curve_every,
                starts=args.starts or Path(folder),
            )
            found.append(result)
            write_json(args.json, found[0] if len(names) == 1 else {"agents": found})
    if len(names) == 1:
        _print(found[0])
    else:
        _print_all(found, args.graph_seed)


def _print_all(found: Sequence[dict[str, Any]], graph_seed: int) -> None:
    """One row per agent: its optimality with a bootstrap interval, and the cost of a run."""
    rows = []
    for result in found:
        scores = result["optimality"]["per_seed"]
        mean = interval([scores], "mean")
        ends = "" if mean.low != mean.low else f" [{mean.low:.3f}, {mean.high:.3f}]"
        costs = [round(result[cost]) for cost in COSTS]
        seconds = statistics.mean(result["seconds"])
        rows.append([result["agent"], f"{mean.value:.3f}{ends}", f"{min(scores):.3f}", *costs, seconds])
    columns = ["agent", "mean [95 %]", "worst", *(cost.replace("_", " ") for cost in COSTS), "seconds"]
    seeds = len(found[0]["runs"])
    title = f"random walks, graph seed {graph_seed}, exact optimality, {seeds} agent seeds"
    print_table(title, columns, rows, starts_note([result["agent"] for result in found]))


def starts_note(names: Sequence[str]) -> str:
    """One or two sentences on the models that these agents start from."""
    fresh = [name for name in names if not begins_pretrained(name)]
    pretrained_ones = [name for name in names if begins_pretrained(name)]
    parts = []
    if pretrained_ones:
        parts.append(f"Start after next-token pretraining on the walks: {', '.join(pretrained_ones)}.")
    if fresh:
        parts.append(f"Start from random weights: {', '.join(fresh)}.")
    return " ".join(parts)


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
