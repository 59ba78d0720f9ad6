"""Optional terms of the loss of policy-gradient agents: KL to the reference policy, and a pretraining loss.

An extra loss is called with the pass over a micro-batch, the micro-batch and the totals of the optimizer
step. It returns its weighted loss and statistics, or None if it has no part in this micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from textenv.agents.data.batch import Totals, TrainingBatch, rows_of_step
from textenv.agents.distributed import process_group
from textenv.agents.losses.aggregation import get_aggregation
from textenv.agents.losses.policy_gradient import kl_loss, sft_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.outputs import PolicyOutput
from textenv.agents.settings.policy_gradient import PolicyGradientConfig
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.kl import adapted_coefficient

ExtraLoss = Callable[[PolicyOutput, TrainingBatch, Totals], tuple[Tensor, Stats] | None]
"""(pass over a micro-batch, micro-batch, totals) -> (weighted scalar loss, statistics), or None."""


class KLLoss:
    """Coefficient times the KL to the reference policy (k3), aggregated as the policy loss is.

    Args:
        config: ``kl_coef`` is the first coefficient; with ``kl_controller="adaptive"`` it follows
            ``kl_target``.
    """

    def __init__(self, config: PolicyGradientConfig) -> None:
        self.config, self.coef = config, config.kl_coef

    def __call__(self, new: PolicyOutput, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """The weighted loss of a micro-batch with ``ref_log_probs``."""
        reduce = partial(get_aggregation(self.config.aggregation), totals=totals)
        kl = kl_loss(new.log_probs, batch["ref_log_probs"], batch.mask, reduce=reduce)
        return self.coef * kl, {"policy/kl_loss": kl.detach()}

    @property
    def adaptive(self) -> bool:
        """Whether the coefficient follows the measured KL."""
        return self.config.kl_controller == "adaptive"

    def adapt(self, kl: float, episodes: int) -> None:
        """Move the coefficient toward the target.

        Args:
            kl: measured KL in nats per sequence.
            episodes: number of episodes that it was measured on.
        """
        cfg = self.config
        self.coef = adapted_coefficient(self.coef, kl, episodes, target=cfg.kl_target, horizon=cfg.kl_horizon)


class PretrainingLoss:
    """``ptx_coef`` times the next-token loss on rows of a data set, once per optimizer step.

    The pretraining mix "ptx" of InstructGPT (Ouyang et al. 2022, eq. 2).

    Args:
        policy: the policy in training.
        dataset: texts whose tokens are the actions.
        config: ``ptx_coef``, ``ptx_batch_size`` and ``seed``.
    """

    STEP = "pretraining_step"
    """Key of ``totals.extra``: the number of the optimizer step, removed by the first micro-batch."""

    def __init__(self, policy: LanguagePolicy, dataset: EpisodeBatch, config: PolicyGradientConfig) -> None:
        self.policy, self.dataset, self.config = policy, dataset, config

    def __call__(
        self, new: PolicyOutput, batch: TrainingBatch, totals: Totals
    ) -> tuple[Tensor, Stats] | None:
        """The weighted loss, in the first micro-batch of an optimizer step; None in the others."""
        step = totals.extra.pop(self.STEP, None)
        if step is None:
            return None
        loss = self.at_step(int(step))
        return self.config.ptx_coef * loss, {"policy/ptx_loss": loss.detach()}

    def at_step(self, step: int) -> Tensor:
        """The unweighted loss of one optimizer step, in nats per token; each process takes its own rows."""
        cfg = self.config
        index = rows_of_step(len(self.dataset), step, size=cfg.ptx_batch_size, seed=cfg.seed)
        tokens = max(1.0, float(self.dataset.action_mask[index].sum()))
        local = index[process_group.rank() :: process_group.world_size()]
        # A process without rows makes a pass, too, because sharded models need it; its row does not count.
        rows = self.dataset.select(local if len(local) else index[:1])
        mask = rows.action_mask if len(local) else torch.zeros_like(rows.action_mask)
        return sft_loss(self.policy(rows).log_probs, mask, denominator=tokens)
