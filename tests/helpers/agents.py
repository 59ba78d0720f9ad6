"""Every registered agent with a model of a few hundred weights on a small probe, by the id of a case."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from tests.helpers.models import TOKENIZER, tiny
from textenv.agents.base.agent import Agent
from textenv.agents.base.callbacks import Callback
from textenv.agents.base.policy_gradient import PolicyGradientAgent
from textenv.agents.base.registry import get_agent, get_config_class
from textenv.agents.make import make_agent
from textenv.agents.settings.base import OfflineConfig, OnlineConfig
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.tasks.registry import make_task

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
"""Test id -> (agent, settings): every policy-gradient agent, and the variants that settings make of them."""
_MASKED: dict[str, Any] = {"mask_top_p": 0.8, "mask_min_tokens": 1}
_ARCHER: dict[str, Any] = {
    "critic_steps": 2,
    "critic_batch_size": 8,
    "actor_turns": 16,
    "entropy_coef": 0.01,
}
OTHER_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "archer": ("archer", _ARCHER),
    "archer-baseline": (
        "archer",
        {**_ARCHER, "token_baseline": True, "buffer_episodes": 20},
    ),
    "best-of-n": ("best-of-n", {"n": 4}),
    "cpo": ("cpo", {}),
    "dpo": ("dpo", {}),
    "dpo-precomputed": ("dpo", {"precompute_reference": True}),
    "filtered-bc": ("filtered-bc", {"percentile": 0.5}),
    "ilql": ("ilql", {"target_every": 3, "target_alpha": 0.5}),
    "kto": ("kto", {}),
    "kto-precomputed": ("kto", {"precompute_reference": True}),
    "monte-carlo": ("monte-carlo", {"cql_coef": 0.3, "awac_beta": 0.5}),
    "nlpo-every-3": ("nlpo", {**_MASKED, "mask_update_iterations": 3}),
    "nlpo-one-mask": ("nlpo", {**_MASKED, "mask_update_iterations": None}),
    "online-dpo": ("online-dpo", {}),
    "online-dpo-ipo": ("online-dpo", {"loss": "ipo", "samples_per_prompt": 4}),
    "orpo": ("orpo", {}),
    "ppo-dual-clip": ("ppo", {"dual_clip": 3.0, "value_clip_range": None}),
    "ppo-separate": ("ppo", {"value_model": "separate", "entropy_coef": 0.1, "kl_placement": "loss"}),
    "reward-model": ("reward-model", {"centering_coef": 0.01}),
    "reward-model-heads": ("reward-model", {"heads": 2, "dropout": 0.1, "token_dropout": 0.1}),
    "rft": ("rft", {"samples_per_prompt": 8, "improve_steps": 2}),
    "rft-one-round": ("rft", {"samples_per_prompt": 8, "improve_steps": 2, "generations_kept": 1}),
    "rft-two-rounds": ("rft", {"samples_per_prompt": 8, "improve_steps": 2, "generations_kept": 2}),
    "rwr": ("rwr", {}),
    "sb3": ("sb3", {"n_steps": 8, "epochs": 2}),
    "sft": ("sft", {}),
    "sft-whole-texts": ("sft", {"completion_only": False}),
    "simpo": ("simpo", {}),
}
"""The other registered agents, and variants that a resume or a split of the batch could get wrong."""
ALL_CASES = CASES | OTHER_CASES


class StopAfter(Callback):
    """Stops a run after so many iterations."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def on_iteration(self, agent: Any, metrics: Any) -> bool:
        return bool(agent.iteration >= self.iterations)


@cache
def demonstrations() -> EpisodeBatch:
    """48 episodes of the probe, with a reward each."""
    found = make_task("probe-end").build().demonstrations
    assert isinstance(found, EpisodeBatch)
    return found.select(slice(0, 48))


@cache
def pairs() -> PreferenceBatch:
    """Twelve pairs of responses of unlike length."""
    texts = ["".join(letters) for letters in itertools.product("abcd", "abcd")]
    chosen = [text * (1 + i % 3) for i, text in enumerate(texts[:12])]
    rejected = [text[: 1 + i % 2] for i, text in enumerate(texts[-12:])]
    return PreferenceBatch.from_texts(["a", "b", "cd"] * 4, chosen, rejected, TOKENIZER)


