"""NLPO: PPO over the tokens that the policy of some iterations ago finds likely (Ramamurthy et al. 2022).

A mask policy, at first a copy of the starting policy, rules out what lies outside its nucleus in each state;
the policy is sampled from, and trained as, what remains, renormalised. Every few iterations the mask policy
becomes a copy of the policy. Which tokens were allowed is found again from the mask policy's weights, so
nothing of the vocabulary's size is kept. The KL to the reference is that of the whole distributions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from textenv import scoring as scorer
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.evaluation.kl import kl_row
from textenv.agents.evaluation.task_scores import kl_wrappers
from textenv.agents.losses.policy_gradient import masked_sum
from textenv.agents.optim.backend import Stats
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.references import frozen_copy
from textenv.agents.policies.teacher_forced import Evaluation
from textenv.agents.ppo import PPO
from textenv.agents.settings.actor_critic import NLPOConfig
from textenv.agents.settings.effects import Idle, unlike
from textenv.episodes.batch import EpisodeBatch
from textenv.generation.nucleus import Nucleus


class NucleusPolicy(LanguagePolicy):
    """A language policy that acts within the nucleus of a mask policy.

    ``log_prob``, ``entropy`` and ``evaluate`` are of the whole distribution, and so is calling the policy; in
    a block of ``masked`` they are of the one that it acts by.

    Args:
        model: see ``LanguagePolicy``; the mask policy is a copy of it.
        mask_top_p: mass of the nucleus.
        mask_min_tokens: tokens that it holds at least.
        options: further arguments of ``LanguagePolicy``.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self, model: Any, *, mask_top_p: float = 0.9, mask_min_tokens: int = 100, **options: Any
    ) -> None:
        super().__init__(model, **options)
        self.mask_model = frozen_copy(self.model)
        self.nucleus = Nucleus(self.mask_model, top_p=mask_top_p, min_tokens=mask_min_tokens)
        self.decoding.restriction = self.nucleus

    @contextmanager
    def masked(self, on: bool = True) -> Iterator[None]:
        """In the block, log-probs and entropies are those of the distribution that it acts by (or not)."""
        before, self._restriction = self._restriction, self.nucleus if on else None
        try:
            yield
        finally:
            self._restriction = before

    @torch.no_grad()
    def renew_mask(self) -> None:
        """Make the mask policy a copy of the policy as it is now."""
        for own, new in zip(self.mask_model.parameters(), self.model.parameters(), strict=True):
            if own is not new:
                own.copy_(new)
        self.invalidate()

    def extra_settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return self.nucleus.sampling()


@register_agent("nlpo")
class NLPO(PPO):
    """PPO within the nucleus of a mask policy, which follows the policy at a distance."""

    config_class = NLPOConfig
    policy_class = NucleusPolicy
    config: NLPOConfig
    policy: NucleusPolicy

    def make_policy(self, model: Any) -> LanguagePolicy:
        """A policy with a critic and a mask policy.

        Raises:
            TypeError: for a policy that has no mask policy.
        """
        cfg = self.config
        if isinstance(model, LanguagePolicy) and not isinstance(model, NucleusPolicy):
            raise TypeError(f"NLPO needs a NucleusPolicy or a model, got {type(model).__name__}")
        if not isinstance(model, NucleusPolicy):
            model = NucleusPolicy(
                model,
                tokenizer=self.tokenizer,
                seed=cfg.seed,
                head_kind=cfg.value_head,
                mask_top_p=cfg.mask_top_p,
                mask_min_tokens=cfg.mask_min_tokens,
                **self.policy_kwargs,
            )
        return super().make_policy(model)

    def setup(self) -> None:
        """Take the reference; see ``PPO``.

        Raises:
            ValueError: if a KL penalty would be paid in every step, from log-probs as sampled.
        """
        super().setup()
        foreign = scorer.foreign_reward_wrappers(self.envs)
        if foreign and kl_wrappers(self.envs):
            names = ", ".join(type(wrapper).__name__ for wrapper in foreign)
            raise ValueError(
                f"NLPO's KL penalty is scored after the rollout, but {names} changes rewards in every step; "
                "write it as a reward term, or set kl_coef=0"
            )

    def idle(self) -> Idle:
        """Settings of a mask that holds every token, or that the policy was given with."""
        cfg, nucleus, size = self.config, self.policy.nucleus, self.policy.vocab_size
        found = super().idle()
        if cfg.mask_top_p < 1 and nucleus.min_tokens >= size:
            names = ("mask_top_p", "mask_min_tokens", "mask_update_iterations")
            because = f"with mask_min_tokens={nucleus.min_tokens} of {size} tokens: nothing is masked"
            found |= cfg.changed(*names, because=because)
        own = {"mask_top_p": nucleus.top_p, "mask_min_tokens": nucleus.min_tokens}
        return found | unlike(cfg, own, own, "on a NucleusPolicy, which was made with its own")

    def evaluate_old(self, episodes: EpisodeBatch) -> Evaluation:
        """Log-probs under the mask, and values."""
        with self.policy.masked():
            return super().evaluate_old(episodes)

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """What PPO's loss needs, and the log-probs without the mask, which the KL is measured with."""
        episodes = episodes.to(self.policy.device)
        whole = None if self.reference is None else self.policy.log_prob(episodes)
        batch = super().advantages(episodes)
        if whole is not None:
            batch.tensors["whole_log_probs"] = whole
        return batch

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """PPO's loss of the masked distributions."""
        with self.policy.masked():
            return super().loss(batch, totals)

    def ptx_loss(self) -> Tensor:
        """Next-token loss on ``dataset``, without the mask."""
        with self.policy.masked(False):
            return super().ptx_loss()

    def update(self, batch: TrainingBatch) -> dict[str, float]:
        """PPO's passes; afterwards the mask policy follows, if it is time."""
        row = super().update(batch)
        every = self.config.mask_update_iterations
        if every is not None and self.iteration % every == 0:
            self.policy.renew_mask()
        return row

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """PPO's metrics; the KL is that of the whole distributions."""
        row = super().rollout_metrics(batch)
        if self.reference is not None:
            kl = float(masked_sum(batch["whole_log_probs"] - batch["ref_log_probs"], batch.mask))
            row |= kl_row(kl, episodes=len(batch), tokens=int(batch.mask.sum()))
        return row
