"""Group relative policy optimization (GRPO, Shao et al. 2024, "DeepSeekMath") and variants, by settings.

- DAPO (Yu et al. 2025): ``aggregation="dapo", clip_range_high=0.28, max_rollouts=4, kl_coef=0``.
- Dr. GRPO (Liu et al. 2025): ``aggregation="dr_grpo"``; it also turns off the division by the std.
- GSPO (Zheng et al. 2025): ``ratio_level="sequence", clip_range=3e-4, clip_range_high=4e-4, kl_coef=0``.

Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textenv import scoring as scorer
from textenv.agents.base.groups import checked_group_size, episodes_per_prompt
from textenv.agents.base.policy_gradient import PolicyGradientAgent, policy_metrics
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.distributed.data_parallel import shard_rows
from textenv.agents.evaluation.task_returns import task_returns
from textenv.agents.losses.advantages import get_advantage, group_std
from textenv.agents.losses.importance import importance_weighted
from textenv.agents.losses.masked import masked_sum, masked_whiten
from textenv.agents.losses.policy_gradient import entropy_loss, policy_gradient_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.settings.groups import GRPOConfig
from textenv.episodes.batch import EpisodeBatch


@register_agent("grpo")
class GRPO(PolicyGradientAgent):
    """GRPO: returns standardised within the group, clipped ratios; DAPO, Dr. GRPO and GSPO by settings."""

    config_class = GRPOConfig
    config: GRPOConfig
    everything: EpisodeBatch | None = None
    """With ``max_rollouts`` above 1: all episodes generated in the iteration, replaced ones included."""
    generated_kl: tuple[float, int] | None = None
    """KL to the reference policy over ``everything`` in nats per sequence, and the number of its episodes."""

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

    def flat(self, episodes: EpisodeBatch) -> Tensor:
        """Whether all task returns of the group of each episode are equal: (B,) bool."""
        return group_std(self.shaped_task_returns(episodes), self.groups(episodes)) == 0

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """Old log-probs, advantages (group-relative) and returns: (B, L) each, 0 outside the action mask."""
        cfg, episodes = self.config, episodes.to(self.policy.device)
        mask = episodes.action_mask
        old = self.policy.evaluate(episodes, values=False)
        advantages, returns = get_advantage(cfg.estimator)(  # by default "grpo"
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
        tensors |= weights | self.reference_tensors(episodes)
        self.generated_kl = self.measure_generated_kl(len(episodes))
        return TrainingBatch(episodes, tensors)

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """Clipped surrogate - entropy bonus + KL to the reference policy (one of the extra losses).

        ``ratio_level`` and ``aggregation`` choose among GRPO, DAPO, Dr. GRPO and GSPO.
        """
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
        # The KL (k3) times kl_coef is the first of the extra losses, unless kl_placement="reward".
        return self.add_extra_losses(loss, stats, new, batch, totals)

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the rollout, and how much the task returns of a prompt differ."""
        row, episodes = super().rollout_metrics(batch), batch.episodes
        row["group/std"] = float(group_std(task_returns(episodes, self.envs), self.groups(episodes)).mean())
        row["group/flat"] = float(self.flat(episodes).double().mean())
        return row

    # -- dynamic sampling (DAPO): ``max_rollouts`` above 1 ---------------------------------------------------

    def collect(self) -> EpisodeBatch:
        """Generate episodes; with ``max_rollouts`` above 1 scored, and groups with equal returns replaced."""
        episodes = super().collect()
        if self.config.max_rollouts == 1:
            return episodes
        self.compute_rewards(episodes)
        wanted = len(episodes)
        for _ in range(self.config.max_rollouts - 1):
            if int((~self.flat(episodes)).sum()) >= wanted:
                break
            more = super().collect()
            self.compute_rewards(more)
            episodes = EpisodeBatch.concat([episodes, more])
        self.everything = episodes
        # Whole groups in the order of their episode ids; groups with equal returns only fill up the rest.
        kept = torch.argsort(self.flat(episodes).byte(), stable=True)[:wanted]
        return shard_rows(episodes.select(kept.sort().values))

    def score(self, episodes: EpisodeBatch) -> None:
        """Compute rewards, unless ``collect`` did, and update adaptive terms from all generated episodes."""
        if self.config.max_rollouts == 1:
            super().score(episodes)
        else:
            scorer.update(self.generated(episodes), scorer.reward_wrappers(self.envs))

    def generated(self, episodes: EpisodeBatch) -> EpisodeBatch:
        """All episodes of the iteration, from which ``episodes`` were selected."""
        return episodes if self.everything is None else self.everything

    def measure_generated_kl(self, selected: int) -> tuple[float, int] | None:
        """See ``generated_kl``; None if no adaptive KL in the loss needs it, or no episode was replaced."""
        episodes = self.everything
        adaptive = self.kl_loss is not None and self.kl_loss.adaptive
        if not adaptive or episodes is None or len(episodes) == selected:
            return None
        assert self.reference is not None
        episodes = shard_rows(episodes.to(self.policy.device))
        difference = self.policy.log_prob(episodes) - self.reference.log_prob(episodes)
        return float(masked_sum(difference, episodes.action_mask)) / len(episodes), len(episodes)

    def sequence_kl(self, batch: TrainingBatch) -> tuple[float, int]:
        """KL to the reference policy in nats per sequence over all generated episodes, and their number."""
        return super().sequence_kl(batch) if self.generated_kl is None else self.generated_kl
