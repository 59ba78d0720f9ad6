"""Every agent learns: a short run on a problem whose optimum is 1 (whole ones: ``benchmarks.probes``)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch

import textenv
from textenv.agents.base.registry import agent_names, get_agent
from textenv.agents.ilql import ILQL, ILQLConfig
from textenv.agents.sft import FilteredBC, FilteredBCConfig
from textenv.tasks.registry import make_task

_ONLINE = {"num_envs": 64, "episodes_per_iteration": 64, "learning_rate": 1e-2}
_REPEATED = {
    **_ONLINE,
    "iterations": 16,
    "epochs": 4,
    "minibatches": 1,
    "kl_coef": 0.0,
    "learning_rate": 5e-3,
}
_CRITIC = {**_REPEATED, "value_clip_range": None}
_ONCE = {**_ONLINE, "iterations": 30, "minibatches": 2, "kl_coef": 0.0}
_OFFLINE = {"batch_size": 64, "learning_rate": 3e-3}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a2c": ("a2c", "probe-end", _ONCE),
    "archer": (
        "archer",
        "probe-end",
        {**_ONLINE, "iterations": 10, "critic_steps": 8, "epochs": 1, "minibatches": 4},
    ),
    "best-of-n": ("best-of-n", "probe-end", {"num_envs": 64, "n": 16}),
    "cpo": ("cpo", "probe-copy", {**_OFFLINE, "steps": 40, "beta": 0.5}),
    "dapo": ("grpo", "probe-end", {**_REPEATED, "aggregation": "dapo", "clip_range_high": 0.28}),
    "dpo": ("dpo", "probe-copy", {**_OFFLINE, "steps": 40, "beta": 0.5}),
    "dr_grpo": ("grpo", "probe-end", {**_REPEATED, "aggregation": "dr_grpo"}),
    "filtered-bc": ("filtered-bc", "probe-copy", {**_OFFLINE, "steps": 60, "percentile": 0.9}),
    "grpo": ("grpo", "probe-end", _REPEATED),
    "gspo": ("grpo", "probe-end", {**_REPEATED, "ratio_level": "sequence", "clip_range": 0.1}),
    "ilql": ("ilql", "probe-copy", {**_OFFLINE, "steps": 80, "head": "linear", "decode_beta": 100.0}),
    # One response in seven is desirable.
    "kto": ("kto", "probe-copy", {**_OFFLINE, "steps": 80, "beta": 0.5, "desirable_weight": 6.0}),
    "monte-carlo": (
        "monte-carlo",
        "probe-copy",
        {**_OFFLINE, "steps": 60, "head": "linear", "decode_beta": 100.0},
    ),
    "nlpo": (
        "nlpo",
        "probe-end",
        {**_CRITIC, "mask_top_p": 0.99, "mask_min_tokens": 2, "mask_update_iterations": 2},
    ),
    "online-dpo": (
        "online-dpo",
        "probe-end",
        {**_ONLINE, "iterations": 20, "epochs": 2, "learning_rate": 5e-3},
    ),
    "orpo": ("orpo", "probe-copy", {**_OFFLINE, "steps": 40, "beta": 1.0}),
    "ppo": ("ppo", "probe-end", _CRITIC),
    "reinforce": ("reinforce", "probe-end", _ONCE),
    "reinforce++": ("reinforce++", "probe-end", _REPEATED),
    "reinforce-none": ("reinforce", "probe-end", {**_ONCE, "baseline": "none"}),
    "remax": ("reinforce", "probe-end", {**_ONCE, "baseline": "greedy"}),
    "rft": (
        "rft",
        "probe-end",
        {**_ONLINE, "iterations": 6, "samples_per_prompt": 16, "epochs": 4, "generations_kept": 1},
    ),
    "rloo": ("rloo", "probe-end", _ONCE),
    "rwr": ("rwr", "probe-copy", {**_OFFLINE, "steps": 80, "temperature": 0.2}),
    "sb3": (
        "sb3",
        "probe-end",
        {"num_envs": 64, "iterations": 12, "n_steps": 16, "kl_coef": 0.0, "learning_rate": 5e-3},
    ),
    "simpo": ("simpo", "probe-copy", {**_OFFLINE, "steps": 120, "gamma": 2.0}),
}
"""Test id -> (agent, task, settings). ``probe-end`` rewards stopping at once; offline agents learn to copy
from random responses."""
UNPAID = {"sft", "reward-model"}
"""Agents that learn from no reward."""


def test_the_cases_are_all_agents() -> None:
    assert {name for name, _, _ in CASES.values()} | UNPAID == set(agent_names())


def without_the_tasks(agent: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``train`` that say every setting, so that none is the task's."""
    given = {name: value for name, value in settings.items() if name != "num_envs"}
    values = get_agent(agent).config_class(eval_episodes=128, **given).to_dict()
    return {"config": values, "num_envs": settings.get("num_envs", 16)}


@pytest.mark.parametrize("case", sorted(CASES))
def test_it_solves_a_probe(case: str) -> None:
    name, task, settings = CASES[case]
    result = textenv.train(name, task=task, loggers=(), **without_the_tasks(name, settings))
    assert result.evaluation is not None
    assert result.evaluation.metrics["return/mean"] >= 0.98


@pytest.mark.parametrize("task", ["probe-copy", "probe-end"])
def test_without_learning_the_probes_are_not_solved(task: str) -> None:
    result = textenv.train(
        "reinforce",
        task=task,
        loggers=(),
        **without_the_tasks("reinforce", {**_ONCE, "iterations": 1, "learning_rate": 0.0}),
    )
    assert result.evaluation is not None
    assert result.evaluation.metrics["return/mean"] < 0.6


@pytest.mark.parametrize(("beta", "least"), [(0.0, 0.0), (100.0, 0.98)])
def test_ilql_learns_from_random_episodes_to_stop_at_once(beta: float, least: float) -> None:
    task = make_task("probe-end").build()
    config = ILQLConfig(
        steps=120, batch_size=128, learning_rate=5e-3, gamma=1.0, head="linear", target_alpha=0.1
    )
    agent = ILQL(task.model_config(), dataset=task.demonstrations, tokenizer=task.tokenizer, config=config)
    agent.learn()
    agent.policy.beta = beta
    envs = gym.make_vec("TextRLHF-v0", num_envs=64, task="probe-end")
    found = agent.evaluate(envs, 128).metrics["return/mean"]
    logged = float(task.demonstrations.returns.mean())
    # Without the values it is a clone of the random policy.
    assert found >= least and (beta > 0 or abs(found - logged) < 0.15)


def test_cloning_the_best_beats_the_data() -> None:
    task = make_task("probe-end").build()
    config = FilteredBCConfig(steps=60, batch_size=64, learning_rate=5e-3, percentile=0.9)
    data = task.demonstrations
    agent = FilteredBC(task.model_config(), dataset=data, tokenizer=task.tokenizer, config=config)
    agent.learn()
    envs = gym.make_vec("TextRLHF-v0", num_envs=64, task="probe-end")
    found = agent.evaluate(envs, 128).metrics["return/mean"]
    assert found > float(data.returns.mean()) + 0.3
    assert torch.isfinite(torch.tensor(agent.history[-1]["sft/nll"]))
