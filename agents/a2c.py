"""Advantage actor-critic (Mnih et al. 2016, without the asynchrony): one plain step on each batch."""

from __future__ import annotations

from textenv.agents.actor_critic import ActorCriticAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.settings.actor_critic import A2CConfig


@register_agent("a2c")
class A2C(ActorCriticAgent):
    """A2C: policy gradient with a critic, one step a batch, no probability ratio."""

    config_class = A2CConfig
    config: A2CConfig
