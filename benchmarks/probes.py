"""Probe tasks: does an agent solve problems whose optimum is known, each in under a minute?

    python -m benchmarks.probes [--agent ppo|a2c|reinforce|rloo|grpo|...] [--task NAME] [--json FILE]

Every probe pays at most 1. Online agents start from random weights; ILQL learns from episodes of a policy
that draws every token equally often, where such data hold right answers (they count to 2, hardly to 5).
Solved means: mean return of 512 sampled episodes within 2 % of the optimum.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import gymnasium as gym

from benchmarks.common import arguments, one_thread, print_table, write_json
from textenv.agents.ilql import ILQL, ILQLConfig
from textenv.agents.online import OnlineAgent
from textenv.agents.registry import get_agent
from textenv.rewards.registry import make_reward
from textenv.tasks.probes import random_episodes
from textenv.tasks.registry import make_task

PROBES = ("probe-constant", "probe-copy", "probe-count", "probe-longest", "probe-end")
TOLERANCE = 0.02
EVALUATION = 512

_SHARED: dict[str, Any] = {
    "learning_rate": 2e-3,
    "lr_schedule": "linear",
    "warmup_steps": 60,
    "iterations": 50,
    "episodes_per_iteration": 160,
    "kl_coef": 0.0,
    "entropy_coef": 0.01,
}
_CLIPPED = {**_SHARED, "epochs": 4, "minibatches": 1}
_PLAIN = {**_SHARED, "epochs": 1, "minibatches": 4}
_PAIRED = {"learning_rate": 2e-3, "iterations": 50, "episodes_per_iteration": 160}
_CRITIC = {"value_coef": 1.0, "value_head": "mlp", "value_clip_range": None, "center_by_prompt": True}
# PPO's were chosen; those of a2c, reinforce, reinforce++, rloo and grpo are PPO's, as far as they apply.
ONLINE_SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {**_CLIPPED, **_CRITIC},
    "a2c": {**_PLAIN, **_CRITIC},
    "reinforce": _PLAIN,
    "reinforce++": _CLIPPED,
    "rloo": _PLAIN,
    "grpo": _CLIPPED,
    "nlpo": {**_CLIPPED, **_CRITIC, "mask_top_p": 0.99, "mask_min_tokens": 2},
    "online-dpo": {**_PAIRED, "epochs": 2, "minibatches": 2},
    "rft": {**_PAIRED, "samples_per_prompt": 16, "generations_kept": 1, "minibatches": 4},
    "best-of-n": {"n": 64},
}
ILQL_SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "steps": 400,
    "batch_size": 512,
    "gamma": 1.0,
    "expectile": 0.9,
    "head": "mlp",
    "target_alpha": 0.1,
    "decode_beta": 100.0,
}
LOGGED = 4096
"""Random episodes that ILQL learns from."""
TASK_KWARGS: dict[tuple[str, str], dict[str, Any]] = {
    # One random response in 8^6 counts to 5 and stops, one in 8^3 counts to 2.
    ("ilql", "probe-count"): {"highest": 2},
}


# The longest prompts are found late: more and smaller steps, with some entropy left to find them.
_COUNT = {"learning_rate": 1e-3, "warmup_steps": 20, "iterations": 130, "entropy_coef": 0.003}
TASK_SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("ppo", "probe-count"): {**_COUNT, "minibatches": 4, "center_by_prompt": False, "entropy_coef": 0.03},
    ("a2c", "probe-count"): {**_COUNT, "minibatches": 8},
    ("reinforce", "probe-count"): {**_COUNT, "minibatches": 8},
    ("reinforce++", "probe-count"): {**_COUNT, "minibatches": 4},
    ("rloo", "probe-count"): {**_COUNT, "minibatches": 8},
    ("grpo", "probe-count"): {**_COUNT, "minibatches": 4},
    ("nlpo", "probe-count"): {**_COUNT, "minibatches": 4, "center_by_prompt": False},
    ("online-dpo", "probe-count"): {"iterations": 130},
    ("rft", "probe-count"): {"iterations": 130},
}


# Nothing is learned by choosing, and one random sample in thousands is right.
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
    settings = {**ONLINE_SETTINGS[agent], **TASK_SETTINGS.get((agent, name), {}), **changes}
    config = cls.config_class(seed=seed, **settings)
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
    config = ILQLConfig(seed=seed, **{**ILQL_SETTINGS, **changes})
    agent = ILQL(task.model_config(), dataset=logged, tokenizer=task.tokenizer, config=config)
    agent.learn()
    return agent


TRAINERS = {**{agent: partial(train_online, agent) for agent in ONLINE_SETTINGS}, "ilql": train_ilql}


def measure(agent: str, name: str, *, seed: int = 0) -> dict[str, Any]:
    """Train and play."""
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
