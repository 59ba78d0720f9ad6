"""Supervised fine-tuning (behaviour cloning), and filtered behaviour cloning of the best logged episodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from textenv.agents.base.offline import OfflineAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.episodes import as_demonstrations
from textenv.agents.losses.policy_gradient import sft_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.settings.offline import FilteredBCConfig, SFTConfig
from textenv.episodes.batch import EpisodeBatch


@register_agent("sft")
class SFT(OfflineAgent):
    """Supervised fine-tuning: likelihood of the completions (behaviour cloning of all episodes)."""

    config_class = SFTConfig
    needs_rewards = False
    """Whether a data set of texts must have rewards."""
    config: SFTConfig

    def setup(self) -> None:
        """Set the packing of the policy.

        Raises:
            ValueError: if ``packing`` is set for a model without support.
        """
        self.policy.packing = self.config.packing

    def load_dataset(self, dataset: Any) -> EpisodeBatch:
        """See ``as_demonstrations``; without ``completion_only`` all tokens but the first are actions."""
        episodes = as_demonstrations(dataset, self.tokenizer, need_rewards=self.needs_rewards)
        if not self.config.completion_only:
            mask = episodes.attention_mask.clone()
            mask[:, 0] = False
            episodes = replace(episodes, action_mask=mask)
        return episodes

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """Mean negative log-likelihood over the action tokens of the optimizer step."""
        new = self.policy(batch.episodes)
        loss = sft_loss(new.log_probs, batch.mask, denominator=totals.tokens)
        return loss, {"sft/nll": loss.detach()}


@register_agent("filtered-bc")
class FilteredBC(SFT):
    """Behaviour cloning of the episodes with the highest returns (filtered BC)."""

    config_class = FilteredBCConfig
    needs_rewards = True
    config: FilteredBCConfig

    def load_dataset(self, dataset: Any) -> EpisodeBatch:
        """The episodes whose return is at or above the percentile."""
        episodes = super().load_dataset(dataset)
        returns = episodes.returns.double()
        threshold = torch.quantile(returns, self.config.percentile)
        # Rounding can put the quantile slightly above the return that it stands for.
        kept = returns >= threshold - 1e-9 * (1 + threshold.abs())
        return episodes.select(kept)
