"""The nucleus of a second model as a restriction of a policy's tokens (NLPO, Ramamurthy et al. 2022).

Shape letters: N environment rows, n rows that act, A actions, V vocabulary, W logits of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from textenv.envs.token_constraints import TokenConstraints
from textenv.generation.policy import DecodingPolicy
from textenv.modeling.nucleus import RestrictLogits, nucleus_mask
from textenv.modeling.split_model import split_model


class Nucleus:
    """Restricts a policy to the tokens that a mask model finds likely in each state.

    It decodes the mask model beside the policy. It is a ``textenv.modeling.nucleus.TokenRestriction``.

    Args:
        model: the mask model, a transformers causal LM over the policy's vocabulary; it gets no gradients.
        top_p: probability mass of the nucleus.
        min_tokens: smallest size of the nucleus, in tokens (the whole vocabulary if that is smaller).

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
        """The settings, as stored in ``EpisodeBatch.sampling``."""
        return {"mask_top_p": self.top_p, "mask_min_tokens": self.min_tokens}

    def attach(self, env: Any) -> None:
        """Attach the mask model's decoding; see ``DecodingPolicy.attach``."""
        self.decoding.attach(env)

    def invalidate(self) -> None:
        """Drop the mask model's cache; see ``DecodingPolicy.invalidate``."""
        self.decoding.invalidate()

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
        """The restriction of the next tokens; see ``TokenRestriction.at_step``."""
        mask_logits = self.next_logits(rows, ids, lengths, acting)

        def restrict(
            logits: Tensor, t: Tensor, *, rows: slice = slice(None), chosen: Tensor | None = None
        ) -> Tensor:
            return self.restrict(
                logits, mask_logits[rows], t, legality=legality, temperature=temperature, chosen=chosen
            )

        return restrict

    def at_actions(
        self,
        states: Callable[[nn.Module], Tensor],
        *,
        legality: TokenConstraints | None,
        temperature: float,
    ) -> RestrictLogits:
        """The restriction of the tokens of finished episodes; see ``TokenRestriction.at_actions``."""
        mask_states, split = states(self.model), split_model(self.model)

        def restrict(
            logits: Tensor, t: Tensor, *, rows: slice = slice(None), chosen: Tensor | None = None
        ) -> Tensor:
            with torch.no_grad():
                part = mask_states[rows]
                mask_logits = part if split.output is None else split.head(part)
            return self.restrict(
                logits, mask_logits, t, legality=legality, temperature=temperature, chosen=chosen
            )

        return restrict

    def next_logits(self, rows: Tensor | None, ids: Tensor, lengths: Tensor, acting: Tensor | None) -> Tensor:
        """The mask model's logits (n, W) in the order of ``rows``; see ``DecodingPolicy.next_logits``."""
        mask_rows, logits, _ = self.decoding.next_logits(ids, lengths, acting)
        if rows is mask_rows or (rows is not None and mask_rows is not None and torch.equal(rows, mask_rows)):
            return logits
        all_rows = torch.arange(len(ids))
        place = torch.empty_like(all_rows)
        place[all_rows if mask_rows is None else mask_rows.cpu()] = torch.arange(len(logits))
        return logits[place[all_rows if rows is None else rows.cpu()].to(logits.device)]

    def restrict(
        self,
        logits: Tensor,
        mask_logits: Tensor,
        t: Tensor,
        *,
        legality: TokenConstraints | None,
        temperature: float,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Set the logits of tokens outside the nucleus to minus infinity.

        Args:
            logits: (n, V) of the policy, legal and divided by the temperature.
            mask_logits: (n, W) of the mask model, unchanged.
            t: (n,) int64 step.
            legality: applied to both; the nucleus is computed among legal tokens.
            temperature: divides the mask model's logits, too.
            chosen: (n,) tokens that were sampled from the nucleus; they are never excluded. Rounding may move
                the edge of the nucleus between the rollout and this pass.
        """
        vocabulary = logits.shape[-1]
        mask_logits = mask_logits[..., :vocabulary] if legality is None else legality.apply(mask_logits, t)
        mask_logits = mask_logits if mask_logits.dtype == torch.float64 else mask_logits.float()
        kept = nucleus_mask(mask_logits / temperature, self.top_p, self.min_tokens).to(logits.device)
        if chosen is not None:
            kept = kept.scatter(-1, chosen.unsqueeze(-1), True)
        return logits.masked_fill(~kept, -torch.inf)
