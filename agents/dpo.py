"""Offline preference agents: DPO and its relatives, ORPO, SimPO and CPO on pairs, KTO on single responses."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from textenv.agents.base.offline import OfflineAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.episodes import is_tokens, text_records
from textenv.agents.data.preferences import PairedBatch, as_labelled, as_pairs, makes_pairs, mismatched
from textenv.agents.distributed.batch_sharding import spread
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
    """What one pass says about B responses."""

    log_probs: Tensor
    """(B,) sums over own tokens, with gradient."""
    reference: Tensor | None
    """(B,) the same under the reference; None = the agent has none."""
    counts: Tensor
    """(B,) own tokens."""

    @property
    def log_ratios(self) -> Tensor:
        """(B,) D."""
        assert self.reference is not None
        return self.log_probs - self.reference

    def sides(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen and rejected half of (2P,) values."""
        chosen, rejected = values.view(2, -1)
        return chosen, rejected


def reward_stats(chosen: Tensor, rejected: Tensor, *, denominator: float) -> Stats:
    """What the implicit rewards of P pairs (P,) say: means, margin, and how often they rank a pair rightly.

    Args:
        chosen: (P,) beta D of the preferred responses, without gradient.
        rejected: (P,) of the others.
        denominator: pairs of the whole optimizer step.
    """
    right = (chosen > rejected).to(chosen.dtype) + 0.5 * (chosen == rejected)
    sums = {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected, "accuracy": right}
    return {f"rewards/{name}": value.sum() / denominator for name, value in sums.items()}


class PreferenceAgent(OfflineAgent):
    """What preference agents share: log-probs of whole responses, and the reference's, precomputed or not."""

    from_preferences = True

    config: PreferenceConfig
    dataset: PairedBatch
    has_reference: ClassVar[bool] = True
    """Whether the loss measures against a reference."""
    of_tokens: bool = False
    """Whether the data set was given as tokens."""

    def idle(self) -> Idle:
        """Settings without effect on the data."""
        because = "on data that are tokens already"
        return super().idle() | (self.config.changed("max_length", because=because) if self.of_tokens else {})

    def setup(self) -> None:
        """Take the reference, if the loss wants one."""
        if self.has_reference:
            self.reference = self.policy.reference()

    def batch(self, index: Tensor) -> PairedBatch:
        """The rows ``index`` of the data set, with the reference's log-probs if they are precomputed."""
        cfg = self.config
        precompute = isinstance(cfg, ReferenceConfig) and cfg.precompute_reference
        if precompute and "reference" not in self.dataset.tensors:
            episodes = spread(self.dataset.episodes)
            with self.backend.summon_full_params():
                found = self.reference.log_prob(episodes.to(self.policy.device)).to(episodes.device)
            self.dataset.tensors["reference"] = response_log_probs(found, episodes.action_mask)
        return self.dataset.select(index)

    def responses(self, batch: TrainingBatch) -> Responses:
        """One forward of all the episodes, and one of the reference where its log-probs are not known."""
        reference = batch.tensors.get("reference")
        if self.has_reference and reference is None:
            with self.reference.sharing():
                own = self.policy(batch.episodes).log_probs
                reference = response_log_probs(self.reference.score(batch.episodes).log_probs, batch.mask)
        else:
            own = self.policy(batch.episodes).log_probs
        counts = batch.mask.sum(-1)
        return Responses(response_log_probs(own, batch.mask), reference, counts)


class PairAgent(PreferenceAgent):
    """A preference agent that learns from pairs."""

    config: Any
    """A ``PairConfig``."""
    makes_pairs: bool = False
    """Whether the pairs are made from returns or rankings."""

    def idle(self) -> Idle:
        """Settings without effect on the data."""
        because = "on data that are pairs already"
        given = {} if self.makes_pairs else self.config.changed("pairs_per_prompt", because=because)
        return super().idle() | given

    def load_dataset(self, dataset: Any) -> PairedBatch:
        """Pairs of whatever was given; see ``textenv.agents.data.preferences.as_pairs``."""
        cfg, self.of_tokens = self.config, is_tokens(dataset)
        if isinstance(dataset, PairedBatch):
            return PairedBatch(dataset.episodes, dict(dataset.tensors))
        if not self.of_tokens:
            dataset = text_records(dataset, self.tokenizer)
        self.makes_pairs = makes_pairs(dataset)
        found = as_pairs(
            dataset, self.tokenizer, max_length=cfg.max_length, pairs_per_prompt=cfg.pairs_per_prompt
        )
        return PairedBatch.of_pairs(found)

    def totals(self, batch: TrainingBatch) -> Totals:
        """Pairs of one optimizer step, and own tokens of their chosen sides."""
        totals = super().totals(batch)
        totals.extra["chosen_tokens"] = max(1.0, float(batch.mask[: len(batch)].sum()))
        return totals

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """The loss of the pairs, and their rewards."""
        found = self.responses(batch)
        weights = {name: batch[name][: len(batch)] for name in ("margin", "label") if name in batch.tensors}
        loss, rewards, stats = self.pair_loss(found, totals, **weights)
        stats = stats | reward_stats(*found.sides(rewards.detach()), denominator=totals.episodes)
        chosen, rejected = found.sides(found.log_probs.detach())
        stats["log_probs/chosen"] = chosen.sum() / totals.episodes
        stats["log_probs/rejected"] = rejected.sum() / totals.episodes
        return loss, stats

    def pair_loss(self, found: Responses, totals: Totals, **weights: Tensor) -> tuple[Tensor, Tensor, Stats]:
        """What an agent supplies: (loss, implicit reward of each response (2P,), statistics).

        Args:
            found: P chosen responses, then P rejected ones.
            totals: denominators; ``episodes`` counts pairs.
            weights: ``margin`` and ``label``, (P,) each, where the data have them.
        """
        raise NotImplementedError


