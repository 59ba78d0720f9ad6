"""The nucleus of another model as a rule of what may be chosen: for acting and for log-probs alike.

Shape letters: N environment rows, n rows that act, V vocabulary, W logits of a model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from textenv.envs.token_constraints import Legality
from textenv.generation.policy import DecodingPolicy
from textenv.generation.sampling import nucleus_threshold


def nucleus_mask(logits: Tensor, top_p: float, min_tokens: int = 1) -> Tensor:
    """The smallest set of likeliest tokens with mass >= p, but at least so many: (n, V) -> (n, V) bool.

    Tokens tied with the last one kept are kept too.

    Example:
        >>> logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
        >>> nucleus_mask(logits, 0.75).tolist(), nucleus_mask(logits, 0.1, min_tokens=3).tolist()
        ([[True, True, False, False]], [[True, True, True, False]])
    """
    if top_p >= 1.0 or min_tokens >= logits.shape[-1]:
        return torch.ones_like(logits, dtype=torch.bool)
    least = logits.topk(min_tokens, dim=-1).values[..., -1:]
    return logits >= torch.minimum(nucleus_threshold(logits, top_p), least)


class Nucleus:
    """The tokens that a model finds likely in each state; it decodes beside the policy that it restricts.

    Args:
        model: a transformers causal LM over the policy's vocabulary; never trained through.
        top_p: mass of the nucleus.
        min_tokens: tokens that it holds at least, where there are so many.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(self, model: nn.Module, *, top_p: float = 0.9, min_tokens: int = 100) -> None:
        if not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
        if min_tokens < 1:
            raise ValueError(f"min_tokens must be >= 1, got {min_tokens}")
        self.model = model
        self.top_p = top_p
        self.min_tokens = min_tokens
        self.decoding = DecodingPolicy(model)

    def sampling(self) -> dict[str, Any]:
        """The rule, as kept in ``EpisodeBatch.sampling``."""
        return {"mask_top_p": self.top_p, "mask_min_tokens": self.min_tokens}

    def next_logits(self, rows: Tensor | None, ids: Tensor, lengths: Tensor, acting: Tensor | None) -> Tensor:
        """The model's logits (n, W) in the order of ``rows``; see ``DecodingPolicy.next_logits``."""
        theirs, logits, _ = self.decoding.next_logits(ids, lengths, acting)
        if rows is theirs or (rows is not None and theirs is not None and torch.equal(rows, theirs)):
            return logits
        everyone = torch.arange(len(ids))
        place = torch.empty_like(everyone)
        place[everyone if theirs is None else theirs.cpu()] = torch.arange(len(logits))
        return logits[place[everyone if rows is None else rows.cpu()].to(logits.device)]

    def restrict(
        self,
        logits: Tensor,
        theirs: Tensor,
        t: Tensor,
        *,
        legality: Legality | None,
        temperature: float,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Set what lies outside the nucleus to minus infinity.

        Args:
            logits: (n, V) of the policy, legal and divided by the temperature.
            theirs: (n, W) of the model, as it gives them.
            t: (n,) int64 step.
            legality: the rule for both; the nucleus is one of legal tokens.
            temperature: divides the model's logits, too.
            chosen: (n,) tokens that were drawn from the nucleus; they stay in it where this pass sees its
                edge a rounding error away from where the rollout saw it.
        """
        theirs = theirs[..., : logits.shape[-1]] if legality is None else legality.apply(theirs, t)
        theirs = theirs if theirs.dtype == torch.float64 else theirs.float()
        kept = nucleus_mask(theirs / temperature, self.top_p, self.min_tokens).to(logits.device)
        if chosen is not None:
            kept = kept.scatter(-1, chosen.unsqueeze(-1), True)
        return logits.masked_fill(~kept, -torch.inf)
