"""Perplexity of texts under a language model. Shape letters: B episodes, L tokens."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch

from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.log_probs import token_log_probs


@torch.no_grad()
def perplexity(lm: Any, episodes: EpisodeBatch, *, max_tokens: int = 16384) -> float:
    """Exponential of the mean negative log-likelihood of the action tokens, over all B episodes.

    Under the model itself: temperature 1, no filters, every token legal. Tokens of another tokenizer are
    other units: compare perplexities of one model only.

    Args:
        lm: a ``LanguagePolicy``, its ``Reference``, or a causal LM.
        episodes: B episodes in the model's tokens.
        max_tokens: padded tokens of one forward pass.

    Returns:
        At least 1; NaN if no episode has an action token.
    """
    total, tokens = 0.0, int(episodes.action_mask.sum())
    if not tokens:
        return math.nan
    active = getattr(lm, "active", None)  # a reference says what its model is, for a while
    with nullcontext(getattr(lm, "model", lm)) if active is None else active() as model:
        for _, part in episodes.token_budget_batches(max_tokens):
            total -= float(token_log_probs(model, part).log_probs.double().sum())
    nats = total / tokens
    return math.exp(nats) if nats < 709 else math.inf  # beyond, math.exp raises an error
