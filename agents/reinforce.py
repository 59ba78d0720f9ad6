"""REINFORCE with a choice of baselines (one of them is ReMax), and REINFORCE++.

Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from textenv.agents.base.groups import world_index
from textenv.agents.base.policy_gradient import PolicyGradientAgent, policy_metrics
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.losses.advantages import batch_mean, get_advantage, monte_carlo
from textenv.agents.losses.importance import importance_weighted
from textenv.agents.losses.masked import first_action_value, masked_whiten
from textenv.agents.losses.policy_gradient import entropy_loss, policy_gradient_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.settings.policy_gradient import ReinforceConfig, ReinforcePlusPlusConfig
from textenv.episodes.batch import EpisodeBatch


@register_agent("reinforce")
class Reinforce(PolicyGradientAgent):
    """REINFORCE: log-prob of each token times (return to go - baseline); no critic."""

    config_class = ReinforceConfig
    config: ReinforceConfig
    greedy: EpisodeBatch | None = None
    """With ``baseline="greedy"``: one greedy episode on the prompt of each sampled one, in this iteration."""

    def setup(self) -> None:
        """As in the base class, after a check that greedy episodes can be generated.

        Raises:
            ValueError: if actors generate ahead, because they generate each episode once.
        """
        if self.config.baseline == "greedy" and self.collector.ahead:
            raise ValueError(
                "baseline='greedy' generates each episode twice, rollouts in mode 'async' do it once"
            )
        super().setup()

    def score(self, episodes: EpisodeBatch) -> None:
        """Compute rewards, of the greedy episodes first: adaptive terms learn from the sampled ones only."""
        if self.config.baseline == "greedy":
            with acting_greedily(self.policy):
                self.greedy = self.generate(int(episodes.episode_id.min()))
            self.compute_rewards(self.greedy)
        super().score(episodes)

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """Old log-probs, advantages and returns: (B, L) each, 0 outside the action mask.

        The advantage is the return to go minus the baseline (Williams 1992). The greedy baseline is that of
        ReMax (Li et al. 2024, eq. 4).
        """
        cfg, episodes = self.config, episodes.to(self.policy.device)
        mask = episodes.action_mask
        old = self.policy.evaluate(episodes, values=False)
        rewards = self.shaped_rewards(episodes)
        if cfg.baseline == "batch":
            advantages, returns = batch_mean(rewards, mask, gamma=cfg.gamma, discount=cfg.discount)
        else:
            advantages, returns = monte_carlo(rewards, mask, gamma=cfg.gamma, discount=cfg.discount)
        if cfg.baseline == "greedy":
            advantages = torch.where(mask, returns - self.greedy_returns().unsqueeze(-1), 0.0)
        if cfg.whiten_advantages:
            advantages = masked_whiten(advantages, mask, min_std=cfg.whiten_min_std)
        advantages, weights = importance_weighted(
            advantages, episodes, old.log_probs, level=cfg.importance_correction, clip=cfg.importance_clip
        )
        tensors = {"old_log_probs": old.log_probs, "advantages": advantages, "returns": returns}
        return TrainingBatch(episodes, tensors | weights | self.reference_tensors(episodes))

    def greedy_returns(self) -> Tensor:
        """Discounted returns of the greedy episodes of this iteration: (B,)."""
        assert self.greedy is not None
        greedy = self.greedy.to(self.policy.device)
        cfg, rewards = self.config, self.shaped_rewards(greedy, update=False)
        returns, _ = monte_carlo(rewards, greedy.action_mask, gamma=cfg.gamma, discount=cfg.discount)
        return first_action_value(returns, greedy.action_mask)

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
        """Metrics of the rollout, and of the greedy episodes."""
        row = super().rollout_metrics(batch)
        if self.greedy is not None:
            row["baseline/reward"] = float(self.greedy.returns.mean())
            row["baseline/length"] = float(self.greedy.response_lengths.float().mean())
        return row


@contextmanager
def acting_greedily(policy: LanguagePolicy) -> Iterator[None]:
    """Context in which the policy takes the most likely token."""
    before = policy.decoding.greedy
    policy.decoding.greedy = True
    try:
        yield
    finally:
        policy.decoding.greedy = before


@register_agent("reinforce++")
class ReinforcePlusPlus(PolicyGradientAgent):
    """REINFORCE++: return to go with a KL penalty per token, whitened over the batch, clipped ratios.

    Hu et al. 2025, "REINFORCE++: an efficient RLHF algorithm with robustness to both prompt and reward
    models".
    """

    config_class = ReinforcePlusPlusConfig
    config: ReinforcePlusPlusConfig

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """Old log-probs, advantages (whitened returns to go) and returns: (B, L), 0 outside the mask."""
        cfg, episodes = self.config, episodes.to(self.policy.device)
        mask = episodes.action_mask
        old = self.policy.evaluate(episodes, values=False)
        advantages, returns = get_advantage(cfg.advantage)(  # by default "monte-carlo"
            self.shaped_rewards(episodes),
            mask,
            values=None,
            groups=world_index(episodes, self.envs),
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
        """Clipped surrogate - entropy bonus, divided by the totals; ``clip_range=None``: -A log pi."""
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
