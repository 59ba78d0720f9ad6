"""Which tokens may be chosen at step t of an episode: one rule, applied by every log-prob in the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Legality:
    """A token is legal at step t if its id is below ``vocab_size``, it is not suppressed, and it does not
    stop too early.

    The rule is a function of (t, constants) alone, so decoding, old, new and reference log-probs all see
    the same distribution. top-k and top-p are not legality: they depend on the policy.
    """

    vocab_size: int
    """V, the vocabulary of the task's tokenizer; a model may have more (padded) logits, which are cut off."""
    min_new_tokens: int = 0
    """Stop tokens are illegal at steps t < min_new_tokens."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end an episode."""
    suppressed_tokens: tuple[int, ...] = ()
    """Token ids that are never legal."""

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size must be >= 1, got {self.vocab_size}")
        if self.min_new_tokens < 0:
            raise ValueError(f"min_new_tokens must be >= 0, got {self.min_new_tokens}")
        for name in ("stop_token_ids", "suppressed_tokens"):
            ids = tuple(int(i) for i in getattr(self, name))
            bad = [i for i in ids if not 0 <= i < self.vocab_size]
            if bad:
                raise ValueError(f"{name} must lie in [0, {self.vocab_size}), got {bad}")
            object.__setattr__(self, name, ids)
        if len(set(self.suppressed_tokens)) >= self.vocab_size:
            raise ValueError("suppressed_tokens leaves no legal token")

    @property
    def is_trivial(self) -> bool:
        """Whether every token below ``vocab_size`` is legal at every step."""
        return not self.suppressed_tokens and not (self.min_new_tokens and self.stop_token_ids)

    def apply(self, logits: Tensor, t: Tensor) -> Tensor:
        """Cut the logits to V and set illegal ones to minus infinity.

        Args:
            logits: (..., W) with W >= V; not modified.
            t: (...,) int64, the number of tokens already chosen in the episode.

        Returns:
            (..., V). A view of ``logits`` where nothing had to be masked.

        Raises:
            ValueError: if W < V.
        """
        if logits.shape[-1] < self.vocab_size:
            raise ValueError(
                f"the model gives {logits.shape[-1]} logits, expected at least the tokenizer's vocabulary of "
                f"{self.vocab_size}; resize the model's embeddings or use the model's own tokenizer"
            )
        logits = logits[..., : self.vocab_size]
        if self.is_trivial:
            return logits
        logits = logits.clone()
        if self.suppressed_tokens:
            logits[..., list(self.suppressed_tokens)] = -torch.inf
        if self.min_new_tokens and self.stop_token_ids:
            early = (t < self.min_new_tokens).unsqueeze(-1)
            stops = list(self.stop_token_ids)
            logits[..., stops] = logits[..., stops].masked_fill(early, -torch.inf)
        return logits

    def is_legal(self, actions: Tensor, t: Tensor) -> Tensor:
        """Whether each action is legal: (...,) int64, (...,) int64 -> (...,) bool."""
        legal = (actions >= 0) & (actions < self.vocab_size)
        for token in self.suppressed_tokens:
            legal &= actions != token
        if self.min_new_tokens:
            for token in self.stop_token_ids:
                legal &= (actions != token) | (t >= self.min_new_tokens)
        return legal

    def to_sampling(self) -> dict[str, Any]:
        """The rule as JSON values, as kept in ``EpisodeBatch.sampling``."""
        return {
            "vocab_size": self.vocab_size,
            "min_new_tokens": self.min_new_tokens,
            "stop_token_ids": list(self.stop_token_ids),
            "suppressed_tokens": list(self.suppressed_tokens),
        }

    @classmethod
    def from_sampling(cls, sampling: Mapping[str, Any]) -> Legality | None:
        """Rebuild the rule from ``EpisodeBatch.sampling``; None if the episodes carry none (plain text
        data).
        """
        if "vocab_size" not in sampling:
            return None
        return cls(
            vocab_size=sampling["vocab_size"],
            min_new_tokens=sampling.get("min_new_tokens", 0),
            stop_token_ids=tuple(sampling.get("stop_token_ids", ())),
            suppressed_tokens=tuple(sampling.get("suppressed_tokens", ())),
        )
