"""Online DPO: preference pairs from samples of the policy, ranked by the rewards.

Guo et al. 2024, "Direct language model alignment from online AI feedback". Shape letters: B episodes, P pairs
(one per prompt, from its k samples), L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textenv.agents.base.groups import SampleChooser, group_rows
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.preferences import PairedBatch
from textenv.agents.dpo import Responses, reward_stats
from textenv.agents.evaluation.kl import kl_row
from textenv.agents.evaluation.task_returns import task_returns
from textenv.agents.losses.masked import masked_mean, masked_sum
from textenv.agents.losses.preference import dpo_loss, response_log_probs
from textenv.agents.optim.backend import Stats
from textenv.agents.settings.samples import OnlineDPOConfig
from textenv.episodes.batch import EpisodeBatch


@register_agent("online-dpo")
class OnlineDPO(SampleChooser):
    """Online DPO: the best and the worst of each prompt's samples are a preference pair.

    Pairs with equal task returns have no gradient. The KL to the reference policy is part of the loss; KL
    penalties in the reward do not influence which sample is better.
    """

    config_class = OnlineDPOConfig
    config: OnlineDPOConfig
    collected: TrainingBatch
    """All samples of this iteration, from which ``advantages`` selects the pairs."""
    rollout: dict[str, float]
    """Metrics of their KL to the reference policy and of the entropy."""

    def setup(self) -> None:
        """As in the base class, and make the reference policy."""
        super().setup()
        self.reference = self.policy.reference()

    def advantages(self, episodes: EpisodeBatch) -> PairedBatch:
        """The best and the worst sample of each prompt, with the log-probs of the reference policy.

        Rows 0 to P - 1 are the best samples. Tensors, (2P,) each: ``reference`` log-probs of the responses,
        ``tied`` whether both sides of a pair have the same task return, ``scores`` the task returns.
        """
        episodes = episodes.to(self.policy.device)
        old = self.policy.evaluate(episodes, values=False, reference=True)
        assert old.ref_log_probs is not None
        mask = episodes.action_mask
        kl = float(masked_sum(old.log_probs - old.ref_log_probs, mask))
        self.collected = TrainingBatch(episodes)
        self.rollout = {
            **kl_row(kl, episodes=len(episodes), tokens=int(mask.sum())),
            "objective/entropy": -float(masked_mean(old.log_probs, mask)),
        }
        returns = task_returns(episodes, self.envs).to(episodes.rewards.dtype)
        best, worst = extremes(returns, group_rows(episodes, self.config.samples_per_prompt))
        tied = returns[best] == returns[worst]
        both = torch.cat([best, worst])
        reference = response_log_probs(old.ref_log_probs, mask)[both]
        tensors = {"reference": reference, "tied": tied.repeat(2), "scores": returns[both]}
        return PairedBatch(episodes.select(both), tensors)

    def totals(self, batch: TrainingBatch) -> Totals:
        """Pairs of one optimizer step, and the number of those that are not tied."""
        totals = super().totals(batch)
        totals.extra["ranked"] = max(1.0, float((~batch["tied"][: len(batch)]).sum()))
        return totals

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """The DPO loss of D_best - D_worst, averaged over the pairs that are not tied; see ``dpo_loss``."""
        cfg, counts = self.config, batch.mask.sum(-1)
        found = Responses(
            response_log_probs(self.policy(batch.episodes).log_probs, batch.mask), batch["reference"], counts
        )
        ratios, ranked = found.log_ratios, ~batch["tied"][: len(batch)]
        chosen, rejected = found.sides(ratios / counts if cfg.loss == "ipo" else ratios)
        loss = dpo_loss(
            (chosen - rejected)[ranked],
            kind=cfg.loss,
            beta=cfg.beta,
            label_smoothing=cfg.label_smoothing,
            denominator=totals.extra["ranked"],
        )
        better, worse = (side[ranked] for side in found.sides(cfg.beta * ratios.detach()))
        return loss, reward_stats(better, worse, denominator=totals.extra["ranked"])

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of all samples, their KL to the reference policy, and the share of tied pairs."""
        row = super().rollout_metrics(self.collected) | self.rollout
        row["pairs/tied"] = float(batch["tied"].float().mean())
        scores = batch["scores"]
        row["pairs/gap"] = float((scores[: len(batch)] - scores[len(batch) :]).mean())
        return row


def extremes(returns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the best and the worst episode of each group, never the same row: (P,) int64 twice.

    Among equal returns the first one is better.

    Args:
        returns: (B,) of all episodes.
        rows: (P, k) int64 rows of each group, k >= 2.

    Example:
        >>> best, worst = extremes(torch.tensor([1.0, 3.0, 0.0, 2.0, 2.0, 2.0]), torch.arange(6).view(2, 3))
        >>> best.tolist(), worst.tolist()
        ([1, 3], [2, 5])
    """
    ranked = rows.gather(1, returns[rows].argsort(dim=1, descending=True, stable=True))
    return ranked[:, 0], ranked[:, -1]
