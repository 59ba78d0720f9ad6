"""textenv: RLHF as ordinary reinforcement learning; text generation is a vectorized Gymnasium environment.

Importing it registers ``TextRLHF-v0``. Attributes load on first use (PEP 562), so the import is light: no
torch, and no lower floor (textenv) imports a higher one (textenv.rewards, textenv.tasks, textenv.agents).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    from textenv.acting import DecodingPolicy
    from textenv.agents.registry import make_agent, register_agent
    from textenv.agents.training import train
    from textenv.env import TextEnv
    from textenv.episodes import EpisodeBatch
    from textenv.legality import Legality
    from textenv.preferences import PreferenceBatch
    from textenv.prompts import PromptSet
    from textenv.rewards.registry import make_reward, register_reward
    from textenv.rewards.term import RewardTerm
    from textenv.rollout import collect
    from textenv.tasks.registry import make_task, register_task
    from textenv.vector_env import TextVectorEnv

__version__ = "0.1.0"

_EXPORTS = {
    "DecodingPolicy": "textenv.acting",
    "EpisodeBatch": "textenv.episodes",
    "Legality": "textenv.legality",
    "PreferenceBatch": "textenv.preferences",
    "PromptSet": "textenv.prompts",
    "RewardTerm": "textenv.rewards.term",
    "TextEnv": "textenv.env",
    "TextVectorEnv": "textenv.vector_env",
    "collect": "textenv.rollout",
    "make_agent": "textenv.agents.registry",
    "make_reward": "textenv.rewards.registry",
    "make_task": "textenv.tasks.registry",
    "register_agent": "textenv.agents.registry",
    "register_reward": "textenv.rewards.registry",
    "register_task": "textenv.tasks.registry",
    "train": "textenv.agents.training",
}

__all__ = [
    "DecodingPolicy",
    "EpisodeBatch",
    "Legality",
    "PreferenceBatch",
    "PromptSet",
    "RewardTerm",
    "TextEnv",
    "TextVectorEnv",
    "collect",
    "make_agent",
    "make_reward",
    "make_task",
    "register_agent",
    "register_reward",
    "register_task",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'textenv' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])


gym.register(
    id="TextRLHF-v0",
    entry_point="textenv.tasks.make:make_env",
    vector_entry_point="textenv.tasks.make:make_vec_env",
)
