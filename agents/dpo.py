"""Offline preference optimization: DPO with its variants, ORPO, SimPO and CPO on pairs, KTO on responses.

Shape letters: B responses, P pairs (rows 0 to P - 1 of 2P are the chosen responses, the others the rejected
ones), L tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from textenv.agents.base.offline import OfflineAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.episodes import is_tokens, text_records
from textenv.agents.data.preferences import PairedBatch, as_labelled, as_pairs, makes_pairs, mismatched
from textenv.agents.distributed.data_parallel import shard_rows
from textenv.agents.losses.preference import (
    cpo_loss,
    dpo_loss,
    kto_baseline,
    kto_loss,
    orpo_loss,
    response_log_probs,
    simpo_loss,
)
from textenv.agents.optim.backend import Stats
from textenv.agents.settings.effects import Idle
from textenv.agents.settings.preferences import (
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    PreferenceConfig,
    ReferenceConfig,
    SimPOConfig,
)
from textenv.episodes.batch import EpisodeBatch


class Responses(NamedTuple):
    """Log-probs of B whole responses."""

    log_probs: Tensor
    """(B,) sums over action tokens, with gradient."""
    reference: Tensor | None
    """(B,) the same under the reference policy; None without one."""
    counts: Tensor
    """(B,) number of action tokens."""

    @property
    def log_ratios(self) -> Tensor:
        """(B,) D = log pi - log pi_ref."""
        assert self.reference is not None
        return self.log_probs - self.reference

    def sides(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen and rejected half of (2P,) values: (P,) each."""
        chosen, rejected = values.view(2, -1)
        return chosen, rejected


def reward_stats(chosen: Tensor, rejected: Tensor, *, denominator: float) -> Stats:
    """Statistics of the implicit rewards of P pairs: means, margin, and the share of pairs ranked correctly.

    Args:
        chosen: (P,) implicit rewards (for DPO beta D) of the chosen responses, without gradient.
        rejected: (P,) of the rejected ones.
        denominator: pairs of the whole optimizer step.
    """
    right = (chosen > rejected).to(chosen.dtype) + 0.5 * (chosen == rejected)
    sums = {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected, "accuracy": right}
    return {f"rewards/{name}": value.sum() / denominator for name, value in sums.items()}


def pair_stats(found: Responses, rewards: Tensor, *, denominator: float) -> Stats:
    """Statistics of P pairs: ``reward_stats``, and mean log-probs of both sides.

    Args:
        found: P chosen responses, then P rejected ones.
        rewards: (2P,) their implicit rewards.
        denominator: pairs of the whole optimizer step.
    """
    stats = reward_stats(*found.sides(rewards.detach()), denominator=denominator)
    chosen, rejected = found.sides(found.log_probs.detach())
    stats["log_probs/chosen"] = chosen.sum() / denominator
    stats["log_probs/rejected"] = rejected.sum() / denominator
    return stats


def pair_options(batch: TrainingBatch) -> dict[str, Tensor]:
    """``margin`` and ``label`` of the pairs, (P,) each, where the data set has them."""
    return {name: batch[name][: len(batch)] for name in ("margin", "label") if name in batch.tensors}


