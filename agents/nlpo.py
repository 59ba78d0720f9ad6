"""Natural language policy optimization (NLPO, Ramamurthy et al. 2022, "RL4LMs"): PPO with a mask policy.

A mask policy, at first a copy of the initial policy, defines a nucleus (top-p set) of tokens in each state.
Actions are sampled from the policy restricted to that nucleus and renormalized, and the loss uses this
restricted distribution. Every ``mask_update_iterations`` the mask policy becomes a copy of the policy. The
allowed tokens are recomputed from the mask policy's weights, so nothing of vocabulary size is stored. The KL
to the reference policy is that of the unrestricted distributions. Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from textenv import scoring as scorer
from textenv.agents.base.critic import CRITIC_ARGUMENTS, critic_metrics, idle_critic, policy_with_critic
from textenv.agents.base.groups import world_index
from textenv.agents.base.policy_gradient import PolicyGradientAgent, policy_metrics
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.evaluation.kl import kl_row
from textenv.agents.evaluation.task_returns import kl_wrappers
from textenv.agents.losses.advantages import get_advantage, value_mask
from textenv.agents.losses.importance import importance_weighted
from textenv.agents.losses.masked import divide_by_std, masked_center, masked_sum, masked_whiten
from textenv.agents.losses.policy_gradient import entropy_loss, ppo_policy_loss, ppo_value_loss
from textenv.agents.optim.backend import Stats
from textenv.agents.policies.critics import bootstrap_values
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.references import frozen_copy
from textenv.agents.settings.actor_critic import NLPOConfig
from textenv.agents.settings.effects import Idle, unlike
from textenv.episodes.batch import EpisodeBatch
from textenv.generation.nucleus import Nucleus


class NucleusPolicy(LanguagePolicy):
    """A language policy that samples from the nucleus of a mask policy.

    ``log_prob``, ``entropy``, ``evaluate`` and ``forward`` use the unrestricted distribution, and within
    ``masked()`` the restricted one that actions are sampled from.

    Args:
        model: see ``LanguagePolicy``; the mask policy is a copy of it.
        mask_top_p: probability mass of the nucleus.
        mask_min_tokens: smallest number of tokens in the nucleus.
        options: further arguments of ``LanguagePolicy``.

    Raises:
        ValueError: if an argument is out of its range.
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
        """Context in which log-probs and entropies are those of the restricted distribution (or not)."""
        before, self._restriction = self._restriction, self.nucleus if on else None
        try:
            yield
        finally:
            self._restriction = before

    @torch.no_grad()
    def renew_mask(self) -> None:
        """Copy the current weights of the policy into the mask policy."""
        for old, new in zip(self.mask_model.parameters(), self.model.parameters(), strict=True):
            if old is not new:
                old.copy_(new)
        self.invalidate()

    def extra_settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return self.nucleus.sampling()


