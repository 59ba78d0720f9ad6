"""Prefill and decode over the KV cache: one token per step for every live row.

Logits equal those of the model's plain forward pass. Rows are the caller's (environment rows); slots are rows
of the cache. Live slots are always a contiguous prefix, so the cost of a step depends on the number and the
longest of the live rows only. Shape
letters: n rows or live slots, P prompt tokens, W logits of the model, d width of the LM head's input.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from textenv.generation.cuda_graphs import DecodeGraphs
from textenv.generation.kv_cache import Extension, SlotCache
from textenv.generation.prefill_cache import PrefillCache, UpcomingPrompts
from textenv.generation.self_check import verify_decoder
from textenv.generation.slots import SlotTable
from textenv.modeling.attention_masks import (
    SlotMasks,
    UnsupportedModelError,
    attention_windows,
    causal_masks,
    extension_masks,
)
from textenv.modeling.split_model import catch_head_input, eval_mode, output_head, split_model
from textenv.utils.devices import to_device

_PREFILL_TOKENS = 16_384
"""Largest padded prefill batch, in tokens; bounds its memory."""


class DecodeOutput(NamedTuple):
    """Result of one decode step, in the order of the given rows. Valid until the next step."""

    logits: Tensor
    """(n, W) next-token logits of the model."""
    hidden: Tensor
    """(n, d) input of the LM head."""


class Decoder:
    """Caches keys and values of up to ``slots`` rows and appends one token per step to all live ones.

    The model runs in eval mode without gradients; its training flags are restored after every call. Call
    ``invalidate`` when the weights change.

    Grouped-query attention with a mask: transformers 5.23 packs the queries of a single token, so keys are
    not expanded; 5.0 expands them at every step (same result, slower).

    Args:
        model: a transformers causal LM.
        slots: number of rows, 0..slots-1.
        max_length: longest row in tokens.
        cuda_graphs: replay decode steps as CUDA graphs; None = if the model is on CUDA. A replay calls no
            hooks: graphs are not used with forward hooks on the model itself; pass False for hooks inside it.
        verify: compare a few steps with the plain forward pass (once per model and kind of check).

    Raises:
        UnsupportedModelError: if the model's layers need another kind of state, or the self-check fails.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16))
        >>> decoder = Decoder(model, slots=2, max_length=16)
        >>> decoder.prefill(torch.tensor([0, 1]), torch.tensor([[3, 4], [5, 0]]), torch.tensor([2, 1]))
        >>> decoder.decode(torch.tensor([0, 1]), torch.tensor([6, 7])).logits.shape
        torch.Size([2, 11])
    """

    def __init__(
        self,
        model: nn.Module,
        slots: int,
        max_length: int,
        *,
        cuda_graphs: bool | None = None,
        verify: bool = True,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots must be >= 1, got {slots}")
        if max_length < 1:
            raise ValueError(f"max_length must be >= 1, got {max_length}")
        config = getattr(model, "config", None)
        if config is None or not hasattr(config, "get_text_config"):
            raise UnsupportedModelError(f"{type(model).__name__} has no transformers config")
        text = config.get_text_config()
        head = output_head(model)
        if head is None:
            raise UnsupportedModelError(f"{type(model).__name__} has no LM head (get_output_embeddings)")
        self.model = model
        self.slots = slots
        self.max_length = max_length
        self.windows = attention_windows(config)
        attention = getattr(text, "_attn_implementation", None)
        if attention not in (None, "eager", "sdpa"):
            raise UnsupportedModelError(
                f"{attention} attention does not support one mask per row; load the model with "
                "attn_implementation='sdpa' (or 'eager')"
            )
        self._head, self._split = head, split_model(model)
        self._modules = list(model.modules())
        parameter = next(model.parameters())
        self.device = parameter.device
        self._dtype: torch.dtype = getattr(model, "dtype", parameter.dtype)
        bodies = [model] if self._split.trunk is None else [model, self._split.trunk]
        self._take_positions = {body for body in bodies if _takes_positions(body)}
        self._layers = int(text.num_hidden_layers)
        self._bucket = 128 if self.device.type == "cuda" else 16
        # Columns of the buffers: CUDA's masked attention copies masks whose width is not a multiple of 16.
        self.capacity = -(-max_length // 64) * 64 if self.device.type == "cuda" else max_length
        self._graphs: DecodeGraphs | None = None
        if cuda_graphs or (cuda_graphs is None and self.device.type == "cuda"):
            if self.device.type != "cuda":
                raise ValueError(f"cuda_graphs needs a model on CUDA, got one on {self.device}")
            self._graphs = DecodeGraphs(model, self.compute, slots=slots, capacity=self.capacity)
        if verify:
            verify_decoder(model, self.capacity, Decoder)
        # A CPU reads contiguous memory almost twice as fast, so there the buffers are only as wide as the
        # longest row needs; CUDA graphs need constant addresses.
        self._elastic = self.device.type == "cpu"
        columns = min(self._bucket, self.capacity) if self._elastic else self.capacity
        self._cache = SlotCache(self._layers, slots, columns)
        self._masks = SlotMasks(self.windows, slots, self.capacity, self._dtype, self.device)
        self._all_slots = torch.arange(slots, device=self.device)
        self._positions = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self._lengths = np.zeros(slots, dtype=np.int64)
        self._prefilled = PrefillCache(self._prefill_ahead)
        self._table = SlotTable(slots)

    # -- rows and slots --------------------------------------------------------------------------------------

    @property
    def rows(self) -> Tensor:
        """(n,) int64 on the CPU: the live rows in slot order, for which ``decode`` is cheapest."""
        return self._table.rows

    @property
    def cache_updates(self) -> list[int]:
        """Number of cache updates of each layer so far."""
        return list(self._cache.target.updates)

    @property
    def live(self) -> np.ndarray:
        """(slots,) bool: whether each row is live."""
        return self._table.live

    def release(self, rows: Tensor) -> None:
        """Free the slots of those rows (n,) int64 that are live; the last live slots move into the gaps."""
        before = self._table.count
        moves = self._table.release(self._table.checked(rows))
        if moves is None:
            return
        source, target = moves
        if len(source):
            self._lengths[target] = self._lengths[source]
            source_, target_ = self._to_device(source), self._to_device(target)
            self._positions[target_] = self._positions[source_]
            self._cache.copy(source_, target_, int(self._lengths[source].max()))
            self._masks.copy(source_, target_)
        self._lengths[self._table.count : before] = 0
        # A CUDA graph of a larger bucket may still compute a free slot: keep its position inside the buffers.
        self._positions[self._table.count : before] = 0

    def invalidate(self) -> None:
        """Free all slots; call it when the model's weights have changed."""
        self._table.clear()
        self._lengths[:] = 0
        self._positions.zero_()
        self._modules = list(self.model.modules())
        self._prefilled.clear()
        if self._graphs is not None:
            self._graphs.refresh()

    def _to_device(self, indices: np.ndarray) -> Tensor:
        return to_device(indices, self.device)

    @property
    def _trunk(self) -> nn.Module | None:
        """The backbone, if the logits are just the LM head of its output; else None."""
        return self._split.direct if self._split.linear else None

    # -- computing -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(
        self, rows: Tensor, tokens: Tensor, lengths: Tensor, *, upcoming: UpcomingPrompts | None = None
    ) -> None:
        """Cache these tokens for these rows, from position 0, without running the LM head.

        Args:
            rows: (n,) int64, distinct.
            tokens: (n, P) int64, right-padded with any valid id.
            lengths: (n,) int64 tokens of each row, 0..P.
            upcoming: returns the next prompts; they are computed in the same batch (equal ones once), and a
                later prefill of one is a copy. One large prefill costs far less than many of one row.

        Raises:
            ValueError: if a length is outside 0..P, or leaves no column of ``max_length`` to decode.
        """
        indices = self._table.checked(rows)
        ends = lengths.cpu().numpy().astype(np.int64)
        most = min(tokens.shape[1], self.max_length - 1)
        if len(ends) and not (ends.min() >= 0 and ends.max() <= most):
            raise ValueError(
                f"lengths must lie in [0, {most}] (tokens has {tokens.shape[1]} columns, max_length is "
                f"{self.max_length}), got {ends.tolist()}"
            )
        slots = self._table.claim(indices)
        slots_ = self._to_device(slots)
        self._lengths[slots] = ends
        self._positions[slots_] = ends_ = self._to_device(ends)
        self._masks.restart(slots_, ends_)
        self._reserve(int(self._lengths[: self._table.count].max(initial=0)))
        if upcoming is None:
            self._fill(self._cache, slots_, tokens, ends)
        elif ends.any():
            filled = ends.nonzero()[0]
            source = self._prefilled.find(tokens[to_device(filled, tokens.device)], ends[filled], upcoming)
            self._cache.copy_from(
                self._prefilled.cache, source, slots_[self._to_device(filled)], int(ends.max())
            )

    def _fill(self, cache: SlotCache, slots: Tensor, tokens: Tensor, ends: np.ndarray) -> None:
        """Run the backbone over right-padded rows, the longest first, and store their keys and values."""
        order = np.argsort(-ends, kind="stable")
        order = order[ends[order] > 0]
        with eval_mode(self._modules):
            while len(order):
                longest = int(ends[order[0]])
                batch, order = np.split(order, [max(1, _PREFILL_TOKENS // longest)])
                chosen = self._to_device(batch)
                padded = tokens[:, :longest].to(self.device)[chosen]
                masks = causal_masks(self.windows, len(batch), longest, self._dtype, self.device)
                positions = torch.arange(longest, device=self.device).expand(len(batch), longest)
                cache.prefill(slots[chosen])
                with nullcontext() if self._trunk is not None else catch_head_input(self._head, skip=True):
                    self._forward(padded, masks, positions, cache)

    @torch.no_grad()
    def extend(self, rows: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Append several tokens to live rows, without running the LM head.

        Args:
            rows: (n,) int64, distinct live rows.
            tokens: (n, K) int64, right-padded with any valid id.
            counts: (n,) int64 tokens of each row, 0..K.

        Raises:
            ValueError: if a row is not live, or a count is outside 0..K or leaves no column of
                ``max_length`` to decode.
        """
        indices, added = self._table.checked(rows), counts.cpu().numpy().astype(np.int64)
        slots = self._table.of(indices)
        if (slots < 0).any():
            raise ValueError(f"rows must be live, got {indices[slots < 0].tolist()}")
        starts = self._lengths[slots]
        if len(added) and not (
            added.min() >= 0 and added.max() <= tokens.shape[1] and (starts + added).max() < self.max_length
        ):
            raise ValueError(
                f"counts must lie in [0, {tokens.shape[1]}], and rows of {starts.tolist()} tokens must stay "
                f"shorter than max_length={self.max_length}, got {added.tolist()}"
            )
        self._lengths[slots] = starts + added
        self._reserve(int(self._lengths[: self._table.count].max(initial=0)))
        order = np.argsort(-added, kind="stable")
        order = order[added[order] > 0]
        with eval_mode(self._modules):
            while len(order):
                longest = int(added[order[0]])
                width = self._width(int((starts + added)[order].max()))
                batch, order = np.split(order, [max(1, _PREFILL_TOKENS // (longest + width // 8))])
                chosen = self._to_device(batch)
                self._append(slots[batch], tokens[:, :longest].to(self.device)[chosen], added[batch], width)
        slots_, ends_ = self._to_device(slots), self._to_device(starts + added)
        self._positions[slots_] = ends_
        self._masks.restart(slots_, ends_)

    def _append(self, slots: np.ndarray, tokens: Tensor, added: np.ndarray, width: int) -> None:
        """One forward pass over tokens (n, K) that follow those in ``slots`` (n,)."""
        ends = self._lengths[slots]
        row = np.repeat(np.arange(len(slots)), added)
        place = np.arange(len(row)) - np.repeat(np.cumsum(added) - added, added)
        where = Extension(*map(self._to_device, (row, place, np.repeat(ends - added, added) + place)))
        slots_, starts = self._to_device(slots), self._to_device(ends - added)
        columns = torch.arange(tokens.shape[1], device=self.device)
        # Padding sees its row's last token at most: it is not stored, and its output is not used.
        positions = torch.minimum(starts.unsqueeze(-1) + columns, self._to_device(ends - 1).unsqueeze(-1))
        masks = extension_masks(self.windows, positions, width, self._dtype)
        self._cache.extend(slots_, where, width)
        with nullcontext() if self._trunk is not None else catch_head_input(self._head, skip=True):
            self._forward(tokens, masks, positions, self._cache)

    @torch.no_grad()
    def decode(self, rows: Tensor, tokens: Tensor, acting: Tensor | None = None) -> DecodeOutput:
        """Append one token to every live row.

        Args:
            rows: (n,) int64, all live rows in any order.
            tokens: (n,) int64, the token of each row.
            acting: (n,) bool on the CPU; the other rows keep their tokens, and their output is undefined.
                None = all.

        Raises:
            ValueError: if ``rows`` is not exactly the live rows, or a row already has ``max_length`` tokens.
        """
        if rows is self._table.rows:
            return self._step(tokens.to(self.device, non_blocking=True), acting)
        indices = self._table.checked(rows)
        slots = self._table.of(indices)
        if len(indices) != self._table.count or (slots < 0).any():
            raise ValueError(
                f"rows must be the live rows {sorted(self.rows.tolist())}, got {sorted(indices.tolist())}"
            )
        slots_ = self._to_device(slots)
        in_slots = torch.empty_like(slots_).scatter_(0, slots_, tokens.to(self.device))
        moves = (
            None if acting is None else torch.empty_like(acting).scatter_(0, torch.from_numpy(slots), acting)
        )
        logits, hidden = self._step(in_slots, moves)
        return DecodeOutput(logits[slots_], hidden[slots_])

    def _step(self, tokens: Tensor, acting: Tensor | None = None) -> DecodeOutput:
        """Append tokens (n,), in slot order, to the live slots that are ``acting`` (n,)."""
        live = self._table.count
        lengths = self._lengths[:live]
        longest = int(lengths.max()) if live else 0
        if longest >= self.max_length:
            raise ValueError(f"a row already has max_length={self.max_length} tokens")
        width = self._reserve(longest + 1)
        with eval_mode(self._modules):
            graphs = None if self._split.hooked else self._graphs
            replayed = None if graphs is None else graphs.step(tokens, live, width)
            output = self.compute(tokens, live, width) if replayed is None else DecodeOutput(*replayed)
        if acting is None:
            self._positions[:live] += 1
            lengths += 1
        else:
            self._positions[:live] += acting.to(self.device, non_blocking=True)
            lengths += acting.numpy()
        return output

    def _reserve(self, length: int) -> int:
        """Make room for rows of ``length`` tokens; returns the number of columns that attention must read."""
        width = self._width(length)
        if self._elastic and (width > self._cache.columns or 2 * width <= self._cache.columns):
            self._cache.resize(width, self._table.count)
        return width

    def _width(self, length: int) -> int:
        """Columns to read for rows of ``length`` tokens."""
        return min(-(-max(length, 1) // self._bucket) * self._bucket, self.capacity)

    def compute(self, tokens: Tensor, live: int, width: int) -> DecodeOutput:
        """The tensor operations of one step over the first ``live`` slots; running it twice changes nothing.

        Args:
            tokens: (live,) int64 on the model's device, in slot order.
            live: number of slots.
            width: columns that attention reads; more than the longest of them has.
        """
        slots, positions = self._all_slots[:live], self._positions[:live]
        self._masks.advance(slots, positions)
        self._cache.decode(slots, positions, width)
        step = tokens.unsqueeze(1), self._masks.view(live, width), positions.unsqueeze(1), self._cache
        if self._trunk is not None:
            hidden = self._forward(*step).last_hidden_state[:, -1]
            return DecodeOutput(self._head(hidden), hidden)
        with catch_head_input(self._head) as caught:
            logits = self._forward(*step).logits
        if caught.hidden is None:
            raise UnsupportedModelError("the forward pass does not call the LM head")
        return DecodeOutput(logits[:, -1], caught.hidden[:, -1])

    def _forward(
        self, input_ids: Tensor, masks: Tensor | dict[str, Tensor], positions: Tensor, cache: SlotCache
    ) -> Any:
        trunk = self._trunk
        body = self.model if trunk is None else trunk
        extra = {"position_ids": positions} if body in self._take_positions else {}
        return body(input_ids=input_ids, attention_mask=masks, past_key_values=cache, use_cache=True, **extra)

    def _prefill_ahead(self, tokens: Tensor, ends: np.ndarray) -> SlotCache:
        """Keys and values of prompts (m, P) in a new cache."""
        cache = SlotCache(self._layers, len(ends), tokens.shape[1])
        self._fill(cache, torch.arange(len(ends), device=self.device), tokens, ends)
        return cache


def _takes_positions(module: nn.Module) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()
    return any(p.name == "position_ids" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
