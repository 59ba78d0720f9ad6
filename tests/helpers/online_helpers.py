"""Policy-gradient agents on a small probe, by name, as the tests of the family share them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from textenv.agents.base.callbacks import Callback
from textenv.agents.base.policy_gradient import PolicyGradientAgent
from textenv.agents.base.registry import get_agent
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.make import make_agent
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.models import small_gpt2

TOKENIZER = letter_tokenizer("abcd")
GROUPS = ("grpo", "rloo")
"""Agents that compare the episodes of a prompt."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a2c": ("a2c", {}),
    "dapo": ("grpo", {"aggregation": "dapo", "clip_range_high": 0.28, "max_rollouts": 2, "kl_coef": 0.0}),
    "dr_grpo": ("grpo", {"aggregation": "dr_grpo"}),
    "grpo": ("grpo", {}),
    "gspo": ("grpo", {"ratio_level": "sequence", "clip_range": 3e-4, "clip_range_high": 4e-4}),
    "nlpo": ("nlpo", {"mask_top_p": 0.95, "mask_min_tokens": 2, "mask_update_iterations": 1}),
    "ppo": ("ppo", {}),
    "reinforce": ("reinforce", {}),
    "reinforce-none": ("reinforce", {"baseline": "none"}),
    "reinforce++": ("reinforce++", {}),
    "remax": ("reinforce", {"baseline": "greedy"}),
    "rloo": ("rloo", {}),
    "rloo-clipped": ("rloo", {"clip_range": 0.2, "epochs": 2}),
}
"""Test id -> (agent, settings): every agent of the family, and the variants that settings make of them."""


class StopAfter(Callback):
    """Stops a run after so many iterations."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def on_iteration(self, agent: Any, metrics: Any) -> bool:
        return bool(agent.iteration >= self.iterations)


def tiny() -> Any:
    """A model config of a few hundred weights for the letters a to d."""
    return small_gpt2(TOKENIZER, layers=1, width=8, heads=2, positions=32)


def make_envs(name: str, num_envs: int = 8, task: str | None = "probe-end", **kwargs: Any) -> Any:
    """An environment that deals what the agent needs."""
    group = {"samples_per_prompt": 4} if name in GROUPS else {}
    return gym.make_vec("TextRLHF-v0", num_envs=num_envs, task=task, **{**group, **kwargs})


def make(case: str, envs: Any = None, model: Any = None, **settings: Any) -> PolicyGradientAgent:
    """An agent with few episodes and a large learning rate, unless said otherwise."""
    name, own = CASES[case]
    defaults = {"iterations": 2, "episodes_per_iteration": 16, "learning_rate": 1e-2}
    arguments = {
        "policy_kwargs": settings.pop("policy_kwargs", None),
        "run_dir": settings.pop("run_dir", None),
        "dataset": settings.pop("dataset", None),
    }
    agent = make_agent(
        name,
        tiny() if model is None else model,
        envs=make_envs(name) if envs is None else envs,
        **arguments,
        **{**defaults, **own, **settings},
    )
    assert isinstance(agent, PolicyGradientAgent)
    return agent


def rollout(agent: PolicyGradientAgent) -> TrainingBatch:
    """What the first iteration would learn from."""
    agent.iteration = 1
    episodes = agent.collect()
    agent.score(episodes)
    return agent.advantages(episodes)


def weights(agent: PolicyGradientAgent) -> list[Tensor]:
    """Copies of the policy's parameters, in the order of their names."""
    return [parameter.detach().clone() for _, parameter in sorted(agent.policy.named_parameters())]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two lists of tensors are the same bit by bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def family() -> set[str]:
    """Names of the registered policy-gradient agents."""
    from textenv.agents.base.registry import BUILTIN

    return {name for name in BUILTIN if issubclass(get_agent(name), PolicyGradientAgent)}
