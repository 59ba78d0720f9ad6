"""Adapters on disk: beside the merged model, all that is needed to train on exactly; and an adapter's folder.

adapter/                      peft's own files, for peft: they belong on the model that training began with
adapted_layers.safetensors    every tensor of the adapted layers: base weights and adapters
base_layers.safetensors       in the older form: base weights alone, adapters as in adapter/
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from textenv.agents.policies.adapters import (
    active_adapters,
    adapter_tensors,
    check_base,
    check_config,
    plain_name,
    tied_names,
)
from textenv.agents.policies.tied_adapters import tie_adapters, tied_weights
from textenv.modeling.saved_runs import model_folder
from textenv.tasks.adapter_source import base_of, find_adapter
from textenv.utils.extras import import_extra

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

LAYERS = "adapted_layers.safetensors"
OLDER = "base_layers.safetensors"
ADAPTER = "adapter"


def save_adapters(peft: PeftModel, folder: Path) -> dict[str, Any]:
    """Write the adapters and the layers that they sit on, unmerged.

    Returns:
        JSON values that ``load_adapters`` and ``restore_adapters`` need besides.
    """
    peft.save_pretrained(str(folder / ADAPTER))
    base: Any = peft.get_base_model()
    tensors = {name: tensor.detach() for name, tensor in adapter_tensors(base).items()}
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / LAYERS)
    return {
        "names": list(peft.peft_config),
        "active": active_adapters(peft),
        "tied": bool(getattr(base.config, "tie_word_embeddings", False)),
        "trainable": [name for name, parameter in base.named_parameters() if parameter.requires_grad],
    }


def load_adapters(model: Any, folder: Path, saved: Mapping[str, Any] | None) -> PeftModel:
    """Restore the base weights and the adapters of a merged model, as ``save_adapters`` wrote them.

    Args:
        model: the merged model; it is changed.
        folder: folder of the adapters.
        saved: what ``save_adapters`` returned; None for the older form.
    """
    peft = import_extra("peft", extra="lora", what=f"{folder} holds adapters and")

    if saved is None:
        return _load_older(model, folder)
    if saved["tied"] and not model.config.tie_word_embeddings:
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    wrapped: Any = None
    for name in saved["names"]:
        config = peft.PeftConfig.from_pretrained(str(folder / ADAPTER / ("" if name == "default" else name)))
        config.inference_mode = False
        wrapped = _injected(model, config, name, wrapped)
    if len(saved["active"]) == 1:
        wrapped.set_adapter(saved["active"][0])
    else:
        wrapped.base_model.set_adapter(saved["active"])
    tie_adapters(wrapped)
    trainable = set(saved["trainable"])
    for name, parameter in wrapped.get_base_model().named_parameters():
        parameter.requires_grad_(name in trainable)
    _put(wrapped.get_base_model(), load_file(folder / LAYERS), folder)
    return wrapped


def restore_adapters(own: PeftModel, plain: Any, folder: Path, saved: Mapping[str, Any] | None) -> None:
    """Give a model with adapters the weights in a folder; it was made as the saved one had been.

    Args:
        own: the model.
        plain: the merged model in the folder; it may be changed.
        folder: folder of the adapters.
        saved: what ``save_adapters`` returned; None for the older form.

    Raises:
        ValueError: if the adapters are not those that were saved.
    """
    base = own.get_base_model()
    if saved is None:
        state = _load_older(plain, folder).get_base_model().state_dict()
        # The older form leaves out what a trained copy of a tied module stands for; its twin is the same.
        for names in tied_names(base):
            known = next((name for name in names if name == plain_name(name)), names[0])
            state.update(dict.fromkeys(names, state[known]))
        base.load_state_dict(state)
        return
    tied = tied_weights(base)
    saved = {**saved, "trainable": [name for name in saved["trainable"] if name not in tied]}
    made = {
        "names": list(own.peft_config),
        "active": active_adapters(own),
        "trainable": [name for name, parameter in base.named_parameters() if parameter.requires_grad],
    }
    for key, value in made.items():
        if value != saved[key]:
            differ = sorted(set(value) ^ set(saved[key]))[:5] or value
            raise ValueError(
                f"the policy must be made as the saved one in {folder}, {key} adapters differ: {differ}"
            )
    inside = {id(tensor) for tensor in adapter_tensors(base).values()}
    state = plain.state_dict()
    with torch.no_grad():
        for name, tensor in _tensors(base, persistent=True).items():
            if id(tensor) not in inside:
                if name not in state or state[name].shape != tensor.shape:
                    raise ValueError(f"the policy must be made as the saved one in {folder}: {name} differs")
                tensor.copy_(state[name])
    _put(base, load_file(folder / LAYERS), folder)


def _injected(model: nn.Module, config: PeftConfig, name: str, wrapped: PeftModel | None) -> PeftModel:
    """Put adapters in without touching the base weights, whatever ``init_lora_weights`` of the config is."""
    import peft

    start = getattr(config, "init_lora_weights", None)
    if start is not None:
        config.init_lora_weights = False  # type: ignore[attr-defined]
    if wrapped is None:
        made: Any = peft.get_peft_model(model, config, adapter_name=name)
    else:
        made = wrapped
        made.add_adapter(name, config)
    if start is not None:
        made.peft_config[name].init_lora_weights = start
    return made


def _put(base: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    own, saved = adapter_tensors(base), set(tensors) - tied_weights(base)
    if set(own) != saved:
        wrong = sorted(set(own) ^ saved)
        raise ValueError(f"the policy must have the adapters saved in {folder}, differ {wrong[:5]}")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                expected, found = tuple(tensors[name].shape), tuple(tensor.shape)
                raise ValueError(f"{name} must have the shape {expected} saved in {folder}, got {found}")
            tensor.copy_(tensors[name])


def _tensors(model: nn.Module, *, persistent: bool) -> dict[str, Tensor]:
    """Parameters and buffers by name; ``persistent``: only those that a state dict has."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = model.state_dict(keep_vars=True) if persistent else named
    return {name: tensor for name, tensor in named.items() if name in kept}


