"""Proximal policy optimisation with a critic (Schulman et al. 2017; on language models, Ziegler et al. 2019).

Several passes of minibatches over each iteration's episodes, with a clipped surrogate, GAE and a value loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from textenv.agents.actor_critic import ActorCriticAgent, ActorCriticConfig
from textenv.agents.registry import register_agent


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ActorCriticConfig):
    """Settings of PPO."""

    clip_range: float = 0.2
    """The probability ratio has no gradient beyond 1 - clip_range (and 1 + clip_range)."""


@register_agent("ppo")
class PPO(ActorCriticAgent):
    """PPO with a value head, GAE and a KL penalty."""

    config_class = PPOConfig
    config: PPOConfig
