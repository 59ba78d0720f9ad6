"""Backbone and LM head of any causal LM, independent of its architecture.

A forward pre-hook on the module of ``get_output_embeddings`` reads the head's input (and can shorten it to
skip the head's work). The model's own forward pass runs, so soft caps, scales and adapters around the head
stay exact. Shape letters: B rows, L tokens, A selected positions, d width of the head's input, W logits.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textenv.modeling.selected_positions import (
    is_worthwhile,
    position_wise_modules,
    runs_under_checkpointing,
    selected_positions,
)
from textenv.modeling.weight_version import watch_of

CompiledTrunk = Callable[[Tensor, Any, Tensor | None], Tensor]
"""(ids, mask, positions) -> (B, L, d)."""

TRUNKS: weakref.WeakKeyDictionary[nn.Module, tuple[nn.Module, CompiledTrunk]] = weakref.WeakKeyDictionary()
"""Model -> its backbone at compile time, and the compiled function; see ``compile_trunk``."""


@contextmanager
def eval_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Within the block these modules are in eval mode; afterwards each one's mode is restored."""
    training = [module for module in modules if module.training]
    _set_training(training, False)
    try:
        yield
    finally:
        _set_training(training, True)


def _set_training(modules: list[nn.Module], mode: bool) -> None:
    """Set the flag without the slow ``nn.Module.__setattr__``, because decoding does it at every token."""
    for module in modules:
        if "training" in module.__dict__:
            module.__dict__["training"] = mode
        else:  # a scripted module stores it elsewhere
            module.training = mode


class HeadInput:
    """The LM head's input in one forward pass."""

    def __init__(self) -> None:
        self.hidden: Tensor | None = None
        self.calls = 0


@contextmanager
def catch_head_input(
    head: nn.Module, *, skip: bool = False, replacement: Tensor | None = None
) -> Iterator[HeadInput]:
    """Within the block, store the LM head's input.

    Args:
        head: the LM head.
        skip: run the head at one position only, so that it costs almost nothing.
        replacement: (..., d), run the head on this instead.
    """
    caught = HeadInput()

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        caught.calls += 1
        caught.hidden = args[0]
        if replacement is not None:
            return (replacement, *args[1:])
        if skip:
            return (args[0][:1, :1], *args[1:])
        return None

    handle = head.register_forward_pre_hook(hook)
    try:
        yield caught
    finally:
        handle.remove()


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that computes the logits, or None if the model has no ``get_output_embeddings``."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter is not None else None
    return head if isinstance(head, nn.Module) else None


@dataclass(frozen=True)
class SplitModel:
    """Backbone and LM head of one causal LM; get it from ``split_model``."""

    model: nn.Module
    output: nn.Module | None
    """The module that computes the logits. None: the model cannot be split, and only ``logits`` works."""
    linear: bool
    """Whether the logits are exactly ``output``, an ordinary ``nn.Linear``, applied to the backbone's
    output."""
    trunk: nn.Module | None = None
    """The module below the LM head, if its ``last_hidden_state`` is exactly the backbone's output."""
    position_wise: tuple[str, ...] = ()
    """Names of the last block's modules that can be skipped at positions that are not read."""

    @property
    def hooked(self) -> bool:
        """Whether the whole model has forward hooks at the moment."""
        return bool(self.model._forward_hooks or self.model._forward_pre_hooks)

    @property
    def direct(self) -> nn.Module | None:
        """``trunk``, if it may run instead of the model; hooks on the model need its own forward pass."""
        return None if self.hooked else self.trunk

    def backbone(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        *,
        read: Tensor | None = None,
    ) -> Tensor:
        """Input of the LM head at every position: (B, L) -> (B, L, d).

        Args:
            input_ids: (B, L) int64.
            attention_mask: as in the model's own forward pass: (B, L), or additive (B, 1, L, L), also by
                layer type.
            position_ids: (B, L) int64; None = 0, 1, 2, ...
            read: (n,) int64 positions in 0..B L - 1 whose result is needed; the others are undefined. None =
                all.

        Raises:
            ValueError: if the model cannot be split.
        """
        if self.output is None:
            raise ValueError(f"{type(self.model).__name__} has no LM head module whose input could be read")
        direct = self.direct
        if direct is not None and (compiled := TRUNKS.get(self.model)) is not None and compiled[0] is direct:
            return compiled[1](input_ids, attention_mask, position_ids)
        with self._reading(read, input_ids.shape):
            if direct is not None:
                return self._run(direct, input_ids, attention_mask, position_ids).last_hidden_state
            with catch_head_input(self.output, skip=True) as caught:
                self._run(self.model, input_ids, attention_mask, position_ids)
        assert caught.hidden is not None
        return caught.hidden

    def _reading(self, read: Tensor | None, size: torch.Size) -> AbstractContextManager[None]:
        """Skip the last block's work at positions that are not read, where that is faster and possible."""
        if read is None or not self.position_wise or not is_worthwhile(len(read), (size[0], size[1])):
            return nullcontext()
        if runs_under_checkpointing(self.model, self.position_wise):
            return nullcontext()
        modules = [self.model.get_submodule(name) for name in self.position_wise]
        return selected_positions(modules, read, (size[0], size[1]))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of selected positions, with the model's operations after its LM head: (A, d) -> (A, W).

        Raises:
            ValueError: if the model cannot be split.
        """
        if self.output is None:
            raise ValueError(f"{type(self.model).__name__} has no separate LM head module")
        if self.linear:
            return self.output(hidden)
        # The model's own forward pass contains what follows the head; it runs on one dummy token.
        dummy = torch.zeros(1, 1, dtype=torch.int64, device=hidden.device)
        with catch_head_input(self.output, replacement=hidden.unsqueeze(0)):
            logits = self.model(
                input_ids=dummy, attention_mask=torch.ones_like(dummy), use_cache=False
            ).logits
        return logits[0]

    def logits(
        self, input_ids: Tensor, attention_mask: Any = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Logits of every position, arguments as in ``backbone``: (B, L) -> (B, L, W)."""
        return self._run(self.model, input_ids, attention_mask, position_ids).logits

    @staticmethod
    def _run(module: nn.Module, input_ids: Tensor, attention_mask: Any, position_ids: Tensor | None) -> Any:
        # Not every model accepts position_ids, so they are passed only if given.
        positions = {} if position_ids is None else {"position_ids": position_ids}
        return module(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **positions)


