"""What ``textenv train AGENT --task TASK`` reaches at its defaults: each agent on random walks and probes.

    python -m benchmarks.first_command [--agents ppo grpo ...] [--tasks random-walks ...] [--json FILE]

Start and end are mean returns of 512 held-out episodes (prompts and noise of a seed that no training uses):
before the training (after the task's fine-tuned start) and after it. An agent has learned if the end is above
the start by 3 standard errors and at least half of the gap to the optimum is closed. Seconds are CPU time of
the whole command on one thread, evaluations and report included. If a cell has not learned, the reason that
the command prints at its start is in the table.

With ``--json`` every finished cell is written at once. Cells that are in the file are not run again, so the
table can be made in parts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import textenv
from benchmarks.common import one_thread, print_table, write_json
from benchmarks.probes import PROBES
from textenv.agents.base.callbacks import Callback
from textenv.agents.base.registry import agent_names
from textenv.agents.evaluation.evaluator import evaluate
from textenv.tasks.registry import make_task

TASKS = ("random-walks", *PROBES)
EPISODES = 512
LIMIT = 120.0
"""Time limit of a command in seconds."""


class Start(Callback):
    """Evaluates the policy before the training; this time is not counted."""

    def __init__(self, task: str, episodes: int = EPISODES) -> None:
        self.task, self.episodes = task, episodes
        self.returns: Any = None
        self.seconds = 0.0

    def on_start(self, agent: Any) -> None:
        """Evaluate, unless the agent generates no texts."""
        begin = time.process_time()
        if hasattr(agent.policy, "act"):
            self.returns = evaluate(
                agent.policy, held_out(self.task), self.episodes
            ).episodes.returns.double()
        self.seconds += time.process_time() - begin


def held_out(task: str, samples_per_prompt: int = 1) -> Any:
    """The task's validation prompts."""
    return textenv.tasks.make_vec_env(
        128, task=task, split="validation", samples_per_prompt=samples_per_prompt, shuffle=False
    )


def verdict(start: Any, end: Any, optimum: float) -> bool:
    """Whether the end is above the start by 3 standard errors and closes half of the gap to the optimum.

    Args:
        start: (B,) returns of the start.
        end: (B,) returns of the end.
        optimum: the best possible mean return.

    >>> import torch
    >>> verdict(torch.tensor([0.0, 0.2]), torch.tensor([0.6, 0.6]), 1.0)
    True
    >>> verdict(torch.tensor([0.0, 0.2]), torch.tensor([0.5, 0.5]), 1.0)
    False
    """
    low, high = float(start.mean()), float(end.mean())
    error = float((start.var() / len(start) + end.var() / len(end)).sqrt())
    return high > low + 3 * error and high - low >= 0.5 * (optimum - low)


def measure(
    agent: str, task: str, *, seed: int = 0, episodes: int = EPISODES, **changes: Any
) -> dict[str, Any]:
    """One cell: train as the command does, in a folder, and evaluate start and end.

    Args:
        agent: its name.
        task: its name.
        seed: of the run.
        episodes: held-out ones.
        changes: settings that are not the defaults, to choose these by.
    """
    begin, wall = time.process_time(), time.perf_counter()
    start = Start(task, episodes)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = textenv.train(
            agent, task=task, run_dir=folder, loggers=(), callbacks=[start], seed=seed, **changes
        )
    seconds = time.process_time() - begin - start.seconds
    wall = time.perf_counter() - wall
    learner: Any = result.agent
    reasons = [str(one.message) for one in said if " cannot learn " in str(one.message)]
    optimum = make_task(task).build().optimum
    row: dict[str, Any] = {
        "agent": agent,
        "task": task,
        "start": None,
        "end": None,
        "optimum": optimum,
        "learned": False,
        "seconds": seconds,
        "wall_seconds": wall,
        "seed": seed,
        "note": reasons[0].partition(": ")[2] if reasons else "",
    }
    if start.returns is not None:
        groups = learner.group_size(learner.config, evaluation=True)
        end = learner.evaluate(held_out(task, groups), episodes).episodes.returns.double()
        row |= {"start": float(start.returns.mean()), "end": float(end.mean())}
        row["learned"] = verdict(start.returns, end, float(optimum or 1.0))
    return row


def run(agents: Sequence[str], tasks: Sequence[str], path: Path | None, seed: int) -> list[dict[str, Any]]:
    """All cells; those in the file are not run again."""
    rows = json.loads(path.read_text())["cells"] if path is not None and path.exists() else []
    for task in tasks:
        for agent in agents:
            if any((row["agent"], row["task"], row["seed"]) == (agent, task, seed) for row in rows):
                continue
            rows.append(measure(agent, task, seed=seed))
            last = rows[-1]
            ends = "writes no texts" if last["end"] is None else f"{last['start']:.3f} -> {last['end']:.3f}"
            print(f"{agent} {task}: {ends}, {last['seconds']:.0f} s", flush=True)
            write_json(path, {"cells": rows})
    return rows


def main() -> int:
    """Run the cells; the exit status is 0 if each learned in time or has a reason why not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--agents", nargs="+", choices=agent_names(), default=agent_names())
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the cells here; those in it are not run again")
    args = parser.parse_args()
    one_thread()
    rows = run(args.agents, args.tasks, args.json, args.seed)
    columns = ("agent", "task", "start", "end", "optimum", "learned", "seconds", "note")
    title = "textenv train AGENT --task TASK at its defaults"
    print_table(title, columns, [[row[name] for name in columns] for row in rows])
    good = [row["note"] != "" or (row["learned"] and row["seconds"] <= LIMIT) for row in rows]
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
