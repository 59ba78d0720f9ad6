"""The decoder's self-check: a few cached steps must give the logits of the model's plain forward.

Nothing is decided by a model's name: whatever a cache layout or a mask gets wrong shows in numbers here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from textenv.modeling.attention_masks import UnsupportedModelError
from textenv.modeling.model_checks import usable_positions
from textenv.modeling.split_model import eval_mode, logits_agree, vocabulary_size
from textenv.modeling.weight_version import watch_of

if TYPE_CHECKING:
    from textenv.generation.decoder import Decoder

_SHORT_CHECK = 12
"""Tokens of the longest row where no attention window bites."""

_VERIFIED: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], str | None]] = (
    weakref.WeakKeyDictionary()
)


def verify_decoder(model: nn.Module, max_length: int, make: Callable[..., Decoder]) -> None:
    """Compare a small decoder with the model's plain forward; the verdict is remembered per model.

    Two rows of different length, a release with compaction and a refill, beyond the smallest attention window
    that ``max_length`` reaches.

    Args:
        model: a transformers causal LM.
        max_length: columns of the caches to come.
        make: the decoder's class.

    Raises:
        UnsupportedModelError: if logits differ or the model refuses the cache.
    """
    parameter = next(model.parameters())
    config: Any = model.config
    longest = min(max_length, usable_positions(model) or max_length)
    length = _check_length(config.get_text_config(), longest)
    attention = getattr(config, "_attn_implementation", None)
    key = (length, parameter.dtype, parameter.device, attention, watch_of(model).modules())
    verdicts = _VERIFIED.setdefault(model, {})
    if key not in verdicts:
        try:
            verdicts[key] = _check(model, length, make)
        except torch.OutOfMemoryError:
            raise
        except (
            RuntimeError,
            ValueError,
            TypeError,
            AttributeError,
            KeyError,
            IndexError,
            AssertionError,
        ) as error:
            verdicts[key] = f"{type(error).__name__}: {error}"
    reason = verdicts[key]
    if reason is not None:
        raise UnsupportedModelError(reason)


def _check_length(config: Any, max_length: int) -> int:
    """Tokens of the self-check's longest row: beyond every window-like number of the config that can bite."""
    names = [name for name in config.to_dict() if "window" in name or "chunk" in name]
    sizes = [getattr(config, name, None) for name in names]
    biting = [
        size
        for size in sizes
        if isinstance(size, int) and not isinstance(size, bool) and 0 < size < max_length
    ]
    return min(max([_SHORT_CHECK, *(size + 4 for size in biting)]), max_length)


@torch.no_grad()
def _check(model: nn.Module, length: int, make: Callable[..., Decoder]) -> str | None:
    """Run the comparison; None if all is well, else what is wrong."""
    device = next(model.parameters()).device
    sizes = (max(length, 6), 6, 3)
    decoder = make(model, 2, sizes[0], cuda_graphs=False, verify=False)
    ids = torch.arange(3 * sizes[0], device=device).view(3, -1) * 7919 % vocabulary_size(model, 2)
    with eval_mode(list(model.modules())):
        expected = [
            model(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False).logits[0]
            for text in (ids[i : i + 1, :n] for i, n in enumerate(sizes))
        ]

    def agrees(texts: list[int], columns: list[int], rows: list[int]) -> bool:
        logits = decoder.decode(torch.tensor(rows), ids[texts, columns]).logits
        right = torch.stack([expected[i][column] for i, column in zip(texts, columns, strict=True)])
        return logits_agree(logits, right)

    start = sizes[0] - 2
    decoder.prefill(torch.tensor([0, 1]), ids[:2], torch.tensor([start, 3]))
    right = agrees([0, 1], [start, 3], [0, 1])
    updates = decoder.cache_updates
    if any(count != 2 for count in updates):
        return f"its layers updated the cache {updates} times in two forward passes, expected 2 each"
    right &= agrees([1, 0], [4, start + 1], [1, 0])
    decoder.release(torch.tensor([0]))
    decoder.prefill(torch.tensor([0]), ids[2:], torch.tensor([1]))
    right &= agrees([2, 1], [1, 5], [0, 1])
    return None if right else "its cached logits differ from the plain forward's"
