"""Next-token logits without a cache: the plain forward pass over every acting row, at every step.

It is the reference for tests of cached decoding, and the fallback for models that the cache does not support.
Shape letters: N environment rows, n rows that act, L columns, W logits, d hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from textenv.modeling.split_model import eval_mode, split_model

_TOKENS = 16_384
"""Padded tokens of one forward pass; bounds its memory."""


def uncached_logits(
    model: nn.Module, ids: Tensor, lengths: Tensor, acting: Tensor | None
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Next-token logits of the rows that act.

    Args:
        model: a transformers causal LM.
        ids: (N, L) int64, right-padded.
        lengths: (N,) int64.
        acting: (N,) bool, None = all.

    Returns:
        Rows in the order of the logits (None = 0..N-1), logits (n, W), and the LM head's input (n, d) if
        the model exposes it.
    """
    split = split_model(model)
    device = next(model.parameters()).device
    rows = torch.arange(len(ids)) if acting is None else acting.nonzero().squeeze(-1).cpu()
    ids, lengths = ids[rows.to(ids.device)].to(device), lengths[rows.to(lengths.device)].to(device)
    width = int(lengths.max()) if len(rows) else 1
    ids = ids[:, :width]
    mask = (torch.arange(width, device=device) < lengths.unsqueeze(-1)).long()
    found_logits, found_hidden = [], []
    with eval_mode(list(model.modules())):
        for part in torch.arange(len(rows), device=device).split(max(1, _TOKENS // width)):
            last = lengths[part] - 1
            here = torch.arange(len(part), device=device)
            if split.output is None:
                found_logits.append(split.logits(ids[part], mask[part])[here, last])
            else:
                hidden = split.backbone(ids[part], mask[part])[here, last]
                found_hidden.append(hidden)
                found_logits.append(split.head(hidden))
    logits = torch.cat(found_logits) if found_logits else torch.empty(0, 1, device=device)
    return None if acting is None else rows, logits, torch.cat(found_hidden) if found_hidden else None
