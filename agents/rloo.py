"""REINFORCE leave-one-out (RLOO): the baseline is the mean return of the other episodes of the prompt.

Ahmadian et al. 2024, "Back to basics: revisiting REINFORCE style optimization for learning from human
feedback in LLMs". Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from textenv.agents.base.groups import checked_group_size, episodes_per_prompt
from textenv.agents.base.policy_gradient import PolicyGradientAgent, policy_metrics
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.evaluation.task_returns import task_returns
from textenv.agents.losses.advantages import get_advantage, group_std
from textenv.agents.losses.importance import importance_weighted
from textenv.agents.losses.masked import masked_whiten
from textenv.agents.losses.policy_gradient import entropy_loss, policy_gradient_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.settings.groups import RLOOConfig
from textenv.episodes.batch import EpisodeBatch


@register_agent("rloo")
class RLOO(PolicyGradientAgent):
    """RLOO: each episode's return, KL penalty included, minus the mean of the others on its prompt."""

    config_class = RLOOConfig
    config: RLOOConfig

    @classmethod
    def group_size(cls, config: Any, *, evaluation: bool = False) -> int:
        """Episodes per prompt."""
        return episodes_per_prompt(config, evaluation=evaluation)

    def setup(self) -> None:
        """As in the base class, after a check of the groups.

        Raises:
            ValueError: if the environment generates no groups, or an iteration no whole groups.
        """
        self.size = checked_group_size(self.envs, self.config, who=type(self).__name__)
        super().setup()

    def groups(self, episodes: EpisodeBatch) -> Tensor:
        """Number of the group of each episode: (B,) int64."""
        return episodes.episode_id // self.size

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """Old log-probs, advantages (leave-one-out) and returns: (B, L) each, 0 outside the action mask."""
        cfg, episodes = self.config, episodes.to(self.policy.device)
        mask = episodes.action_mask
        old = self.policy.evaluate(episodes, values=False)
        advantages, returns = get_advantage(cfg.estimator)(  # by default "rloo"
            self.shaped_rewards(episodes),
            mask,
            values=None,
            groups=self.groups(episodes),
            scores=self.shaped_task_returns(episodes),
            gamma=cfg.gamma,
            discount=cfg.discount,
        )
        if cfg.whiten_advantages:
            advantages = masked_whiten(advantages, mask, min_std=cfg.whiten_min_std)
        advantages, weights = importance_weighted(
            advantages, episodes, old.log_probs, level=cfg.importance_correction, clip=cfg.importance_clip
        )
        tensors = {"old_log_probs": old.log_probs, "advantages": advantages, "returns": returns}
        return TrainingBatch(episodes, tensors | weights | self.reference_tensors(episodes))

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """-A log pi - entropy bonus, divided by the totals; with ``clip_range`` PPO's clipped surrogate."""
        cfg, mask, tokens = self.config, batch.mask, totals.tokens
        new = self.policy(batch.episodes, entropy=cfg.entropy_coef > 0)
        loss, policy = policy_gradient_loss(
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
        stats = policy_metrics(loss, policy)
        if cfg.entropy_coef:
            negative_entropy = entropy_loss(new.entropy, mask, denominator=tokens)
            loss = loss + cfg.entropy_coef * negative_entropy
            stats["policy/entropy"] = -negative_entropy.detach()
        return self.add_extra_losses(loss, stats, new, batch, totals)

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the rollout, and how much the task returns of a prompt differ."""
        row, groups = super().rollout_metrics(batch), self.groups(batch.episodes)
        std = group_std(task_returns(batch.episodes, self.envs), groups)
        equal = group_std(self.shaped_task_returns(batch.episodes), groups) == 0
        return row | {"group/std": float(std.mean()), "group/flat": float(equal.double().mean())}
