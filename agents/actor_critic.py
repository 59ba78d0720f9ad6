"""What policy-gradient agents with a critic share: a value head, GAE, the value loss.

Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textenv.agents.base.policy_gradient import PolicyGradientAgent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.losses.advantages import get_advantage
from textenv.agents.losses.policy_gradient import explained_variance, masked_center, ppo_value_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.policies.heads import ValueHead
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.teacher_forced import Evaluation as PolicyOutput
from textenv.agents.settings.actor_critic import ActorCriticConfig
from textenv.agents.settings.effects import Idle, unlike
from textenv.episodes.batch import EpisodeBatch


class ActorCriticAgent(PolicyGradientAgent):
    """Base of policy-gradient agents with a critic."""

    config: ActorCriticConfig
    critic = True

    def idle(self) -> Idle:
        """Settings without effect: a critic's head that the policy was given with, values that stay 0."""
        own = {"value_head": self.policy.head_kind}
        because = f"on a policy that was made with head_kind={self.policy.head_kind!r}"
        found = super().idle() | unlike(self.config, own, own, because)
        critic = self.policy.critic
        head = self.policy.value_head if critic is None else critic.value_head
        if not self.config.value_coef and isinstance(head, ValueHead) and head.is_zero:
            because = "with value_coef=0 and a new critic, whose values stay 0"
            found |= self.config.changed("bootstrap_truncated", because=because)
        return found

    def make_policy(self, model: Any) -> LanguagePolicy:
        """A policy with a critic."""
        cfg = self.config
        if isinstance(model, LanguagePolicy):
            model.add_critic(cfg.value_model)
            return model
        return LanguagePolicy(
            model,
            tokenizer=self.tokenizer,
            seed=cfg.seed,
            value_head=cfg.value_model,
            head_kind=cfg.value_head,
            **self.policy_kwargs,
        )

    def evaluate_old(self, episodes: EpisodeBatch) -> PolicyOutput:
        """Log-probs and values before the agent learns from the episodes."""
        return self.policy.evaluate(episodes, values=True, final_values=self.config.bootstrap_truncated)

    def estimate(self, episodes: EpisodeBatch, rewards: Tensor, old: PolicyOutput) -> tuple[Tensor, Tensor]:
        """Advantages by the registered estimator, and the critic's targets."""
        cfg, mask = self.config, episodes.action_mask
        if cfg.scale_rewards:
            # Without a shift: that would pay every token for being there.
            spread = rewards[mask].std(correction=0)
            rewards = rewards / torch.where(spread > 0, spread, 1.0)
        final = None
        if cfg.bootstrap_truncated:
            assert old.final_values is not None
            final = torch.where(episodes.truncated, old.final_values, 0.0)
        advantages, returns = get_advantage(cfg.advantage)(
            rewards,
            mask,
            values=old.values,
            final_values=final,
            groups=episodes.prompt_index,
            scores=self.judged_scores(episodes),
            gamma=cfg.gamma,
            gae_lambda=cfg.gae_lambda,
        )
        if cfg.center_by_prompt:
            advantages = masked_center(advantages, mask, episodes.prompt_index)
        return advantages, returns

    def objective(self, new: PolicyOutput, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """The policy's loss + the value loss."""
        cfg = self.config
        loss, stats = super().objective(new, batch, totals)
        assert new.values is not None
        value_loss, value = ppo_value_loss(
            new.values,
            batch["old_values"],
            batch["returns"],
            batch.mask,
            clip_range=cfg.value_clip_range,
            denominator=totals.tokens,
        )
        stats |= {"value/loss": value_loss.detach(), "value/clip_fraction": value["clip_fraction"]}
        return loss + cfg.value_coef * value_loss, stats

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the rollout, with the fit of the critic."""
        row = super().rollout_metrics(batch)
        fit = explained_variance(batch["old_values"], batch["returns"], batch.mask)
        row["value/explained_variance"] = float(fit)
        return row