def _load_older(model: Any, folder: Path) -> PeftModel:
    """Adapters in the form that keeps base weights by their plain names, and one adapter in peft's files."""
    import peft

    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in load_file(folder / OLDER).items():
            parameters[name].copy_(tensor)
    source = str(folder / ADAPTER)
    config = peft.PeftConfig.from_pretrained(source)
    config.inference_mode = False
    wrapped = _injected(model, config, "default", None)
    peft.set_peft_model_state_dict(wrapped, peft.load_peft_weights(source, device="cpu"))
    return wrapped


def load_adapter_folder(
    source: str | os.PathLike[str], base: Any, config: Mapping[str, Any], *, seed: int
) -> PeftModel:
    """The adapter in a folder or on the hub, on its base model, ready to be trained on.

    Args:
        source: folder or hub id of the adapter.
        base: the loaded base model; it is changed.
        config: what ``find_adapter`` returned.
        seed: seed of the random weights that peft draws before it loads the saved ones.

    Raises:
        ImportError: without peft.
        ValueError: if adapters of this kind are refused, or can't be put on the base model again exactly.
    """
    peft = import_extra("peft", extra="lora", what=f"{source} is an adapter and")
    made = peft.PeftConfig.from_pretrained(os.fspath(source))
    check_config(made)
    check_base(base)
    start = str(getattr(made, "init_lora_weights", "")).lower()
    if start.startswith(("pissa_niter", "corda", "lora_ga", "loftq")):
        raise ValueError(
            f"the adapter in {source} began with init_lora_weights {start!r}, which changed the base weights "
            "in a way that can't be repeated; save it with path_initial_model_for_weight_conversion (see "
            "peft), or give the saved policy's folder"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.PeftModel.from_pretrained(base, os.fspath(source), is_trainable=True)


def tokenizer_source(source: str) -> str:
    """Folder of a model's tokenizer: an adapter without tokenizer files uses that of its base model."""
    source = os.fspath(model_folder(source)) if os.path.isdir(source) else source
    folder = Path(source)
    if not folder.is_dir() or (folder / "tokenizer_config.json").is_file():
        return source
    config = find_adapter(source)
    return source if config is None else base_of(source, config)