class PreferenceAgent(OfflineAgent):
    """Base of preference agents: pairs, and log-probs of responses under policy and reference policy."""

    from_preferences = True

    config: PreferenceConfig
    dataset: PairedBatch
    has_reference: ClassVar[bool] = True
    """Whether the loss uses a reference policy."""
    of_tokens: bool = False
    """Whether the data set was given as tokens."""
    makes_pairs: bool = False
    """Whether the pairs are made from returns or rankings."""

    def idle(self) -> Idle:
        """Settings without effect on the data set."""
        cfg, found = self.config, super().idle()
        if self.of_tokens:
            found |= cfg.changed("max_length", because="on data that are tokens already")
        if hasattr(cfg, "pairs_per_prompt") and not self.makes_pairs:
            found |= cfg.changed("pairs_per_prompt", because="on data that are pairs already")
        return found

    def setup(self) -> None:
        """Make the reference policy, if the loss uses one."""
        if self.has_reference:
            self.reference = self.policy.reference()

    def load_dataset(self, dataset: Any) -> PairedBatch:
        """Pairs from the data set; see ``textenv.agents.data.preferences.as_pairs``."""
        cfg: Any = self.config
        self.of_tokens = is_tokens(dataset)
        if isinstance(dataset, PairedBatch):
            return PairedBatch(dataset.episodes, dict(dataset.tensors))
        if not self.of_tokens:
            dataset = text_records(dataset, self.tokenizer)
        self.makes_pairs = makes_pairs(dataset)
        found = as_pairs(
            dataset, self.tokenizer, max_length=cfg.max_length, pairs_per_prompt=cfg.pairs_per_prompt
        )
        return PairedBatch.of_pairs(found)

    def batch(self, index: Tensor) -> PairedBatch:
        """The rows ``index`` of the data set, with the reference's log-probs if they are precomputed."""
        cfg = self.config
        precompute = isinstance(cfg, ReferenceConfig) and cfg.precompute_reference
        if precompute and "reference" not in self.dataset.tensors:
            episodes = shard_rows(self.dataset.episodes)
            with self.backend.summon_full_params():
                found = self.reference.log_prob(episodes.to(self.policy.device)).to(episodes.device)
            self.dataset.tensors["reference"] = response_log_probs(found, episodes.action_mask)
        return self.dataset.select(index)

    def totals(self, batch: TrainingBatch) -> Totals:
        """Pairs of one optimizer step (``episodes``), and action tokens of their chosen responses."""
        totals = super().totals(batch)
        totals.extra["chosen_tokens"] = max(1.0, float(batch.mask[: len(batch)].sum()))
        return totals

    def responses(self, batch: TrainingBatch) -> Responses:
        """A pass over all episodes, and one of the reference policy if its log-probs are not precomputed."""
        ref_log_probs = batch.tensors.get("reference")
        if self.has_reference and ref_log_probs is None:
            with self.reference.sharing():
                policy_log_probs = self.policy(batch.episodes).log_probs
                ref_log_probs = response_log_probs(
                    self.reference.forward_model(batch.episodes).log_probs, batch.mask
                )
        else:
            policy_log_probs = self.policy(batch.episodes).log_probs
        counts = batch.mask.sum(-1)
        return Responses(response_log_probs(policy_log_probs, batch.mask), ref_log_probs, counts)


@register_agent("dpo")
class DPO(PreferenceAgent):
    """Direct preference optimization from pairs: losses sigmoid, cdpo, robust, ipo, hinge."""

    config_class = DPOConfig
    config: DPOConfig

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """``loss`` of the settings, a function of D_chosen - D_rejected (Rafailov et al. 2023, eq. 7).

        IPO averages D over the tokens of a response.
        """
        cfg, found = self.config, self.responses(batch)
        ratios = found.log_ratios
        chosen, rejected = found.sides(ratios / found.counts if cfg.loss == "ipo" else ratios)
        loss = dpo_loss(
            chosen - rejected,
            kind=cfg.loss,
            beta=cfg.beta,
            label_smoothing=cfg.label_smoothing,
            denominator=totals.episodes,
            **pair_options(batch),
        )
        return loss, pair_stats(found, cfg.beta * ratios, denominator=totals.episodes)


@register_agent("orpo")
class ORPO(PreferenceAgent):
    """Odds-ratio preference optimization from pairs: chosen likelihood and odds ratio, no reference."""

    config_class = ORPOConfig
    config: ORPOConfig
    has_reference = False

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """NLL per token of the chosen responses + beta odds-ratio loss (Hong et al. 2024, eq. 6 and 7)."""
        cfg, found = self.config, self.responses(batch)
        means = found.log_probs / found.counts
        loss, stats = orpo_loss(
            *found.sides(means), beta=cfg.beta, denominator=totals.episodes, **pair_options(batch)
        )
        named = {f"orpo/{name}": value for name, value in stats.items()}
        return loss, named | pair_stats(found, cfg.beta * means, denominator=totals.episodes)


@register_agent("simpo")
class SimPO(PreferenceAgent):
    """Simple preference optimization from pairs: length-averaged log-probs with a margin, no reference."""

    config_class = SimPOConfig
    config: SimPOConfig
    has_reference = False

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """-log sigma(beta (mean l_c - mean l_r) - gamma) of log-probs per token (Meng et al. 2024, eq. 6)."""
        cfg, found = self.config, self.responses(batch)
        means = found.log_probs / found.counts
        loss = simpo_loss(
            *found.sides(means),
            beta=cfg.beta,
            gamma=cfg.gamma,
            denominator=totals.episodes,
            **pair_options(batch),
        )
        return loss, pair_stats(found, cfg.beta * means, denominator=totals.episodes)


