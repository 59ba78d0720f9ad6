"""Additive attention masks for a slot cache, a prefill, an extension and packed rows.

The config says which masks a model needs. Shape letters: S slots, n live slots, L columns, K tokens of an
extension, R packed rows, W their width.
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
    """The masks that a model needs: layer type -> window in tokens (None = unlimited).

    With one entry all layers use the same mask. With several the model takes a dict of masks.

    Args:
        config: a transformers config.

    Raises:
        UnsupportedModelError: if a layer type is neither full nor sliding attention.

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
    """One additive mask (S, L) per layer type: 0 in visible columns, else the lowest finite float.

    Masks are additive, in the model's dtype, because a boolean mask is silently wrong with eager attention.
    Each decode step writes one entry per slot (two with a window).

    Args:
        windows: see ``attention_windows``.
        slots: S.
        max_length: L.
        dtype: the model's.
        device: the model's.
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
        # A tensor, because a Python number would be copied to the device at every step.
        self._visible = torch.zeros((), dtype=dtype, device=device)

    def restart(self, slots: Tensor, lengths: Tensor) -> None:
        """Make exactly the first ``lengths`` (n,) columns of the slots (n,) visible, within the window."""
        ends = lengths.unsqueeze(-1)
        for kind, window in self.windows.items():
            visible = self._columns < ends
            if window is not None:
                visible &= self._columns > ends - 1 - window
            mask = self._masks[kind]
            fresh = torch.full(visible.shape, self.hidden, dtype=mask.dtype, device=mask.device)
            mask.index_copy_(0, slots, fresh.masked_fill_(visible, 0.0))

    def advance(self, slots: Tensor, positions: Tensor) -> None:
        """Unmask the column that each slot writes next, and mask the column that leaves its window.

        Args:
            slots: (n,) int64.
            positions: (n,) int64, the column that each slot writes.
        """
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
        """Masks (live, 1, 1, width) of the first slots, as arguments of the model's forward pass."""
        views = {kind: mask[:live, None, None, :width] for kind, mask in self._masks.items()}
        return next(iter(views.values())) if len(views) == 1 else views


def causal_masks(
    windows: Mapping[str, int | None], rows: int, length: int, dtype: torch.dtype, device: torch.device
) -> Tensor | dict[str, Tensor]:
    """Causal masks (rows, 1, length, length) of a prefill from position 0; expanded views, not copies."""
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
    """Masks (n, 1, K, width) of tokens appended to a cache: each attends to the columns up to its own.

    Args:
        windows: see ``attention_windows``.
        positions: (n, K) int64, the column of each token.
        width: number of cache columns that attention reads.
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
    """Masks (R, 1, W, W) of packed rows: a token attends to its episode's tokens up to itself.

    Args:
        windows: see ``attention_windows``.
        episode: (R, W) int64, the episode of each token; padding counts as one episode.
        dtype: the model's.
    """
    column = torch.arange(episode.shape[1], device=episode.device)
    query, key = column.unsqueeze(-1), column
    causal = (episode.unsqueeze(-1) == episode.unsqueeze(-2)) & (key <= query)
    masks = {}
    for kind, window in windows.items():
        visible = causal if window is None else causal & (key > query - window)
        mask = torch.full(visible.shape, torch.finfo(dtype).min, dtype=dtype, device=episode.device)
        masks[kind] = mask.masked_fill_(visible, 0.0).unsqueeze(1)
    return next(iter(masks.values())) if len(masks) == 1 else masks
