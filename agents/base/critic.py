"""Functions shared by PPO, A2C and NLPO: policy with a critic, idle settings and metrics of the critic."""

from __future__ import annotations

from typing import Any

from textenv.agents.data.batch import TrainingBatch
from textenv.agents.losses.advantages import value_mask
from textenv.agents.losses.masked import explained_variance
from textenv.agents.policies.heads import ValueHead
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.settings.actor_critic import ActorCriticConfig
from textenv.agents.settings.effects import Idle, unlike

CRITIC_ARGUMENTS = {
    "value_head": "it is the agent's setting value_model",
    "head_kind": "it is the agent's setting value_head",
}
"""Arguments of the policy that an agent with a critic sets, see ``Agent.policy_arguments``."""


def policy_with_critic(model: Any, config: ActorCriticConfig, **options: Any) -> LanguagePolicy:
    """The policy with a value head on its trunk, or with a separate critic (``value_model``).

    Args:
        model: a ``LanguagePolicy``, which gets a critic if it has none, or the model of a new policy.
        config: ``value_model``, ``value_head`` and ``seed``.
        options: further arguments of a new ``LanguagePolicy``.
    """
    if isinstance(model, LanguagePolicy):
        model.add_critic(config.value_model)
        return model
    return LanguagePolicy(
        model, seed=config.seed, value_head=config.value_model, head_kind=config.value_head, **options
    )


def idle_critic(config: ActorCriticConfig, policy: LanguagePolicy) -> Idle:
    """Settings of the critic without effect: its head was made before, or its values stay 0."""
    made_with = {"value_head": policy.head_kind}
    because = f"on a policy that was made with head_kind={policy.head_kind!r}"
    found = unlike(config, made_with, made_with, because)
    head = policy.value_head if policy.critic is None else policy.critic.value_head
    if not config.value_coef and isinstance(head, ValueHead) and head.is_zero:
        because = "with value_coef=0 and a new critic, whose values stay 0"
        found |= config.changed("bootstrap_truncated", because=because)
    return found


def critic_metrics(batch: TrainingBatch, advantage: str) -> dict[str, float]:
    """How well the values before the update explain the returns, see ``explained_variance``.

    Args:
        batch: has ``old_values`` and ``returns``.
        advantage: name of the estimator; it says where values are trained.
    """
    fit = explained_variance(batch["old_values"], batch["returns"], value_mask(advantage, batch.mask))
    return {"value/explained_variance": float(fit)}
