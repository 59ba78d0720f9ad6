"""Implicit Language Q-Learning (Snell et al. 2022): offline value learning, and decoding shifted by the advantage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from textenv.agents.base import Stats
from textenv.agents.batch import Totals, TrainingBatch
from textenv.agents.offline import OfflineAgent
from textenv.agents.config import OfflineConfig
from textenv.agents.datasets import as_episodes
from textenv.agents.heads import ILQLHeads
from textenv.agents.ilql_losses import (
    ilql_awac_loss,
    ilql_cql_loss,
    ilql_q_loss,
    ilql_targets,
    ilql_value_loss,
)
from textenv.agents.policy import LanguagePolicy
from textenv.agents.registry import register_agent
from textenv.episodes import EpisodeBatch


@dataclass(frozen=True, kw_only=True)
class ILQLConfig(OfflineConfig):
    """Settings of ILQL."""

    gamma: float = 0.99
    """Discount per own token."""
    expectile: float = 0.7
    """Tau of the expectile that V regresses to; towards 1 it is the maximum."""
    cql_coef: float = 0.1
    """Weight of the conservative term."""
    awac_coef: float = 1.0
    """Weight of the language-model loss."""
    awac_beta: float = 0.0
    """Sharpness of that loss's advantage weights; 0 clones all data alike."""
    num_q: int = 2
    """Q heads, of which the least counts."""
    head: Literal["linear", "mlp"] = "mlp"
    """Shape of the Q and V heads; "linear" is light, "mlp" costs 2 d V more parameters for each Q head."""
    target_alpha: float = 0.005
    """Share of the new Q heads in each target synchronisation (Polyak averaging)."""
    target_every: int = 1
    """Optimizer steps between target synchronisations."""
    standardize_returns: bool = False
    """Shift and scale rewards so that the data set's returns have mean 0 and standard deviation 1."""
    decode_beta: float = 1.0
    """Weight of the advantage when the policy acts; 0 is the language model alone."""
    decode_top_k: int = 0
    """When acting, keep only the k likeliest tokens after the shift; 0 keeps all."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(
            gamma="[0, 1]",
            expectile="(0, 1)",
            cql_coef=">= 0",
            awac_coef=">= 0",
            awac_beta=">= 0",
            num_q=">= 1",
            target_alpha="(0, 1]",
            target_every=">= 1",
            decode_beta=">= 0",
            decode_top_k=">= 0",
        )


class ILQLPolicy(LanguagePolicy):
    """A language policy whose distribution is shifted by the advantage: log pi + beta (min Q - V), renormalised.

    ``beta`` is a property, so an evaluation can sweep it without touching the weights.
    """

    heads: ILQLHeads

    def attach_heads(self, heads: ILQLHeads, *, beta: float) -> None:
        """Take on value heads and act with ``beta``."""
        self.heads = heads
        self._beta = beta
        self.set_logits_processor(self.shift)

    @property
    def beta(self) -> float:
        """Weight of the advantage in acting."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        if value < 0:
            raise ValueError(f"beta must be >= 0, got {value}")
        self._beta = float(value)

    def shift(self, logits: Tensor, hidden: Tensor, t: Tensor) -> Tensor:
        """Logits of the shifted distribution: (n, V), (n, d), (n,) -> (n, V)."""
        if not self._beta:
            return logits
        return torch.log_softmax(logits, -1) + self._beta * self.heads.advantage(hidden).to(logits)


@register_agent("ilql")
class ILQL(OfflineAgent):
    """Implicit Language Q-Learning from logged episodes with rewards."""

    config_class = ILQLConfig
    config: ILQLConfig
    policy: ILQLPolicy

    def make_policy(self, model: Any) -> LanguagePolicy:
        """A policy with Q, target Q and V heads."""
        cfg = self.config
        policy = ILQLPolicy(model, tokenizer=self.tokenizer, seed=cfg.seed, top_k=cfg.decode_top_k)
        heads = ILQLHeads(policy.hidden_size, policy.vocab_size, num_q=cfg.num_q, kind=cfg.head)
        policy.attach_heads(heads, beta=cfg.decode_beta)
        return policy

    def load_dataset(self, dataset: Any) -> EpisodeBatch:
        """Episodes with rewards; preference pairs count +1 and -1."""
        episodes = as_episodes(dataset, self.tokenizer)
        if self.config.standardize_returns:
            returns = episodes.returns
            spread = returns.std().clamp_min(1e-6)
            shift = episodes.at_last_action(torch.full_like(returns, float(returns.mean())))
            episodes = episodes.select(slice(None))
            episodes.rewards = (episodes.rewards - shift) / spread
        return episodes

    def trainable(self) -> nn.Module:
        """Language model and heads (the target heads have no gradient)."""
        return self.policy

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """L_Q + L_V + cql L_CQL + awac L_AWAC."""
        cfg, mask, tokens = self.config, batch.mask, totals.tokens
        out = self.policy(batch.episodes, hidden=True)
        # The state of the action in column p is the hidden state of column p - 1, which emits it.
        states = out.hidden[:, :-1][mask[:, 1:]]
        found = self.policy.heads(states, batch.episodes.input_ids[mask])

        def spread(values: Tensor) -> Tensor:
            return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)

        state_values, target_q = spread(found.state_values), spread(found.target_q)
        targets = ilql_targets(batch.episodes.rewards, state_values, mask, gamma=cfg.gamma)
        q_loss = ilql_q_loss([spread(q) for q in found.q], targets, mask, denominator=tokens)
        value_loss = ilql_value_loss(
            state_values, target_q, mask, expectile=cfg.expectile, denominator=tokens
        )
        cql = ilql_cql_loss([spread(q) for q in found.q_log_probs], mask, denominator=tokens)
        awac, _ = ilql_awac_loss(
            out.log_probs, target_q, state_values, mask, beta=cfg.awac_beta, denominator=tokens
        )
        loss = q_loss + value_loss + cfg.cql_coef * cql + cfg.awac_coef * awac
        return loss, {
            "ilql/q_loss": q_loss.detach(),
            "ilql/value_loss": value_loss.detach(),
            "ilql/cql_loss": cql.detach(),
            "ilql/awac_loss": awac.detach(),
        }

    def after_step(self) -> None:
        """Move the target heads, counted in optimizer steps."""
        if self.optimizer_steps % self.config.target_every == 0:
            self.policy.heads.sync(self.config.target_alpha)
            self.policy.invalidate()