@register_agent("cpo")
class CPO(PreferenceAgent):
    """Contrastive preference optimization from pairs: DPO without a reference, and likelihood."""

    config_class = CPOConfig
    config: CPOConfig
    has_reference = False

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """-log sigma(beta (l_c - l_r)) + nll_coef NLL per chosen token (Xu et al. 2024, eq. 5)."""
        cfg, found = self.config, self.responses(batch)
        loss, stats = cpo_loss(
            *found.sides(found.log_probs),
            beta=cfg.beta,
            nll_coef=cfg.nll_coef,
            chosen_tokens=totals.extra["chosen_tokens"],
            denominator=totals.episodes,
            **pair_options(batch),
        )
        named = {"cpo/nll": stats["nll"]}
        return loss, named | pair_stats(found, cfg.beta * found.log_probs, denominator=totals.episodes)


@register_agent("kto")
class KTO(PreferenceAgent):
    """Kahneman-Tversky optimization from single responses, each desirable or not (or from pairs)."""

    config_class = KTOConfig
    config: KTOConfig

    def load_dataset(self, dataset: Any) -> PairedBatch:
        """Labelled responses, and for each one the same prompt with the response to another prompt.

        The second half serves the estimate of the KL, see ``step``.
        """
        self.of_tokens = is_tokens(dataset)
        if isinstance(dataset, PairedBatch):
            return PairedBatch(dataset.episodes, dict(dataset.tensors))
        episodes, desirable = as_labelled(dataset, self.tokenizer, max_length=self.config.max_length)
        both = EpisodeBatch.concat([episodes, mismatched(episodes)])
        return PairedBatch(both, {"desirable": desirable.repeat(2)})

    def optimizer_step(self, batch: TrainingBatch) -> dict[str, float]:
        """Estimate the KL baseline z from the mismatched responses of the batch, then step on the others."""
        assert isinstance(batch, PairedBatch)
        batch = batch.to(self.policy.device)
        labelled, other = batch.first(), batch.second()
        shard_rows(other.episodes)
        reference = other.tensors.get("reference")
        with self.backend.summon_full_params():
            if reference is None:
                reference = response_log_probs(self.reference.log_prob(other.episodes), other.mask)
            mismatch = response_log_probs(self.policy.log_prob(other.episodes), other.mask) - reference
        labelled.tensors["baseline"] = kto_baseline(mismatch).expand(len(labelled))
        return super().optimizer_step(labelled)

    def totals(self, batch: TrainingBatch) -> Totals:
        """Responses of one optimizer step: all, the desirable ones and the others."""
        totals = super().totals(batch)
        desirable = float(batch["desirable"].sum())
        totals.extra["desirable"] = max(1.0, desirable)
        totals.extra["undesirable"] = max(1.0, len(batch) - desirable)
        return totals

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """Mean of w (1 - sigma(s beta (D - z))), see ``kto_loss`` (Ethayarajh et al. 2024, eq. 8)."""
        cfg, found = self.config, self.responses(batch)
        ratios, desirable, z = found.log_ratios, batch["desirable"], batch["baseline"]
        loss = kto_loss(
            ratios,
            desirable,
            z,
            beta=cfg.beta,
            desirable_weight=cfg.desirable_weight,
            undesirable_weight=cfg.undesirable_weight,
            denominator=totals.episodes,
        )
        rewards = cfg.beta * ratios.detach()
        chosen = torch.where(desirable, rewards, 0.0).sum() / totals.extra["desirable"]
        rejected = torch.where(desirable, 0.0, rewards).sum() / totals.extra["undesirable"]
        gap = rewards - cfg.beta * z
        right = ((gap > 0) == desirable).to(gap.dtype).masked_fill(gap == 0, 0.5)
        return loss, {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margin": chosen - rejected,
            "rewards/accuracy": right.sum() / totals.episodes,
            "kto/baseline": z.sum() / totals.episodes,
        }
