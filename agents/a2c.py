"""Advantage actor-critic (Mnih et al. 2016, without the asynchrony): one plain step on each batch."""

from __future__ import annotations

from dataclasses import dataclass

from textenv.agents.actor_critic import ActorCriticAgent, ActorCriticConfig
from textenv.agents.registry import register_agent


@dataclass(frozen=True, kw_only=True)
class A2CConfig(ActorCriticConfig):
    """Settings of A2C."""

    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation; 1 is the whole return that followed, minus V."""
    whiten_advantages: bool = False
    """Shift and scale the advantages of an iteration to mean 0 and variance 1 over own tokens."""
    value_clip_range: float | None = None
    """Clip of the value function around its old values; None does not clip."""
    epochs: int = 1
    """Passes over the collected episodes in each round of learning."""
    minibatches: int = 1
    """Optimizer steps in each pass."""


@register_agent("a2c")
class A2C(ActorCriticAgent):
    """A2C: policy gradient with a critic, one step a batch, no probability ratio."""

    config_class = A2CConfig
    config: A2CConfig
