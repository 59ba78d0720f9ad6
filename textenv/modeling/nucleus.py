"""The nucleus of a distribution, and protocols for objects that exclude tokens of a policy.

Shape letters: N environment rows, n rows that act, L columns, A actions, V vocabulary, W logits of a model,
d width of the LM head's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from textenv.envs.token_constraints import TokenConstraints

_TOP_P_CANDIDATES = 256


class RestrictLogits(Protocol):
    """Sets the logits of excluded tokens to minus infinity, for the states of one forward pass."""

    def __call__(
        self, logits: Tensor, t: Tensor, *, rows: slice = slice(None), chosen: Tensor | None = None
    ) -> Tensor:
        """Restrict the logits of a part of the states.

        Args:
            logits: (n, V) legal logits of the policy, divided by the temperature.
            t: (n,) int64 step of each state.
            rows: which states of the pass these are.
            chosen: (n,) tokens that were sampled under this restriction; they are never excluded. Rounding
                may move the edge of the allowed set between the rollout and a teacher-forced pass.
        """
        ...


class TokenRestriction(Protocol):
    """Excludes tokens in each state, both when a policy acts and when it is evaluated."""

    def sampling(self) -> dict[str, Any]:
        """The settings of the restriction as JSON values, for ``EpisodeBatch.sampling``."""
        ...

    def attach(self, env: Any) -> None:
        """See ``DecodingPolicy.attach``."""
        ...

    def invalidate(self) -> None:
        """Drop caches; see ``DecodingPolicy.invalidate``."""
        ...

    def at_step(
        self,
        rows: Tensor | None,
        ids: Tensor,
        lengths: Tensor,
        acting: Tensor | None,
        *,
        legality: TokenConstraints | None,
        temperature: float,
    ) -> RestrictLogits:
        """The restriction of the next tokens of the rows that act.

        Args:
            rows: (n,) int64 rows in the order of the logits; None = 0..N-1.
            ids: (N, L) int64, right-padded.
            lengths: (N,) int64.
            acting: (N,) bool, rows that act; None = all.
            legality: which tokens are legal.
            temperature: of the policy.
        """
        ...

    def at_actions(
        self,
        states: Callable[[nn.Module], Tensor],
        *,
        legality: TokenConstraints | None,
        temperature: float,
    ) -> RestrictLogits:
        """The restriction of all actions of finished episodes.

        Args:
            states: model -> (A, d) inputs of its LM head at the states of the actions, or (A, W) logits where
                the model has no separate head.
            legality: which tokens are legal.
            temperature: of the policy.
        """
        ...


def nucleus_mask(logits: Tensor, top_p: float, min_tokens: int = 1) -> Tensor:
    """Smallest set of the most likely tokens with mass >= p and at least ``min_tokens``: (n, V) -> (n, V).

    Tokens tied with the last kept one are kept, too.

    Example:
        >>> logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
        >>> nucleus_mask(logits, 0.75).tolist(), nucleus_mask(logits, 0.1, min_tokens=3).tolist()
        ([[True, True, False, False]], [[True, True, True, False]])
    """
    if top_p >= 1.0 or min_tokens >= logits.shape[-1]:
        return torch.ones_like(logits, dtype=torch.bool)
    least = logits.topk(min_tokens, dim=-1).values[..., -1:]
    return logits >= torch.minimum(nucleus_threshold(logits, top_p), least)


def nucleus_threshold(logits: Tensor, top_p: float) -> Tensor:
    """Smallest logit inside the nucleus of mass ``top_p`` of each row: (N, V) -> (N, 1)."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_total = wide.logsumexp(-1, keepdim=True)
    vocabulary = logits.shape[-1]
    # Sorting 50k logits takes a hundred times longer than selecting the best few hundred, which nearly always
    # contain the nucleus. On CUDA reading the result would be a host sync, and the sort is fast.
    count = vocabulary if logits.is_cuda else min(_TOP_P_CANDIDATES, vocabulary)
    while True:
        ranked = (
            wide.topk(count, dim=-1).values if count < vocabulary else wide.sort(-1, descending=True).values
        )
        mass = (ranked - log_total).exp_().cumsum(-1, dtype=torch.float64)
        if count == vocabulary or bool((mass[..., -1] >= top_p).all()):
            break
        count = min(count * 16, vocabulary)
    inside = (mass < top_p).sum(-1, keepdim=True).clamp_max(count - 1)
    return ranked.gather(-1, inside).to(logits.dtype)
