"""The decoder's self-check: a few cached steps must give the same logits as the model's plain forward pass.

Support for a model is not decided by its name: an error in cache layout or masks shows in these numbers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from textenv.modeling.attention_masks import UnsupportedModelError
from textenv.modeling.model_checks import usable_positions
from textenv.modeling.split_model import eval_mode, logits_agree, model_vocab_size
from textenv.modeling.weight_version import watch_of

_SHORT_CHECK = 12
"""Tokens of the longest row if no attention window is shorter than the rows."""

_VERIFIED: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], str | None]] = (
    weakref.WeakKeyDictionary()
)


class HasLogits(Protocol):
    """The output of a decode step."""

    @property
    def logits(self) -> Tensor:
        """(n, W) next-token logits."""
        ...


class SupportsDecode(Protocol):
    """A decoder, as far as the check uses it; see ``textenv.generation.decoder.Decoder``."""

    @property
    def cache_updates(self) -> list[int]:
        """How often each layer has updated the cache."""
        ...

    def prefill(self, rows: Tensor, tokens: Tensor, lengths: Tensor) -> None:
        """Cache the tokens of rows."""
        ...

    def decode(self, rows: Tensor, tokens: Tensor) -> HasLogits:
        """Append one token to every row."""
        ...

    def extend(self, rows: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Append several tokens to rows."""
        ...

    def release(self, rows: Tensor) -> None:
        """Free the cache of rows."""
        ...


def verify_decoder(model: nn.Module, max_length: int, make: Callable[..., SupportsDecode]) -> None:
    """Compare a small decoder with the model's plain forward pass; the result is stored per model.

    The check extends and decodes two rows of different length, releases one (which moves the other) and
    refills it. Rows are longer than the smallest attention window that ``max_length`` reaches.

    Args:
        model: a transformers causal LM.
        max_length: columns of the caches that will be used.
        make: the decoder class, ``Decoder(model, slots, max_length, cuda_graphs=..., verify=...)``.

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
    """Tokens of the longest row: more than every attention window in the config below ``max_length``."""
    names = [name for name in config.to_dict() if "window" in name or "chunk" in name]
    sizes = [getattr(config, name, None) for name in names]
    biting = [
        size
        for size in sizes
        if isinstance(size, int) and not isinstance(size, bool) and 0 < size < max_length
    ]
    return min(max([_SHORT_CHECK, *(size + 4 for size in biting)]), max_length)


@torch.no_grad()
def _check(model: nn.Module, length: int, make: Callable[..., SupportsDecode]) -> str | None:
    """Run the comparison: None if it passes, else the reason."""
    device = next(model.parameters()).device
    sizes = (max(length, 6), 6, 3)
    decoder = make(model, 2, sizes[0], cuda_graphs=False, verify=False)
    ids = torch.arange(3 * sizes[0], device=device).view(3, -1) * 7919 % model_vocab_size(model, 2)
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
    decoder.prefill(torch.tensor([0, 1]), ids[:2], torch.tensor([start - 2, 2]))
    added = torch.stack([ids[0, start - 2 : start], ids[1, 2:4]])
    decoder.extend(torch.tensor([0, 1]), added, torch.tensor([2, 1]))
    right = agrees([0, 1], [start, 3], [0, 1])
    updates = decoder.cache_updates
    if any(count != 3 for count in updates):
        return f"its layers updated the cache {updates} times in three forward passes, expected 3 each"
    right &= agrees([1, 0], [4, start + 1], [1, 0])
    decoder.release(torch.tensor([0]))
    decoder.prefill(torch.tensor([0]), ids[2:], torch.tensor([1]))
    right &= agrees([2, 1], [1, 5], [0, 1])
    return None if right else "its cached logits differ from the plain forward's"
