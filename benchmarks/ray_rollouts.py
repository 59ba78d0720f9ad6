"""Rollouts by Ray actors: ``python -m benchmarks.ray_rollouts [--json FILE] [--quick] [--actors 1,2]``.

A random GPT-2 2x128 with a vocabulary of 1,024 generates 64 episodes of 8 prompt tokens and at most 48
response tokens (geometric, mean 24 before the cap), 16 rows in every process. First the rollout alone:
tokens/s of the learner's process and of 1, 2, ... actors. Then PPO with 2 epochs of 4 optimizer steps:
iterations/s without actors, with actors in step (sync) and with actors one iteration ahead (async,
token-level importance weights).

Each process has one thread, so more actors than free cores give no speed-up. The first iteration, in which
actors start, is not counted.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from benchmarks.common import arguments, interleave, one_thread, print_table, seconds, write_json
from benchmarks.models import ModelShape, language_model, random_prompts, word_tokenizer
from textenv.agents.ppo import PPO, PPOConfig
from textenv.agents.rollouts.ray_collector import RayCollector, start_rollout_actors
from textenv.agents.settings.ray_rollouts import RayRollouts
from textenv.prompts.prompt_set import PromptSet
from textenv.tasks.make import make_vec_env

SHAPE = ModelShape(layers=2, width=128, heads=4, vocab=1024, positions=64, eos_probability=1 / 24)
ROWS, EPISODES, PROMPT, LONGEST = 16, 64, 8, 48
CPUS = 0.1
"""Number of CPUs given to Ray; the operating system schedules the processes."""


def make_agent(
    actors: Sequence[Any] = (), mode: Literal["sync", "async"] = "sync", iterations: int = 100
) -> PPO:
    """PPO on random prompts; ``actors``, if any, generate the episodes."""
    prompts = PromptSet([row.tolist() for row in random_prompts(SHAPE, count=256, length=PROMPT)])
    envs = make_vec_env(
        ROWS, prompts=prompts, tokenizer=word_tokenizer(SHAPE), max_new_tokens=LONGEST, rewards=["length"]
    )
    config = PPOConfig(
        iterations=iterations,
        episodes_per_iteration=EPISODES,
        epochs=2,
        minibatches=4,
        learning_rate=3e-6,
        importance_correction="token" if mode == "async" else "none",
    )
    collector = None
    if actors:
        settings = RayRollouts(num_actors=len(actors), num_cpus=CPUS, mode=mode)
        collector = RayCollector(settings, actors=actors)
    return PPO(language_model(SHAPE), envs=envs, config=config, rollouts=collector)


def rollout_rates(actors: Sequence[Any], counts: Sequence[int], repeats: int) -> dict[str, float]:
    """Action tokens per second of a rollout, the best of ``repeats``, without and with actors."""
    agents = {"one process": make_agent()}
    agents |= {f"{count} actor{'s' * (count > 1)}": make_agent(actors[:count]) for count in counts}

    def turn(agent: PPO) -> float:
        before = agent.env_tokens
        spent = seconds(lambda: agent.generate(0))
        return (agent.env_tokens - before) / spent

    found = interleave(
        {name: lambda agent=agent: turn(agent) for name, agent in agents.items()}, repeats=repeats
    )
    return {name: max(rates) for name, rates in found.items()}


def iteration_rates(actors: Sequence[Any], iterations: int) -> dict[str, dict[str, float]]:
    """Iterations per second of PPO, and seconds of its parts, by mode."""
    rows = {}
    modes: dict[str, Literal["sync", "async"]] = {"one process": "sync", "sync": "sync", "async": "async"}
    for name, mode in modes.items():
        agent = make_agent(() if name == "one process" else actors, mode, iterations + 1)
        ends: list[float] = []
        agent.callbacks.extend(_at_iterations(ends))
        history = agent.learn().history[1:]
        rows[name] = {
            "iterations_s": iterations / (ends[-1] - ends[0]),
            **{part: sum(row[f"time/{part}"] for row in history) / iterations for part in PARTS},
            "staleness": max(row.get("rollout/staleness", 0.0) for row in history),
        }
    return rows


PARTS = ("rollout", "score", "update")


def _at_iterations(ends: list[float]) -> Any:
    from textenv.agents.base.callbacks import make_callbacks

    return make_callbacks([lambda agent, row: ends.append(time.perf_counter())])


def report(figures: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    alone = figures["rollout_tokens_s"]["one process"]
    rows = [(name, rate, rate / alone) for name, rate in figures["rollout_tokens_s"].items()]
    print_table("Rollout", ("processes", "tokens/s", "x one process"), rows)
    slowest = figures["ppo"]["one process"]["iterations_s"]
    rows = [
        (name, row["iterations_s"], row["iterations_s"] / slowest, *(row[part] for part in PARTS))
        for name, row in figures["ppo"].items()
    ]
    print_table(
        f"PPO, {figures['actors']} actors",
        ("mode", "iterations/s", "x one process", "rollout s", "score s", "update s"),
        rows,
        note=f"{os.cpu_count()} cores, one thread per process. Async: rollout s is the learner's wait.",
    )


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = arguments("Rollouts by Ray actors against the learner's process.")
    parser.add_argument("--actors", default="1,2", metavar="1,2,...", help="numbers of actors")
    options = parser.parse_args()
    counts = [int(part) for part in options.actors.split(",")]
    one_thread()
    warnings.simplefilter("ignore")
    actors = start_rollout_actors(RayRollouts(num_actors=max(counts), num_cpus=CPUS))
    figures = {
        "actors": max(counts),
        "rollout_tokens_s": rollout_rates(actors, counts, repeats=2 if options.quick else 5),
        "ppo": iteration_rates(actors, iterations=4 if options.quick else 12),
    }
    report(figures)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
