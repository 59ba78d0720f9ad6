"""Which tokens are legal at step t of an episode: one rule, applied wherever log-probs are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textenv.utils.checks import check_at_least, check_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer_vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """V, one more than the largest token id; more than ``len(tokenizer)`` if token ids have gaps."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


@lru_cache(maxsize=256)
def _ids(tokens: tuple[int, ...], device: torch.device) -> Tensor:
    """Token ids as a tensor; cached, because a copy to the device in every step would make it wait."""
    with torch.inference_mode(False):  # the cached tensor is used in training, too
        return torch.tensor(tokens, dtype=torch.int64, device=device)


@dataclass(frozen=True, kw_only=True)
class TokenConstraints:
    """The rule which tokens are legal at step t.

    Legal are token ids below ``vocab_size`` that are not suppressed, and stop tokens only from step
    ``min_new_tokens`` on. The rule depends only on t and constants, so decoding and old, new and reference
    log-probs use the same distribution. top-k and top-p depend on the policy and are not part of it. The
    environment itself accepts every token of its action space: an illegal one is appended like any other and
    does not end the episode.
    """

    vocab_size: int
    """V, the vocabulary of the task's tokenizer; a model may have more (padded) logits, which are dropped."""
    min_new_tokens: int = 0
    """Stop tokens are illegal at steps t < min_new_tokens of a turn."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end an episode."""
    suppressed_tokens: tuple[int, ...] = ()
    """Token ids that are never legal."""

    def __post_init__(self) -> None:
        check_at_least("vocab_size", self.vocab_size, 1)
        check_at_least("min_new_tokens", self.min_new_tokens, 0)
        for name in ("stop_token_ids", "suppressed_tokens"):
            object.__setattr__(self, name, check_token_ids(name, getattr(self, name), self.vocab_size))
        illegal = {*self.suppressed_tokens, *(self.stop_token_ids if self.min_new_tokens else ())}
        if len(illegal) >= self.vocab_size:
            raise ValueError(
                f"suppressed_tokens (and stop_token_ids before min_new_tokens) must leave a legal token, "
                f"got all {self.vocab_size} tokens"
            )

    @property
    def is_trivial(self) -> bool:
        """Whether every token below ``vocab_size`` is legal at every step."""
        return not self.suppressed_tokens and not (self.min_new_tokens and self.stop_token_ids)

    def apply(self, logits: Tensor, t: Tensor) -> Tensor:
        """Drop logits beyond V and set illegal ones to minus infinity.

        Args:
            logits: (..., W) with W >= V; not modified.
            t: (...,) int64, number of tokens chosen so far in the turn (in the response, if it is one turn).

        Returns:
            (..., V). A view of ``logits`` if no token had to be masked.

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
        if self.suppressed_tokens:
            logits = logits.index_fill(-1, _ids(self.suppressed_tokens, logits.device), -torch.inf)
        if self.min_new_tokens and self.stop_token_ids:
            stops = _ids(self.stop_token_ids, logits.device)
            early = (t < self.min_new_tokens).unsqueeze(-1)
            allowed = logits.index_select(-1, stops).masked_fill(early, -torch.inf)
            logits = logits.index_copy(-1, stops, allowed)
        return logits

    def mask(self, t: Tensor) -> Tensor:
        """Which tokens are legal: steps (...,) int64 -> (..., V) bool.

        >>> rule = TokenConstraints(vocab_size=3, min_new_tokens=1, stop_token_ids=(0,))
        >>> rule.mask(torch.tensor([0, 1])).tolist()
        [[False, True, True], [True, True, True]]
        """
        return self.apply(torch.zeros(*t.shape, self.vocab_size, device=t.device), t) == 0

    def to_sampling(self) -> dict[str, Any]:
        """The rule as JSON values, as stored in ``EpisodeBatch.sampling``."""
        return {
            "vocab_size": self.vocab_size,
            "min_new_tokens": self.min_new_tokens,
            "stop_token_ids": list(self.stop_token_ids),
            "suppressed_tokens": list(self.suppressed_tokens),
        }

    @classmethod
    def from_sampling(cls, sampling: Mapping[str, Any]) -> TokenConstraints | None:
        """Rebuild the rule from ``EpisodeBatch.sampling``; None if it has none (plain texts)."""
        if "vocab_size" not in sampling:
            return None
        return cls(
            vocab_size=sampling["vocab_size"],
            min_new_tokens=sampling.get("min_new_tokens", 0),
            stop_token_ids=tuple(sampling.get("stop_token_ids", ())),
            suppressed_tokens=tuple(sampling.get("suppressed_tokens", ())),
        )


Legality = TokenConstraints
"""Another name of ``TokenConstraints``."""
