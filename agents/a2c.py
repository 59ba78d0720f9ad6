"""Advantage actor-critic (A2C, Mnih et al. 2016, without the asynchronous workers).

One optimizer step on the episodes of each iteration, with a plain policy gradient and a critic. Shape
letters: B episodes, L tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from textenv.agents.base.critic import CRITIC_ARGUMENTS, critic_metrics, idle_critic, policy_with_critic
from textenv.agents.base.groups import world_index
from textenv.agents.base.policy_gradient import PolicyGradientAgent, policy_metrics
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.losses.advantages import get_advantage, value_mask
from textenv.agents.losses.importance import importance_weighted
from textenv.agents.losses.masked import divide_by_std, masked_center, masked_whiten
from textenv.agents.losses.policy_gradient import entropy_loss, policy_gradient_loss, ppo_value_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.policies.critics import bootstrap_values
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.settings.actor_critic import A2CConfig
from textenv.agents.settings.effects import Idle
from textenv.episodes.batch import EpisodeBatch


@register_agent("a2c")
class A2C(PolicyGradientAgent):
    """A2C: policy gradient with a critic, one step per batch, no probability ratio."""

    config_class = A2CConfig
    policy_arguments = CRITIC_ARGUMENTS
    config: A2CConfig

    def make_policy(self, model: Any) -> LanguagePolicy:
        """The policy with a value head, or with a separate critic."""
        return policy_with_critic(model, self.config, tokenizer=self.tokenizer, **self.policy_kwargs)

    def idle(self) -> Idle:
        """Settings without effect, those of the critic included."""
        return super().idle() | idle_critic(self.config, self.policy)

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """Old log-probs and values, advantages and returns: (B, L) each, 0 outside the action mask."""
        cfg, episodes = self.config, episodes.to(self.policy.device)
        mask = episodes.action_mask
        old = self.policy.evaluate(episodes, values=True, final_values=cfg.bootstrap_truncated)
        assert old.values is not None
        rewards = self.shaped_rewards(episodes)
        if cfg.scale_rewards:
            rewards = divide_by_std(rewards, mask)
        final = bootstrap_values(old.final_values, episodes.truncated) if cfg.bootstrap_truncated else None
        groups = world_index(episodes, self.envs)
        advantages, returns = get_advantage(cfg.advantage)(  # by default "gae"
            rewards,
            mask,
            values=old.values,
            final_values=final,
            groups=groups,
            scores=self.shaped_task_returns(episodes),
            gamma=cfg.gamma,
            gae_lambda=cfg.gae_lambda,
            discount=cfg.discount,
        )
        if cfg.center_by_prompt:
            advantages = masked_center(advantages, mask, groups)
        if cfg.whiten_advantages:
            advantages = masked_whiten(advantages, mask, min_std=cfg.whiten_min_std)
        advantages, weights = importance_weighted(
            advantages, episodes, old.log_probs, level=cfg.importance_correction, clip=cfg.importance_clip
        )
        tensors = {
            "old_log_probs": old.log_probs,
            "old_values": old.values,
            "advantages": advantages,
            "returns": returns,
        }
        return TrainingBatch(episodes, tensors | weights | self.reference_tensors(episodes))

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """-A log pi (or the clipped surrogate) + value loss - entropy bonus, divided by the totals."""
        cfg, mask, tokens = self.config, batch.mask, totals.tokens
        new = self.policy(batch.episodes, values=True, entropy=cfg.entropy_coef > 0)
        policy_loss, policy = policy_gradient_loss(
            new.log_probs,
            batch["old_log_probs"],
            batch["advantages"],
            mask,
            clip_range=cfg.clip_range,
            clip_range_high=cfg.clip_range_high,
            dual_clip=cfg.dual_clip,
            level=cfg.ratio_level,
            reduce=self.reduction(totals),
            denominator=tokens,
        )
        value_loss, value = ppo_value_loss(
            new.values,
            batch["old_values"],
            batch["returns"],
            value_mask(cfg.advantage, mask),  # all action tokens, or the first one of each turn
            clip_range=cfg.value_clip_range,
            denominator=totals.extra.get("values", tokens),
        )
        loss = policy_loss + cfg.value_coef * value_loss
        stats = policy_metrics(policy_loss, policy)
        stats |= {"value/loss": value_loss.detach(), "value/clip_fraction": value["clip_fraction"]}
        if cfg.entropy_coef:
            negative_entropy = entropy_loss(new.entropy, mask, denominator=tokens)
            loss = loss + cfg.entropy_coef * negative_entropy
            stats["policy/entropy"] = -negative_entropy.detach()
        return self.add_extra_losses(loss, stats, new, batch, totals)

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the rollout and of the critic."""
        return super().rollout_metrics(batch) | critic_metrics(batch, self.config.advantage)
