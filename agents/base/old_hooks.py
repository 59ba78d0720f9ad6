"""Deprecated hooks of policy-gradient agents, ``estimate`` and ``objective``; they work for one more version.

An agent defines ``advantages`` and ``loss`` instead. Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.losses.importance import importance_weighted
from textenv.agents.losses.masked import masked_whiten
from textenv.agents.losses.policy_gradient import entropy_loss
from textenv.agents.optim.backend import Stats
from textenv.episodes.batch import EpisodeBatch
from textenv.utils.deprecation import warn_renamed


def accept_old_hooks(cls: type) -> None:
    """Let a subclass of ``PolicyGradientAgent`` define ``estimate`` or ``objective``.

    Warns:
        DeprecationWarning: for each of them that it defines.
    """
    for old, new, method in (
        ("estimate", "advantages", _advantages_by_estimate),
        ("objective", "loss", _loss_by_objective),
    ):
        if old in vars(cls) and new not in vars(cls):
            warn_renamed(f"{cls.__name__}.{old}", new, stacklevel=4)
            setattr(cls, new, method)


def _advantages_by_estimate(agent: Any, episodes: EpisodeBatch) -> TrainingBatch:
    """Advantages by ``estimate(episodes, rewards, old)``, then whitening and importance weights."""
    cfg, episodes = agent.config, episodes.to(agent.policy.device)
    old = agent.policy.evaluate(
        episodes, values=_has_critic(agent), final_values=getattr(cfg, "bootstrap_truncated", False)
    )
    advantages, returns = agent.estimate(episodes, agent.shaped_rewards(episodes), old)
    if cfg.whiten_advantages:
        advantages = masked_whiten(advantages, episodes.action_mask, min_std=cfg.whiten_min_std)
    advantages, weights = importance_weighted(
        advantages, episodes, old.log_probs, level=cfg.importance_correction, clip=cfg.importance_clip
    )
    tensors = {"old_log_probs": old.log_probs, "advantages": advantages, "returns": returns}
    if old.values is not None:
        tensors["old_values"] = old.values
    return TrainingBatch(episodes, tensors | weights | agent.reference_tensors(episodes))


def _loss_by_objective(agent: Any, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
    """Loss and statistics by ``objective(new, batch, totals)``, then entropy bonus and extra losses."""
    cfg = agent.config
    new = agent.policy(batch.episodes, values=_has_critic(agent), entropy=cfg.entropy_coef > 0)
    loss, stats = agent.objective(new, batch, totals)
    if cfg.entropy_coef:
        negative_entropy = entropy_loss(new.entropy, batch.mask, denominator=totals.tokens)
        loss = loss + cfg.entropy_coef * negative_entropy
        stats["policy/entropy"] = -negative_entropy.detach()
    return agent.add_extra_losses(loss, stats, new, batch, totals)


def _has_critic(agent: Any) -> bool:
    return agent.policy.value_head is not None or agent.policy.critic is not None