@register_agent("nlpo")
class NLPO(PolicyGradientAgent):
    """PPO on the nucleus of a mask policy, an older copy of the policy."""

    config_class = NLPOConfig
    policy_class = NucleusPolicy
    policy_arguments = CRITIC_ARGUMENTS | {
        "mask_top_p": "it is the agent's setting mask_top_p",
        "mask_min_tokens": "it is the agent's setting mask_min_tokens",
    }
    config: NLPOConfig
    policy: NucleusPolicy

    def make_policy(self, model: Any) -> LanguagePolicy:
        """A policy with a critic and a mask policy.

        Raises:
            TypeError: if the policy has no mask policy.
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
        return policy_with_critic(model, cfg)

    def setup(self) -> None:
        """As in the base class.

        Raises:
            ValueError: if a KL penalty would be added in every step, from log-probs of the restricted policy.
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
        """Settings of a mask that contains every token, or that the policy was made with before."""
        cfg, nucleus, size = self.config, self.policy.nucleus, self.policy.vocab_size
        found = super().idle() | idle_critic(cfg, self.policy)
        if cfg.mask_top_p < 1 and nucleus.min_tokens >= size:
            names = ("mask_top_p", "mask_min_tokens", "mask_update_iterations")
            because = f"with mask_min_tokens={nucleus.min_tokens} of {size} tokens: nothing is masked"
            found |= cfg.changed(*names, because=because)
        made_with = {"mask_top_p": nucleus.top_p, "mask_min_tokens": nucleus.min_tokens}
        return found | unlike(cfg, made_with, made_with, "on a NucleusPolicy, which was made with its own")

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """As in PPO; ``old_log_probs`` are under the mask, ``unmasked_log_probs`` serve the KL metric."""
        cfg, episodes = self.config, episodes.to(self.policy.device)
        mask = episodes.action_mask
        unmasked = {}
        if self.reference is not None:
            unmasked["unmasked_log_probs"] = self.policy.log_prob(episodes)
        with self.policy.masked():
            old = self.policy.evaluate(episodes, values=True, final_values=cfg.bootstrap_truncated)
        assert old.values is not None
        rewards = self.shaped_rewards(episodes)
        if cfg.scale_rewards:
            rewards = divide_by_std(rewards, mask)
        final = bootstrap_values(old.final_values, episodes.truncated) if cfg.bootstrap_truncated else None
        groups = world_index(episodes, self.envs)
        advantages, returns = get_advantage(cfg.advantage)(  # by default "gae"
            rewards,
            mask,
            values=old.values,
            final_values=final,
            groups=groups,
            scores=self.shaped_task_returns(episodes),
            gamma=cfg.gamma,
            gae_lambda=cfg.gae_lambda,
            discount=cfg.discount,
        )
        if cfg.center_by_prompt:
            advantages = masked_center(advantages, mask, groups)
        if cfg.whiten_advantages:
            advantages = masked_whiten(advantages, mask, min_std=cfg.whiten_min_std)
        advantages, weights = importance_weighted(
            advantages, episodes, old.log_probs, level=cfg.importance_correction, clip=cfg.importance_clip
        )
        tensors = {
            "old_log_probs": old.log_probs,
            "old_values": old.values,
            "advantages": advantages,
            "returns": returns,
        }
        return TrainingBatch(episodes, tensors | weights | self.reference_tensors(episodes) | unmasked)

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """PPO's loss of the masked distributions: surrogate + value loss - entropy bonus."""
        cfg, mask, tokens = self.config, batch.mask, totals.tokens
        with self.policy.masked():
            new = self.policy(batch.episodes, values=True, entropy=cfg.entropy_coef > 0)
        policy_loss, policy = ppo_policy_loss(
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
        value_loss, value = ppo_value_loss(
            new.values,
            batch["old_values"],
            batch["returns"],
            value_mask(cfg.advantage, mask),  # all action tokens, or the first one of each turn
            clip_range=cfg.value_clip_range,
            denominator=totals.extra.get("values", tokens),
        )
        loss = policy_loss + cfg.value_coef * value_loss
        stats = policy_metrics(policy_loss, policy)
        stats |= {"value/loss": value_loss.detach(), "value/clip_fraction": value["clip_fraction"]}
        if cfg.entropy_coef:
            negative_entropy = entropy_loss(new.entropy, mask, denominator=tokens)
            loss = loss + cfg.entropy_coef * negative_entropy
            stats["policy/entropy"] = -negative_entropy.detach()
        return self.add_extra_losses(loss, stats, new, batch, totals)

    def after_update(self, batch: TrainingBatch) -> None:
        """Update the mask policy every ``mask_update_iterations``."""
        super().after_update(batch)
        every = self.config.mask_update_iterations
        if every is not None and self.iteration % every == 0:
            self.policy.renew_mask()

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the rollout and of the critic; the KL is that of the unrestricted distributions."""
        row = super().rollout_metrics(batch) | critic_metrics(batch, self.config.advantage)
        if self.reference is not None:
            kl = float(masked_sum(batch["unmasked_log_probs"] - batch["ref_log_probs"], batch.mask))
            row |= kl_row(kl, episodes=len(batch), tokens=int(batch.mask.sum()))
        return row
