"""KL divergence of whole next-token distributions at every action, in chunks of logits.

Shape letters: B episodes, L tokens, A actions of the batch, d width of the LM head's input, W logits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from textenv.envs.token_constraints import TokenConstraints
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.kl import kl_full
from textenv.modeling.log_probs import MAX_BYTES
from textenv.modeling.split_model import SplitModel, eval_mode, model_vocab_size, split_model


def model_of(source: Any) -> AbstractContextManager[nn.Module]:
    """Within the block: the causal LM of a policy, a reference or a model.

    Raises:
        ValueError: if it is none of these.
    """
    if hasattr(source, "active"):
        return source.active()
    model = (
        source
        if isinstance(source, nn.Module) and hasattr(source, "config")
        else getattr(source, "model", None)
    )
    if not isinstance(model, nn.Module):
        raise ValueError(f"the full KL needs a causal language model, got {type(source).__name__}")
    return nullcontext(model)


@torch.no_grad()
def full_kl(
    policy: Any,
    reference: Any,
    episodes: EpisodeBatch,
    *,
    temperature: float = 1.0,
    legality: TokenConstraints | None = None,
    max_bytes: int = MAX_BYTES,
) -> Tensor:
    """KL(policy || reference) at each action, over legal tokens, at the sampling temperature.

    Args:
        policy: a policy with ``model``, or a causal LM.
        reference: a reference with ``active()``, a policy, or a causal LM.
        episodes: B episodes.
        temperature: divides the logits of both.
        legality: which tokens are legal, for both; None = all logits.
        max_bytes: budget for one chunk of logits of one model.

    Returns:
        (B, L) in nats, 0 outside the action mask.
    """
    row, column = episodes.action_mask.nonzero(as_tuple=True)
    steps = episodes.turn_steps[row, column]
    kl = torch.zeros(episodes.input_ids.shape, device=episodes.device)
    if not len(row):
        return kl
    states = []
    width = 1
    for source in (policy, reference):
        with model_of(source) as model, eval_mode(list(model.modules())):
            states.append(_states(split_model(model), episodes)[row, column - 1])
            width = max(width, model_vocab_size(model, 1))
    chunk = max(1, max_bytes // (4 * width))
    for start in range(0, len(row), chunk):
        part = slice(start, start + chunk)
        logits = []
        for source, hidden in zip((policy, reference), states, strict=True):
            with model_of(source) as model, eval_mode(list(model.modules())):
                split = split_model(model)
                own = hidden[part] if split.output is None else split.head(hidden[part])
            own = own.to(kl.device, torch.float32)
            own = own if legality is None else legality.apply(own, steps[part])
            logits.append(own / temperature)
        kl[row[part], column[part]] = kl_full(logits[0], logits[1])
    return kl


def _states(split: SplitModel, episodes: EpisodeBatch) -> Tensor:
    """The LM head's input (B, L, d), or the logits (B, L, W) of a model that can't be split."""
    device = next(split.model.parameters()).device
    ids, mask = episodes.input_ids.to(device), episodes.attention_mask.to(device).long()
    found = split.logits(ids, mask) if split.output is None else split.backbone(ids, mask)
    return found.to(episodes.device)
