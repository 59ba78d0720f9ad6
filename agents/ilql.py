"""Implicit Language Q-Learning (ILQL, Snell et al. 2022): offline values shift the logits in decoding.

Shape letters: A action tokens, B episodes, L tokens, n rows, d width, V vocabulary, W logits of the model.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from textenv.agents.base.offline import OfflineAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.episodes import as_episodes
from textenv.agents.evaluation.evaluator import Evaluation
from textenv.agents.losses.ilql import (
    ilql_awac_loss,
    ilql_cql_loss,
    ilql_q_loss,
    ilql_targets,
    ilql_value_loss,
)
from textenv.agents.optim.backend import Stats
from textenv.agents.policies.heads import HeadKind, ILQLHeads, head_dtype
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.outputs import PolicyOutput
from textenv.agents.settings.effects import Idle, unlike
from textenv.agents.settings.offline import ILQLConfig
from textenv.episodes.batch import EpisodeBatch


class ILQLPolicy(LanguagePolicy):
    """A language policy with logits shifted by the advantage: log pi + beta (min Q - V), renormalized.

    ``act``, ``log_prob``, ``entropy`` and ``evaluate`` use the shifted distribution. Calling the policy, as
    training does, uses the language model without the shift. ``beta`` can be changed without a change of
    weights.

    Args:
        model: see ``LanguagePolicy``.
        beta: weight of the advantage; 0 is the language model alone.
        num_q: number of Q heads; their minimum is used.
        q_head: shape of the Q and V heads.
        options: further arguments of ``LanguagePolicy``.

    Raises:
        ValueError: if ``beta`` is negative.
    """

    heads: ILQLHeads
    """Q, target Q and V heads on the hidden states of the model."""

    def __init__(
        self, model: Any, *, beta: float = 1.0, num_q: int = 2, q_head: HeadKind = "mlp", **options: Any
    ) -> None:
        super().__init__(model, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            heads = ILQLHeads(self.hidden_size, self.vocab_size, num_q=num_q, kind=q_head)
        self.heads = heads.to(self.device, head_dtype(self.model))
        self.beta = beta
        self.set_logits_processor(self.shift)

    @property
    def beta(self) -> float:
        """Weight of the advantage in the sampled distribution."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        if not value >= 0:
            raise ValueError(f"beta must be >= 0, got {value}")
        self._beta = float(value)

    def shift(self, logits: Tensor, hidden: Tensor, t: Tensor) -> Tensor:
        """Logits of the shifted distribution: (n, W), (n, d), (n,) -> (n, V)."""
        if not self.beta:
            return logits
        # Logits differ from log-probs by a constant per row, which the normalization removes.
        logits = logits[..., : self.heads.vocab_size]
        return logits + self.beta * self.heads.advantage(hidden).to(logits.dtype)

    def forward(
        self, episodes: EpisodeBatch, *, values: bool = False, entropy: bool = False, hidden: bool = False
    ) -> PolicyOutput:
        """Differentiable pass of the language model without the shift; see ``LanguagePolicy``."""
        if torch.is_grad_enabled():
            self.warn_of_filters(episodes.sampling)
        return self._pass(episodes, values=values, entropy=entropy, hidden=hidden, processed=False)

    def extra_settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return {"beta": self.beta, "num_q": self.heads.num_q, "q_head": self.heads.kind}

    def _state(self) -> Hashable:
        return super()._state(), self.beta


class QAndV(NamedTuple):
    """One pass of an ILQL policy over B episodes; (B, L) each, 0 outside the action mask."""

    log_probs: Tensor
    """Of the language model without the shift."""
    q: list[Tensor]
    """Per Q head: Q_i(s, a)."""
    q_log_probs: list[Tensor]
    """Per Q head: Q_i(s, a) - logsumexp over v of Q_i(s, v)."""
    target_q: Tensor
    """Minimum of the target heads at the action, without gradient."""
    values: Tensor
    """V(s)."""


def q_and_v(policy: ILQLPolicy, batch: TrainingBatch) -> QAndV:
    """Log-probs, Q and V at the action tokens, with gradient."""
    mask = batch.mask
    out = policy(batch.episodes, hidden=True)
    assert out.hidden is not None
    # The action in column p is predicted from the hidden state of column p - 1.
    found = policy.heads(out.hidden[:, :-1][mask[:, 1:]], batch.episodes.input_ids[mask])

    def scatter(values: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)

    return QAndV(
        log_probs=out.log_probs,
        q=[scatter(q) for q in found.q],
        q_log_probs=[scatter(q) for q in found.q_log_probs],
        target_q=scatter(found.target_q),
        values=scatter(found.state_values),
    )


