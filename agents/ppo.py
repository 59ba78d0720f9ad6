"""Proximal policy optimisation with a critic (Schulman et al. 2017; on language models, Ziegler et al. 2019).

Several passes of minibatches over each iteration's episodes, with a clipped surrogate, GAE and a value loss.
"""

from __future__ import annotations

from textenv.agents.actor_critic import ActorCriticAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.settings.actor_critic import PPOConfig


@register_agent("ppo")
class PPO(ActorCriticAgent):
    """PPO with a value head, GAE and a KL penalty."""

    config_class = PPOConfig
    config: PPOConfig