class _Found(NamedTuple):
    """Result of the check of a model; it holds no reference to modules."""

    works: bool = False
    linear: bool = False
    trunk: bool = False
    """Whether ``base_model`` computes exactly the head's input."""
    position_wise: tuple[str, ...] = ()


_SPLITS: weakref.WeakKeyDictionary[nn.Module, tuple[int, _Found]] = weakref.WeakKeyDictionary()


def split_model(model: nn.Module) -> SplitModel:
    """Split a causal LM into backbone and head; checked against its plain forward pass once per model.

    If the parts do not give the same logits, ``output`` of the result is None and callers use
    ``SplitModel.logits``.

    Args:
        model: a transformers causal LM, possibly with adapters.
    """
    output = output_head(model)
    if output is None:
        return SplitModel(model, None, False)
    modules = watch_of(model).modules()
    known = _SPLITS.get(model)
    if known is None or known[0] != modules:
        known = (modules, _check(model, output))
        _SPLITS[model] = known
    found = known[1]
    if not found.works:
        return SplitModel(model, None, False)
    trunk = _base_model(model) if found.trunk else None
    return SplitModel(model, output, found.linear, trunk, found.position_wise)


def _base_model(model: nn.Module) -> nn.Module | None:
    """``base_model`` of transformers, if it is not the model itself."""
    base = getattr(model, "base_model", None)
    return base if isinstance(base, nn.Module) and base is not model else None


@torch.no_grad()
def _check(model: nn.Module, output: nn.Module) -> _Found:
    """Compare the split model with its plain forward pass on a few tokens."""
    device = next(model.parameters()).device
    ids = torch.arange(6, device=device).view(2, 3) % model_vocab_size(model, 6)
    ones = torch.ones_like(ids)
    with eval_mode(list(model.modules())):
        with catch_head_input(output) as caught:
            logits = model(input_ids=ids, attention_mask=ones, use_cache=False).logits
        if caught.calls != 1 or caught.hidden is None or caught.hidden.shape[:2] != ids.shape:
            return _Found()
        hidden = caught.hidden
        linear = type(output) is nn.Linear and torch.equal(output(hidden), logits)
        general = SplitModel(model, output, linear)
        try:
            again = general.head(general.backbone(ids, ones).flatten(0, 1)).unflatten(0, ids.shape)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return _Found()
        if not logits_agree(again, logits):
            return _Found()
        trunk = _base_model(model)
        if trunk is not None:
            try:
                states = SplitModel._run(trunk, ids, ones, None).last_hidden_state
            except (RuntimeError, ValueError, TypeError, AttributeError):
                trunk = None
            else:
                trunk = trunk if torch.equal(states, hidden) else None
        read = torch.tensor([1, 5], device=device)
        config = text_config(model)
        names = position_wise_modules(model, int(getattr(config, "num_hidden_layers", 0)))
        sparing = replace(general, trunk=trunk, position_wise=names)
        try:
            some = sparing.backbone(ids, ones, read=read).flatten(0, 1)[read]
        except (RuntimeError, ValueError, TypeError, AttributeError):
            names = ()
        else:
            names = names if logits_agree(some, hidden.flatten(0, 1)[read]) else ()
    return _Found(True, linear, trunk is not None, names)


def logits_agree(actual: Tensor, expected: Tensor) -> bool:
    """Whether logits agree up to rounding, relative to their spread.

    Models with float64 weights may compute a softmax or a norm in float32, so their tolerance allows for
    that.
    """
    if actual.shape != expected.shape or not bool(torch.isfinite(actual).all()):
        return False
    tolerance = {torch.float64: 1e-5, torch.float32: 2e-3}.get(expected.dtype, 0.2)
    spread = expected.double().std(unbiased=False).clamp_min(1e-30)
    return bool((actual.double() - expected.double()).abs().max() <= tolerance * spread)


def text_config(model: nn.Module) -> Any:
    """The config of the language model inside ``model``; None for other modules."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def model_vocab_size(model: nn.Module, default: int) -> int:
    """Vocabulary size in a model's config, or ``default``."""
    return int(getattr(text_config(model), "vocab_size", default))