@register_agent("dpo")
class DPO(PairAgent):
    """Direct preference optimization from pairs: losses sigmoid, cdpo, robust, ipo, hinge."""

    config_class = DPOConfig
    config: DPOConfig

    def pair_loss(self, found: Responses, totals: Totals, **weights: Tensor) -> tuple[Tensor, Tensor, Stats]:
        """The configured loss of the gap between log ratios, length-averaged for IPO."""
        cfg = self.config
        ratios = found.log_ratios
        chosen, rejected = found.sides(ratios / found.counts if cfg.loss == "ipo" else ratios)
        loss = dpo_loss(
            chosen - rejected,
            kind=cfg.loss,
            beta=cfg.beta,
            label_smoothing=cfg.label_smoothing,
            denominator=totals.episodes,
            **weights,
        )
        return loss, cfg.beta * ratios, {}


@register_agent("orpo")
class ORPO(PairAgent):
    """Odds-ratio preference optimization from pairs: chosen likelihood and odds ratio, no reference."""

    config_class = ORPOConfig
    config: ORPOConfig
    has_reference = False

    def pair_loss(self, found: Responses, totals: Totals, **weights: Tensor) -> tuple[Tensor, Tensor, Stats]:
        """Length-averaged NLL of the chosen side, and the odds ratio."""
        means = found.log_probs / found.counts
        loss, stats = orpo_loss(
            *found.sides(means), beta=self.config.beta, denominator=totals.episodes, **weights
        )
        return loss, self.config.beta * means, {f"orpo/{name}": value for name, value in stats.items()}


@register_agent("simpo")
class SimPO(PairAgent):
    """Simple preference optimization from pairs: length-averaged log-probs with a margin, no reference."""

    config_class = SimPOConfig
    config: SimPOConfig
    has_reference = False

    def pair_loss(self, found: Responses, totals: Totals, **weights: Tensor) -> tuple[Tensor, Tensor, Stats]:
        """The sigmoid loss of length-averaged log-probs beyond gamma."""
        cfg, means = self.config, found.log_probs / found.counts
        loss = simpo_loss(
            *found.sides(means), beta=cfg.beta, gamma=cfg.gamma, denominator=totals.episodes, **weights
        )
        return loss, cfg.beta * means, {}


@register_agent("cpo")
class CPO(PairAgent):
    """Contrastive preference optimization from pairs: DPO without a reference, and likelihood."""

    config_class = CPOConfig
    config: CPOConfig
    has_reference = False

    def pair_loss(self, found: Responses, totals: Totals, **weights: Tensor) -> tuple[Tensor, Tensor, Stats]:
        """The sigmoid loss of log-probs, and the token mean of the chosen side's NLL."""
        cfg = self.config
        loss, stats = cpo_loss(
            *found.sides(found.log_probs),
            beta=cfg.beta,
            nll_coef=cfg.nll_coef,
            chosen_tokens=totals.extra["chosen_tokens"],
            denominator=totals.episodes,
            **weights,
        )
        return loss, cfg.beta * found.log_probs, {"cpo/nll": stats["nll"]}


@register_agent("kto")
class KTO(PreferenceAgent):
    """Kahneman-Tversky optimization from single responses, each desirable or not (or from pairs)."""

    config_class = KTOConfig
    config: KTOConfig

    def load_dataset(self, dataset: Any) -> PairedBatch:
        """Responses, each beside its prompt with a response to another one, for the divergence estimate."""
        self.of_tokens = is_tokens(dataset)
        if isinstance(dataset, PairedBatch):
            return PairedBatch(dataset.episodes, dict(dataset.tensors))
        episodes, desirable = as_labelled(dataset, self.tokenizer, max_length=self.config.max_length)
        both = EpisodeBatch.concat([episodes, mismatched(episodes)])
        return PairedBatch(both, {"desirable": desirable.repeat(2)})

    def optimizer_step(self, batch: TrainingBatch) -> dict[str, float]:
        """Estimate the divergence on the mismatched responses of the whole batch, then step on its own."""
        assert isinstance(batch, PairedBatch)
        batch = batch.to(self.policy.device)
        own, other = batch.first(), batch.second()
        spread(other.episodes)
        reference = other.tensors.get("reference")
        with self.backend.summon_full_params():
            if reference is None:
                reference = response_log_probs(self.reference.log_prob(other.episodes), other.mask)
            mismatch = response_log_probs(self.policy.log_prob(other.episodes), other.mask) - reference
        own.tensors["baseline"] = kto_baseline(mismatch).expand(len(own))
        return super().optimizer_step(own)

    def totals(self, batch: TrainingBatch) -> Totals:
        """Responses of one optimizer step, of both kinds together and apart."""
        totals = super().totals(batch)
        desirable = float(batch["desirable"].sum())
        totals.extra["desirable"] = max(1.0, desirable)
        totals.extra["undesirable"] = max(1.0, len(batch) - desirable)
        return totals

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """The loss of the responses, and their rewards."""
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
