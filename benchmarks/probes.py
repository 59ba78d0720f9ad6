"""Probe tasks: does an agent solve problems whose optimum is known, each in under a minute?

    python -m benchmarks.probes [--agent ppo|a2c|reinforce|rloo|grpo|...] [--task NAME] [--json FILE]

The highest return of every probe is 1. Settings are the tasks' own (``textenv.tasks.probe_settings``). Online
agents start from random weights; ILQL learns from episodes of a uniformly random policy, on the probes where
such data contain right answers (they count to 2, rarely to 5). Solved means: mean return of 512 sampled
episodes within 2 % of the optimum.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import gymnasium as gym

from benchmarks.common import arguments, one_thread, print_table, write_json
from textenv.agents.base.online import OnlineAgent
from textenv.agents.base.registry import get_agent
from textenv.agents.ilql import ILQL
from textenv.agents.train_setup.task_settings import task_settings
from textenv.rewards.registry import make_reward
from textenv.tasks.probes import random_episodes
from textenv.tasks.registry import make_task

PROBES = ("probe-constant", "probe-copy", "probe-count", "probe-longest", "probe-end")
TOLERANCE = 0.02
EVALUATION = 512

LOGGED = 4096
"""Random episodes that ILQL learns from."""
TASK_KWARGS: dict[tuple[str, str], dict[str, Any]] = {
    # One random response in 8^6 counts to 5 and stops, one in 8^3 counts to 2.
    ("ilql", "probe-count"): {"highest": 2},
}


ONLINE = ("ppo", "a2c", "reinforce", "reinforce++", "rloo", "grpo", "nlpo", "online-dpo", "rft", "best-of-n")
# Best-of-n does not learn, and one random sample in thousands is right.
SKIPPED = {("best-of-n", "probe-constant"), ("best-of-n", "probe-count")}


def make_envs(name: str, task_kwargs: dict[str, Any], samples_per_prompt: int = 1) -> Any:
    """128 rows of a probe."""
    return gym.make_vec(
        "TextRLHF-v0",
        num_envs=128,
        task=name,
        task_kwargs=task_kwargs,
        samples_per_prompt=samples_per_prompt,
    )


def train_online(agent: str, name: str, *, seed: int = 0, **changes: Any) -> OnlineAgent:
    """An online agent on a probe, from random weights."""
    cls: Any = get_agent(agent)
    task_kwargs = TASK_KWARGS.get((agent, name), {})
    task = make_task(name).build(**task_kwargs)
    config: Any = task_settings(name, agent).fill(agent, {"seed": seed, **changes})
    group = cls.group_size(config)
    learner = cls(task.model_config(), envs=make_envs(name, task_kwargs, group), config=config)
    learner.learn()
    return learner


def train_ilql(name: str, *, seed: int = 0, episodes: int = LOGGED, **changes: Any) -> ILQL:
    """ILQL on random episodes of a probe, from random weights."""
    task = make_task(name).build(**TASK_KWARGS.get(("ilql", name), {}))
    logged = random_episodes(
        task.prompts,
        task.tokenizer,
        make_reward(task.rewards[0]),
        max_new_tokens=task.max_new_tokens,
        episodes=episodes,
        seed=seed,
    )
    config: Any = task_settings(name, "ilql").fill("ilql", {"seed": seed, **changes})
    agent = ILQL(task.model_config(), dataset=logged, tokenizer=task.tokenizer, config=config)
    agent.learn()
    return agent


TRAINERS = {**{agent: partial(train_online, agent) for agent in ONLINE}, "ilql": train_ilql}


def measure(agent: str, name: str, *, seed: int = 0) -> dict[str, Any]:
    """Train and evaluate."""
    begin = time.perf_counter()
    trained = TRAINERS[agent](name, seed=seed)
    seconds = time.perf_counter() - begin
    group = trained.group_size(trained.config, evaluation=True)
    envs = make_envs(name, TASK_KWARGS.get((agent, name), {}), group)
    found = trained.evaluate(envs, EVALUATION).metrics["return/mean"]
    optimum = make_task(name).build().optimum
    print(f"{agent} {name}: {found:.3f} of {optimum:g} in {seconds:.0f} s", flush=True)
    return {
        "agent": agent,
        "task": name,
        "return": found,
        "optimum": optimum,
        "solved": found >= (1 - TOLERANCE) * optimum,
        "optimizer_steps": trained.optimizer_steps,
        "episodes": trained.episodes_seen,
        "seconds": seconds,
    }


def main() -> int:
    """Run the probes; the exit status says whether all were solved."""
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--agent", choices=list(TRAINERS), action="append", help="default: all")
    parser.add_argument("--task", choices=PROBES, action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    one_thread()
    rows = [
        measure(agent, name, seed=args.seed)
        for agent in args.agent or TRAINERS
        for name in args.task or PROBES
        if (agent, name) not in SKIPPED
    ]
    columns = ("agent", "task", "return", "optimum", "solved", "optimizer_steps", "seconds")
    print_table("Probe tasks", columns, [[row[c] for c in columns] for row in rows])
    write_json(args.json, {"probes": rows})
    return 0 if all(row["solved"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
