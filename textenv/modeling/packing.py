"""Packing: several short episodes share one row, so that less padding is computed.

Rows have a block-diagonal causal mask, and positions restart at 0 in every episode. So an episode has the
same hidden states as in a row of its own. Shape letters: B episodes, L tokens, R packed rows, W their width,
d hidden width.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textenv.modeling.attention_masks import UnsupportedModelError, attention_windows, packed_masks
from textenv.modeling.split_model import SplitModel, eval_mode, logits_agree, model_vocab_size, text_config
from textenv.modeling.weight_version import watch_of

_WIDENINGS = (1, 2, 4)
"""Widths of packed rows that are tried, as multiples of the longest episode."""
_ATTENTION = 256
"""Row width at which attention costs as much per token as the rest of the layer."""


class Packing(NamedTuple):
    """The place of each episode in the packed rows."""

    rows: Tensor
    """(B,) int64: packed row of the episode."""
    starts: Tensor
    """(B,) int64: column of its first token."""
    height: int
    """R."""
    width: int
    """W."""

    def place(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Map (row, column) of tokens in the (B, L) batch to those in the packed rows; all (n,) int64."""
        return self.rows[rows], self.starts[rows] + columns


def pack(lengths: Tensor, *, max_width: int | None = None) -> Packing:
    """Assign episodes to rows by first-fit decreasing: longest first, each to the first row with room.

    Several row widths are tried, and the one with the lowest estimated cost is used.

    Args:
        lengths: (B,) int64, tokens of each episode, B >= 1.
        max_width: maximum width of a row, unless one episode is longer. None = four times the longest
            episode.

    Example:
        >>> found = pack(torch.tensor([5, 2, 3]), max_width=5)
        >>> found.rows.tolist(), found.starts.tolist(), found.height, found.width
        ([0, 1, 1], [0, 3, 0], 2, 5)
    """
    sizes = lengths.tolist()
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    longest = max(sizes[order[0]], 1)
    limit = max(longest, max_width or longest * _WIDENINGS[-1])
    best: tuple[float, list[int], list[int], int, int] | None = None
    for width in dict.fromkeys(min(longest * times, limit) for times in _WIDENINGS):
        rows, starts, used = [0] * len(sizes), [0] * len(sizes), list[int]()
        for i in order:
            row = next((r for r, filled in enumerate(used) if filled + sizes[i] <= width), len(used))
            if row == len(used):
                used.append(0)
            rows[i], starts[i] = row, used[row]
            used[row] += sizes[i]
        width = max(used)
        cost = len(used) * width * (1.0 + width / _ATTENTION)
        if best is None or cost < best[0]:
            best = cost, rows, starts, len(used), width
    assert best is not None
    device = lengths.device
    return Packing(torch.tensor(best[1], device=device), torch.tensor(best[2], device=device), *best[3:])


def packed_states(
    split: SplitModel,
    ids: Tensor,
    mask: Tensor,
    packing: Packing | None = None,
    *,
    read: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Packing]:
    """Run the backbone on packed rows.

    Args:
        split: backbone and LM head of a causal LM.
        ids: (B, L) int64, right-padded.
        mask: (B, L), nonzero at tokens.
        packing: the place of each episode; None = computed by ``pack``.
        read: rows and columns of ``ids``, both (n,) int64, whose states will be read; None = all.

    Returns:
        Inputs of the LM head (R, W, d), or logits (R, W, vocabulary) if the model cannot be split; and the
        place of each episode in them.
    """
    model, device = split.model, ids.device
    if packing is None:
        packing = pack(mask.sum(-1), max_width=getattr(text_config(model), "max_position_embeddings", None))
    row, column = mask.nonzero(as_tuple=True)
    place = packing.place(row, column)
    size = (packing.height, packing.width)
    packed = torch.zeros(size, dtype=torch.int64, device=device).index_put(place, ids[row, column])
    positions = torch.zeros_like(packed).index_put(place, column)
    episode = torch.full_like(packed, -1).index_put(place, row)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    masks = packed_masks(attention_windows(text_config(model)), episode, dtype)
    if split.output is None:
        return split.logits(packed, masks, positions), packing
    flat = None
    if read is not None:
        rows, columns = packing.place(*read)
        flat = rows * packing.width + columns
    return split.backbone(packed, masks, positions, read=flat), packing


_CHECKED: weakref.WeakKeyDictionary[nn.Module, tuple[int, str | None]] = weakref.WeakKeyDictionary()
"""Model -> (``ModelWatch.modules`` at the check, the reason why packing fails or None)."""


def check_packing(model: nn.Module) -> None:
    """Check that an episode has the same logits in a packed row as alone; once per model.

    Raises:
        UnsupportedModelError: if not, for example if the model has a recurrent state, or computes positions
            or masks internally.
    """
    modules = watch_of(model).modules()
    known = _CHECKED.get(model)
    if known is None or known[0] != modules:
        try:
            reason = _disagreement(model)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
        _CHECKED[model] = known = modules, reason
    if known[1] is not None:
        raise UnsupportedModelError(f"{type(model).__name__} cannot be trained with packing=True: {known[1]}")


@torch.no_grad()
def _disagreement(model: nn.Module) -> str | None:
    """Compare two episodes packed in a row with each alone: the reason why they differ, or None."""
    device = next(model.parameters()).device
    config: Any = text_config(model)
    window = getattr(config, "sliding_window", None) or 0
    positions = getattr(config, "max_position_embeddings", None) or 64
    # Two tokens longer than the attention window, if it is not too large, so that the window has an effect.
    length = min(window + 2 if window <= 1024 else 0, positions // 2) or min(6, positions // 2)
    sizes = (length, max(length - 1, 1))
    ids = torch.arange(2 * length, device=device).view(2, length) * 7919 % model_vocab_size(model, 2)
    mask = torch.arange(length, device=device) < torch.tensor(sizes, device=device).unsqueeze(-1)
    rows, starts = torch.zeros(2, dtype=torch.int64), torch.tensor([0, length])
    both = Packing(rows.to(device), starts.to(device), 1, sum(sizes))
    plain = SplitModel(model, None, False)
    with eval_mode(list(model.modules())):
        alone = [plain.logits(ids[i : i + 1, :n], torch.ones(1, n).to(ids)) for i, n in enumerate(sizes)]
        packed, _ = packed_states(plain, ids, mask, both)
    if not logits_agree(packed, torch.cat(alone, dim=1)):
        return "the logits of an episode depend on the other episodes in its row"
    return None