@register_agent("ilql")
class ILQL(OfflineAgent):
    """Implicit Language Q-Learning from logged episodes with rewards."""

    config_class = ILQLConfig
    policy_class = ILQLPolicy
    policy_arguments: ClassVar[Mapping[str, str]] = {
        "beta": "it is the agent's setting decode_beta",
        "num_q": "it is the agent's setting num_q",
        "q_head": "it is the agent's setting head",
        "top_k": "it is the agent's setting decode_top_k",
    }
    config: ILQLConfig
    policy: ILQLPolicy

    def make_policy(self, model: Any) -> ILQLPolicy:
        """A policy with Q, target Q and V heads, which samples with ``decode_beta`` and ``decode_top_k``.

        Raises:
            TypeError: if the policy has no such heads.
        """
        cfg = self.config
        if isinstance(model, ILQLPolicy):
            return model
        if isinstance(model, LanguagePolicy):
            raise TypeError(f"ILQL needs an ILQLPolicy or a model, got {type(model).__name__}")
        return ILQLPolicy(
            model,
            tokenizer=self.tokenizer,
            beta=cfg.decode_beta,
            num_q=cfg.num_q,
            q_head=cfg.head,
            top_k=cfg.decode_top_k,
            seed=cfg.seed,
            **self.policy_kwargs,
        )

    def idle(self) -> Idle:
        """Settings of heads and decoding without effect, because the policy was made before."""
        policy = self.policy
        made_with = {
            "num_q": policy.heads.num_q,
            "head": policy.heads.kind,
            "decode_beta": policy.beta,
            "decode_top_k": policy.decoding.top_k,
        }
        because = "on an ILQLPolicy, which was made with its own"
        return super().idle() | unlike(self.config, made_with, made_with, because)

    def load_dataset(self, dataset: Any) -> EpisodeBatch:
        """Episodes with rewards; the responses of preference pairs get +1 and -1."""
        episodes = as_episodes(dataset, self.tokenizer, need_rewards=True)
        if self.config.standardize_returns:
            returns = episodes.returns
            std = returns.std().clamp_min(1e-6)
            shift = episodes.at_last_action(torch.full_like(returns, float(returns.mean())))
            episodes = episodes.select(slice(None))
            episodes.rewards = (episodes.rewards - shift) / std
        return episodes

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """L_Q + L_V + cql_coef L_CQL + awac_coef L_AWAC (Snell et al. 2022, section 4)."""
        cfg, mask, tokens = self.config, batch.mask, totals.tokens
        log_probs, q, q_log_probs, target_q, values = q_and_v(self.policy, batch)
        targets = ilql_targets(batch.episodes.rewards, values, mask, gamma=cfg.gamma, discount=cfg.discount)
        q_loss = ilql_q_loss(q, targets, mask, denominator=tokens)
        value_loss = ilql_value_loss(values, target_q, mask, expectile=cfg.expectile, denominator=tokens)
        cql = ilql_cql_loss(q_log_probs, mask, denominator=tokens)
        awac, _ = ilql_awac_loss(log_probs, target_q, values, mask, beta=cfg.awac_beta, denominator=tokens)
        loss = q_loss + value_loss + cfg.cql_coef * cql + cfg.awac_coef * awac
        return loss, {
            "ilql/q_loss": q_loss.detach(),
            "ilql/value_loss": value_loss.detach(),
            "ilql/cql_loss": cql.detach(),
            "ilql/awac_loss": awac.detach(),
        }

    def after_step(self) -> None:
        """Update the target heads every ``target_every`` optimizer steps."""
        if self.optimizer_steps % self.config.target_every == 0:
            self.policy.heads.sync(self.config.target_alpha)
            self.policy.invalidate()

    def sweep(
        self, betas: Sequence[float], envs: Any = None, episodes: int | None = None, **options: Any
    ) -> dict[float, Evaluation]:
        """Evaluate with several values of beta: beta -> evaluation. The beta of the policy is restored.

        Args:
            betas: weights of the advantage.
            envs: environment, see ``evaluate``.
            episodes: number of episodes per beta.
            options: further arguments of ``evaluate``.
        """
        before, found = self.policy.beta, {}
        try:
            for beta in betas:
                self.policy.beta = beta
                found[beta] = self.evaluate(envs, episodes, **options)
        finally:
            self.policy.beta = before
        return found
