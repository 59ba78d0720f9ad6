"""Attention masks, chosen from the config: of a slot cache, a prefill, packed rows.

Those of the slot cache are kept up to date by one write per token. Shape letters: S slots, n live slots, L
columns, Q queries, R packed rows, W their width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_KNOWN = ("full_attention", "sliding_attention")


class UnsupportedModelError(ValueError):
    """The model cannot be decoded with a slot cache; the message says why."""


def attention_windows(config: Any) -> dict[str, int | None]:
    """Which masks a model needs: layer type -> window in tokens (None = unlimited).

    A single entry means one mask for all layers, several that the model takes a dict of masks.

    Args:
        config: a transformers config.

    Raises:
        UnsupportedModelError: for any layer type but full and sliding attention.

    Example:
        >>> from transformers import MistralConfig
        >>> attention_windows(MistralConfig(sliding_window=8))
        {'sliding_attention': 8}
    """
    text = config.get_text_config()
    window: Any = getattr(text, "sliding_window", None)
    layer_types = getattr(text, "layer_types", None)
    if not layer_types:
        return {"full_attention": None} if window is None else {"sliding_attention": int(window)}
    kinds = sorted(set(layer_types))
    unknown = [kind for kind in kinds if kind not in _KNOWN]
    if unknown:
        raise UnsupportedModelError(f"layer types {unknown} keep a state that a slot cache does not have")
    if "sliding_attention" in kinds and window is None:
        raise UnsupportedModelError("layer_types has sliding_attention but the config has no sliding_window")
    return {kind: int(window) if kind == "sliding_attention" else None for kind in kinds}


class SlotMasks:
    """One additive mask per layer type, (S, L): 0 where a slot's query may look, else the least float.

    Additive in the model's own dtype, because a boolean mask is silently wrong under eager attention.
    """

    def __init__(
        self,
        windows: Mapping[str, int | None],
        slots: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.windows = dict(windows)
        self.hidden = torch.finfo(dtype).min
        self._columns = torch.arange(max_length, device=device)
        self._masks = {
            kind: torch.full((slots, max_length), self.hidden, dtype=dtype, device=device) for kind in windows
        }
        # A tensor, because a Python number would be sent to the device at every step.
        self._visible = torch.zeros((), dtype=dtype, device=device)

    def restart(self, slots: Tensor, lengths: Tensor) -> None:
        """Let the slots (n,) see their first ``lengths`` (n,) columns and nothing else."""
        ends = lengths.unsqueeze(-1)
        for kind, window in self.windows.items():
            visible = self._columns < ends
            if window is not None:
                visible &= self._columns > ends - 1 - window
            mask = self._masks[kind]
            fresh = torch.full(visible.shape, self.hidden, dtype=mask.dtype, device=mask.device)
            mask.index_copy_(0, slots, fresh.masked_fill_(visible, 0.0))

    def advance(self, slots: Tensor, positions: Tensor) -> None:
        """Uncover the column that each slot is about to write, and cover the one that leaves its window."""
        for kind, window in self.windows.items():
            mask = self._masks[kind]
            if window is not None:
                leaving = positions - window
                covered = torch.zeros_like(positions, dtype=mask.dtype).masked_fill_(
                    leaving >= 0, self.hidden
                )
                mask.index_put_((slots, leaving.clamp_min_(0)), covered)
            mask.index_put_((slots, positions), self._visible)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy the masks of the slots ``source`` (m,) to the slots ``target`` (m,)."""
        for mask in self._masks.values():
            mask.index_copy_(0, target, mask.index_select(0, source))

    def view(self, live: int, width: int) -> Tensor | dict[str, Tensor]:
        """Masks (live, 1, 1, width) of the first slots, as the model's forward takes them."""
        views = {kind: mask[:live, None, None, :width] for kind, mask in self._masks.items()}
        return next(iter(views.values())) if len(views) == 1 else views


def causal_masks(
    windows: Mapping[str, int | None], rows: int, length: int, dtype: torch.dtype, device: torch.device
) -> Tensor | dict[str, Tensor]:
    """Masks (rows, 1, length, length) of a prefill from position 0; expanded, not copied."""
    query = torch.arange(length, device=device).unsqueeze(-1)
    key = torch.arange(length, device=device)
    masks = {}
    for kind, window in windows.items():
        visible = key <= query
        if window is not None:
            visible &= key > query - window
        mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
        masks[kind] = mask.masked_fill_(visible, 0.0).expand(rows, 1, length, length)
    return next(iter(masks.values())) if len(masks) == 1 else masks


def extension_masks(
    windows: Mapping[str, int | None], positions: Tensor, width: int, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Masks (n, 1, K, width) of tokens that follow those in a cache: each sees the columns up to its own.

    Args:
        windows: see ``attention_windows``.
        positions: (n, K) int64, the column of each token.
        width: columns that are read.
        dtype: the model's.
    """
    key, query = torch.arange(width, device=positions.device), positions.unsqueeze(-1)
    masks = {}
    for kind, window in windows.items():
        visible = key <= query
        if window is not None:
            visible &= key > query - window
        mask = torch.full(visible.shape, torch.finfo(dtype).min, dtype=dtype, device=positions.device)
        masks[kind] = mask.masked_fill_(visible, 0.0).unsqueeze(1)
    return next(iter(masks.values())) if len(masks) == 1 else masks


def packed_masks(
    windows: Mapping[str, int | None], episode: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Masks (R, 1, W, W) of packed rows: a token sees its own episode's tokens up to itself.

    Args:
        windows: see ``attention_windows``.
        episode: (R, W) int64, which episode a token is of; padding counts as one.
        dtype: the model's.
    """
    column = torch.arange(episode.shape[1], device=episode.device)
    query, key = column.unsqueeze(-1), column
    own = (episode.unsqueeze(-1) == episode.unsqueeze(-2)) & (key <= query)
    masks = {}
    for kind, window in windows.items():
        visible = own if window is None else own & (key > query - window)
        mask = torch.full(visible.shape, torch.finfo(dtype).min, dtype=dtype, device=episode.device)
        masks[kind] = mask.masked_fill_(visible, 0.0).unsqueeze(1)
    return next(iter(masks.values())) if len(masks) == 1 else masks
