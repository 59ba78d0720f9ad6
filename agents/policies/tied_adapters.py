"""Adapters that peft ties with ``ensure_weight_tying``: one parameter for embedding and LM head.

Low-rank adapters of an embedding (V, d) and of the LM head that shares its weight are one pair of matrices,
once transposed. Peft gives each layer a parameter of its own on the same memory. ``Module.to`` moves each of
them, so a change of device or dtype parts them, and an optimizer takes a step for each. Here the LM head
reads the embedding's parameters instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel

_SOURCES = {"lora_A": "lora_embedding_B", "lora_B": "lora_embedding_A"}
"""Attributes of an LM head's adapter, and of the embedding's adapter that holds the transposed matrix."""


class TransposedLinear(nn.Module):
    """A linear map without a bias whose weight is the transposed one of an embedding's adapter.

    Args:
        layer: the embedding with adapters (peft's LoRA layer).
        kind: "lora_embedding_A" (r, V) or "lora_embedding_B" (d, r).
        adapter: name of the adapter.
    """

    def __init__(self, layer: nn.Module, kind: str, adapter: str) -> None:
        super().__init__()
        # In a list, so that the embedding is no child: its parameters are named once.
        self._source = [layer]
        self._kind = kind
        self._adapter = adapter
        self.bias = None

    @property
    def weight(self) -> Tensor:
        """(out, in): a view on the embedding's parameter."""
        held: Tensor = getattr(self._source[0], self._kind)[self._adapter]
        return held.t()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return nn.functional.linear(x, self.weight)


def tie_adapters(peft: PeftModel) -> None:
    """Give the adapters that peft is asked to tie to the embedding's one parameter each, in place.

    Raises:
        ValueError: if they are not equal: a move of device or dtype parted them, or their start does.
    """
    base: Any = peft.get_base_model()
    for adapter, config in peft.peft_config.items():
        names = list(getattr(config, "target_modules_to_tie", None) or [])
        source: Any = base.get_input_embeddings() if names else None
        start = getattr(config, "init_lora_weights", None)
        for name, layer in base.named_modules():
            if not any(name == tied or name.endswith(f".{tied}") for tied in names):
                continue
            for own, other in _SOURCES.items():
                held = getattr(layer, own, {})
                if adapter not in held or isinstance(held[adapter], TransposedLinear):
                    continue
                tied = TransposedLinear(source, other, adapter)
                if not torch.equal(held[adapter].weight, tied.weight):
                    raise ValueError(
                        f"ensure_weight_tying asks for one adapter on the embedding and {name}, but their "
                        f"weights differ ({own} of adapter {adapter!r}): init_lora_weights "
                        f"{start!r} starts them apart, or a move to another device or "
                        "dtype parted them; give the model before it is moved, or leave ensure_weight_tying "
                        "out"
                    )
                held[adapter] = tied
        if source is not None:
            _forget_arguments(base)


def tied_weights(model: nn.Module) -> set[str]:
    """Names by which tied adapters' weights would be parameters of their own (older folders hold them)."""
    return {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, TransposedLinear)
    }


def act_as_one(model: Any, names: list[str]) -> bool:
    """Whether base weights that are one tensor have adapters that are one, too.

    Merged into each of them they give the same but for rounding, for the products are taken in another order.

    Args:
        model: the base model that holds the adapters.
        names: of the base weights, as parameters.
    """
    source = model.get_input_embeddings()
    sets = []
    for name in names:
        layer = model.get_submodule(name.removesuffix(".weight").removesuffix(".base_layer"))
        if len(getattr(layer, "lora_magnitude_vector", {})):
            return False
        held = dict(getattr(layer, "lora_embedding_A" if layer is source else "lora_A", {}))
        if layer is not source and not all(isinstance(each, TransposedLinear) for each in held.values()):
            return False
        sets.append(set(held) & set(getattr(layer, "active_adapters", ())))
    return bool(sets[0]) and all(each == sets[0] for each in sets)


def _forget_arguments(model: nn.Module) -> None:
    """Drop the tensors that peft's tied layers keep of their making: their graph can't be copied."""
    for layer in model.modules():
        arguments = getattr(layer, "kwargs", None)
        if isinstance(arguments, dict):
            arguments.pop("tied_adapter", None)