def dataset_of(name: str) -> Any:
    """What the agent learns from; None for an online one."""
    cls = get_agent(name)
    if cls.online:
        return None
    if name == "reward-model":
        return {"pairs": pairs(), "ratings": demonstrations().select(slice(0, 8))}
    return pairs() if cls.from_preferences else demonstrations()


SAMPLES = {"best-of-n": 4, "grpo": 4, "rloo": 4, "rft": 8, "online-dpo": 2}
"""Episodes on each prompt in ``make_envs``, where an agent needs more than one."""


def make_envs(name: str = "ppo", num_envs: int = 8, task: str | None = "probe-end", **kwargs: Any) -> Any:
    """An environment that deals what the agent needs."""
    group = {"samples_per_prompt": SAMPLES[name]} if name in SAMPLES else {}
    return gym.make_vec("TextRLHF-v0", num_envs=num_envs, task=task, **{**group, **kwargs})


def sources(case: str, **settings: Any) -> dict[str, Any]:
    """The environment, or the data set, that an agent of this case is made and loaded with."""
    name, own = ALL_CASES[case]
    cls = get_agent(name)
    if not cls.online:
        return {"dataset": dataset_of(name), "tokenizer": TOKENIZER}
    if issubclass(cls, PolicyGradientAgent) or name not in SAMPLES:
        return {"envs": make_envs(name)}
    samples = {**own, **settings}.get("n" if name == "best-of-n" else "samples_per_prompt", SAMPLES[name])
    return {"envs": make_envs(name, samples_per_prompt=samples)}


def make(case: str, envs: Any = None, model: Any = None, **options: Any) -> Any:
    """An agent of any case: few episodes or rows and a large learning rate, unless said otherwise.

    Args:
        case: key of ``ALL_CASES``.
        envs: instead of those of ``sources``; for an online agent.
        model: instead of ``tiny()``.
        options: settings, and arguments of the agent's class (``dataset``, ``run_dir``, ``policy_kwargs``).
    """
    name, own = ALL_CASES[case]
    given = {"envs": envs} if envs is not None else sources(case, **options)
    short = {} if name == "best-of-n" else _short(get_config_class(name))
    return make_agent(name, tiny() if model is None else model, **{**given, **short, **own, **options})


def _short(config_class: type) -> dict[str, Any]:
    """Settings of a short run."""
    if issubclass(config_class, OfflineConfig):
        return {"steps": 2, "batch_size": 8, "learning_rate": 1e-2}
    if not issubclass(config_class, OnlineConfig):  # Stable-Baselines3's loop has settings of its own
        return {"iterations": 2, "learning_rate": 1e-2}
    return {"iterations": 2, "episodes_per_iteration": 16, "learning_rate": 1e-2}


def make_any(case: str, rounds: int = 2, **options: Any) -> Agent:
    """The same with two passes in two minibatches, for so many iterations (online) or steps (offline)."""
    name, own = ALL_CASES[case]
    config_class = get_config_class(name)
    passes: dict[str, Any] = {}
    if name != "best-of-n":
        passes = {"steps" if issubclass(config_class, OfflineConfig) else "iterations": rounds}
    if issubclass(config_class, OnlineConfig) and passes:
        passes |= {"epochs": 2, "minibatches": 2}
    elif name == "sb3":
        passes |= {"minibatches": 2}
    return make(case, **{**passes, **own, **options})


def rollout(agent: Any) -> Any:
    """What the first iteration of an online agent would learn from."""
    agent.iteration = 1
    episodes = agent.collect()
    agent.score(episodes)
    return agent.advantages(episodes)


def first_batch(agent: Any) -> Any:
    """What the first optimizer step of any agent might learn from: the rollout, or 16 rows of the data."""
    return rollout(agent) if agent.online else agent.batch(torch.arange(min(16, len(agent.dataset))))


def weights(agent: Any) -> list[Tensor]:
    """Copies of the policy's parameters, in the order of their names."""
    return [parameter.detach().clone() for _, parameter in sorted(agent.policy.named_parameters())]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two lists of tensors are the same bit by bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def family() -> set[str]:
    """Names of the registered policy-gradient agents."""
    from textenv.agents.base.registry import BUILTIN

    return {name for name in BUILTIN if issubclass(get_agent(name), PolicyGradientAgent)}
