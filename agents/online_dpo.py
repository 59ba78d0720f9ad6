"""Online DPO: preference pairs made of the policy's own samples, ranked by the rewards.

Guo et al. 2024, "Direct language model alignment from online AI feedback". Shape letters: B episodes, P pairs
(one of each prompt's k samples), L tokens.
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
from textenv.agents.evaluation.task_scores import task_scores
from textenv.agents.losses.policy_gradient import masked_mean, masked_sum
from textenv.agents.losses.preference import dpo_loss, response_log_probs
from textenv.agents.optim.backend import Stats
from textenv.agents.settings.samples import OnlineDPOConfig
from textenv.episodes.batch import EpisodeBatch


@register_agent("online-dpo")
class OnlineDPO(SampleChooser):
    """Online DPO: the best and the worst of each prompt's own samples are a preference pair.

    Pairs whose sides score the same have no gradient. The KL to the reference is in the loss: no term of the
    reward has to pay it, and one that does has no say in which sample is better.
    """

    config_class = OnlineDPOConfig
    config: OnlineDPOConfig
    collected: TrainingBatch
    """All samples of this iteration, of which ``advantages`` picks the pairs."""
    rollout: dict[str, float]
    """What the policy and the reference say about them."""

    def setup(self) -> None:
        """Take the reference."""
        super().setup()
        self.reference = self.policy.reference()

    def advantages(self, episodes: EpisodeBatch) -> PairedBatch:
        """Best and worst sample of each prompt, which pairs are ties, and the reference's log-probs."""
        episodes = episodes.to(self.policy.device)
        found = self.policy.evaluate(episodes, values=False, reference=True)
        assert found.ref_log_probs is not None
        mask = episodes.action_mask
        kl = float(masked_sum(found.log_probs - found.ref_log_probs, mask))
        self.collected = TrainingBatch(episodes)
        self.rollout = {
            **kl_row(kl, episodes=len(episodes), tokens=int(mask.sum())),
            "objective/entropy": -float(masked_mean(found.log_probs, mask)),
        }
        scores = task_scores(episodes, self.envs).to(episodes.rewards.dtype)
        best, worst = extremes(scores, group_rows(episodes, self.config.samples_per_prompt))
        tied = scores[best] == scores[worst]
        both = torch.cat([best, worst])
        reference = response_log_probs(found.ref_log_probs, mask)[both]
        tensors = {"reference": reference, "tied": tied.repeat(2), "scores": scores[both]}
        return PairedBatch(episodes.select(both), tensors)

    def totals(self, batch: TrainingBatch) -> Totals:
        """Pairs of one optimizer step, and how many of them are not tied."""
        totals = super().totals(batch)
        totals.extra["ranked"] = max(1.0, float((~batch["tied"][: len(batch)]).sum()))
        return totals

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """The configured loss of the gap between log ratios, averaged over the pairs that are not tied."""
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
        """Metrics of all the samples, their KL to the reference, and the share of pairs that are ties."""
        row = super().rollout_metrics(self.collected) | self.rollout
        row["pairs/tied"] = float(batch["tied"].float().mean())
        scores = batch["scores"]
        row["pairs/gap"] = float((scores[: len(batch)] - scores[len(batch) :]).mean())
        return row


def extremes(returns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the best and the worst episode of each group; the first of equals, and never the same row.

    Args:
        returns: (B,) of all episodes.
        rows: (P, k) int64 rows of each group, k >= 2.

    Returns:
        (P,) int64 twice.

    Example:
        >>> best, worst = extremes(torch.tensor([1.0, 3.0, 0.0, 2.0, 2.0, 2.0]), torch.arange(6).view(2, 3))
        >>> best.tolist(), worst.tolist()
        ([1, 3], [2, 5])
    """
    ranked = rows.gather(1, returns[rows].argsort(dim=1, descending=True, stable=True))
    return ranked[:, 0], ranked[:, -1]
