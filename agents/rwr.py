"""Reward-weighted regression (RWR, Peters and Schaal 2007): behaviour cloning weighted by exp(return).

Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textenv.agents.base.offline import OfflineAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.episodes import as_episodes
from textenv.agents.data.preferences import rows_by_prompt
from textenv.agents.losses.masked import masked_mean
from textenv.agents.losses.policy_gradient import sft_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.settings.offline import RWRConfig


def reward_weights(
    returns: Tensor, *, temperature: float = 1.0, standardize: bool = False, max_weight: float | None = None
) -> Tensor:
    """Weights proportional to exp(return / temperature), with mean 1 before the clip: (B,) -> (B,).

    Peters and Schaal 2007, "Reinforcement learning by reward-weighted regression"; the clip is from Peng et
    al. 2019, "Advantage-weighted regression".

    Args:
        returns: (B,) of the whole data set.
        temperature: see above.
        standardize: divide returns by their standard deviation first (unless it is 0).
        max_weight: largest weight.

    Example:
        >>> reward_weights(torch.tensor([0.0, 0.0, 0.0, 1.0]) * 2.0794415).tolist()[-1]  # e^2.0794415 = 8
        2.909...
    """
    values = returns.double()
    if standardize:
        std = values.std(correction=0)
        values = values / torch.where(std > 0, std, 1.0)
    weights = torch.softmax(values / temperature, 0) * len(values)
    return (weights if max_weight is None else weights.clamp_max(max_weight)).to(returns.dtype)


@register_agent("rwr")
class RWR(OfflineAgent):
    """Reward-weighted regression: cloning of logged episodes, each weighted by exp(return)."""

    config_class = RWRConfig
    config: RWRConfig
    dataset: TrainingBatch

    def load_dataset(self, dataset: Any) -> TrainingBatch:
        """Episodes with their weights; see ``textenv.agents.data.episodes.as_episodes``."""
        cfg = self.config
        episodes = as_episodes(dataset, self.tokenizer, need_rewards=True)
        returns = episodes.returns.double()
        if cfg.baseline == "prompt":
            returns = returns.clone()
            for rows in rows_by_prompt(episodes):
                returns[rows] -= returns[rows].mean()
        weights = reward_weights(
            returns, temperature=cfg.temperature, standardize=cfg.standardize, max_weight=cfg.max_weight
        )
        return TrainingBatch(episodes, {"weights": weights.float()})

    def batch(self, index: Tensor) -> TrainingBatch:
        """The rows ``index`` of the data set, with their weights."""
        return self.dataset.select(index)

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """Mean of -weight log pi over the action tokens of the optimizer step."""
        new = self.policy(batch.episodes)
        weights = batch["weights"]
        loss = -masked_mean(new.log_probs * weights.unsqueeze(-1), batch.mask, totals.tokens)
        nll = sft_loss(new.log_probs.detach(), batch.mask, denominator=totals.tokens)
        return loss, {"rwr/nll": nll, "rwr/weight": weights.sum() / totals.episodes}
