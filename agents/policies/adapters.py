"""peft's adapters in a causal LM: putting them in, refusing what cannot be saved exactly, merging a copy.

A policy trains the adapters inside the base model. Whatever peft can put there has to survive saving, loading
and resuming, so what is not known to do so is refused when the policy is made.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textenv.agents.policies.tied_adapters import act_as_one
from textenv.utils.extras import import_extra

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

METHODS = frozenset(
    [
        "LORA",
        "IA3",
        "LOHA",
        "LOKR",
        "OFT",
        "BOFT",
        "HRA",
        "VERA",
        "FOURIERFT",
        "LN_TUNING",
        "TRAINABLE_TOKENS",
        "MISS",
        "SHIRA",
        "C3A",
        "RANDLORA",
        "WAVEFT",
        "DELORA",
        "ROAD",
    ]
)
"""Methods of peft (names of ``peft.PeftType``) that are known to survive saving, loading and resuming."""
LORA_OPTIONS_REFUSED = {
    "alora_invocation_tokens": "the adapter depends on tokens of the prompt and cannot be merged",
    "arrow_config": "routed adapters cannot be merged",
    "layer_replication": "replicated layers cannot be merged",
    "megatron_config": "Megatron's layers are not supported",
    "use_qalora": "adapters on quantized weights are not supported",
}
"""Options of ``peft.LoraConfig`` that cannot work here, and why."""
LORA_OPTIONS = frozenset(
    [
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "modules_to_save",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "megatron_core",
        "trainable_token_indices",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "use_dora",
        "runtime_config",
        "qalora_group_size",
        "lora_bias",
        "target_parameters",
        "ensure_weight_tying",
    ]
)
"""Options of ``peft.LoraConfig`` that are known to survive."""
FROM_DATA = {
    "eva": "peft.initialize_lora_eva_weights",
    "corda": "peft.tuners.lora.corda.preprocess_corda",
    "lora_ga": "peft.tuners.lora.loraga.preprocess_loraga",
}
"""Values of ``init_lora_weights`` that need data, and what of peft takes the data."""
STARTS = ("true", "false", "gaussian", "orthogonal", "pissa", "pissa_niter_", "olora", "loftq", *FROM_DATA)
"""Values of ``init_lora_weights`` that are known to survive, as lower-case text or the start of it."""
CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of the values of ``init_lora_weights`` that change the base weights."""

_WRAPPERS = ("base_layer", "original_module", "token_adapter")
"""Names by which peft's modules hold the module that they adapt."""


def add_lora(model: nn.Module, lora: bool | Mapping[str, Any] | Any, *, seed: int = 0) -> PeftModel:
    """Freeze the model and put trainable adapters into it (low-rank ones: Hu et al. 2021), in place.

    Args:
        model: a causal LM.
        lora: True for peft's defaults for the architecture, keyword arguments of ``peft.LoraConfig``, or a
            peft config.
        seed: seed of the adapters' random weights.

    Raises:
        ImportError: without peft.
        ValueError: if the model has adapters already, or for a config that is refused; see ``check_config``.
    """
    peft = import_extra("peft", extra="lora", what="lora=")
    if as_peft(model) is not None:
        raise ValueError("lora must be False for a model that has adapters already (a PeftModel), got both")
    if isinstance(lora, peft.PeftConfig):
        config = lora
    else:
        arguments: dict[str, Any] = dict(lora) if isinstance(lora, Mapping) else {}
        config = peft.LoraConfig(**{"task_type": "CAUSAL_LM", **arguments})
    check_config(config)
    start = getattr(config, "init_lora_weights", None)
    if start in FROM_DATA:
        raise ValueError(
            f"init_lora_weights {start!r} needs data, which lora= has not; make the adapters with peft "
            f"({FROM_DATA[start]}) and give the PeftModel as the model"
        )
    check_base(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted: Any = peft.get_peft_model(model, config)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"peft can't make these adapters here (init_lora_weights {start!r}): {error}"
            ) from error
        return adapted


def as_peft(model: nn.Module) -> PeftModel | None:
    """The model as a ``PeftModel``, or None if it is not one."""
    if sys.modules.get("peft") is None:  # then there is no PeftModel; importing peft takes seconds
        return None
    from peft import PeftModel

    return model if isinstance(model, PeftModel) else None


def check_config(config: PeftConfig) -> None:
    """Refuse what is not known to survive saving, loading and resuming.

    Raises:
        ValueError: naming the method, or the option of ``LoraConfig``, and the reason.
    """
    if config.is_prompt_learning:
        raise ValueError(f"lora must change weights, got the prompt-learning config {type(config).__name__}")
    method = str(getattr(config.peft_type, "value", config.peft_type))
    if method not in METHODS:
        raise ValueError(f"peft's method must be one of {', '.join(sorted(METHODS))}, got {method}")
    if method != "LORA":
        return
    start = str(config.init_lora_weights).lower()  # type: ignore[attr-defined]
    if start not in STARTS and not start.startswith("pissa_niter_"):
        known = ", ".join(STARTS)
        raise ValueError(f"lora's init_lora_weights must be one of {known}, got {start!r}")
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name in LORA_OPTIONS or value == default or not value:
            continue
        reason = LORA_OPTIONS_REFUSED.get(field.name, "it is not known to survive saving and loading")
        raise ValueError(f"lora's {field.name} must be left out, for {reason}; got {value!r}")


def check_base(model: nn.Module) -> None:
    """Refuse a base model that adapters cannot be trained on, or merged into, exactly.

    Raises:
        ValueError: for quantized weights.
    """
    quantized = getattr(model, "hf_quantizer", None)
    if quantized is not None or getattr(model, "is_quantized", False):
        raise ValueError(
            "adapters on quantized weights can't be merged exactly, so the base model must have plain "
            f"weights, got {type(quantized).__name__}; load it in bfloat16, or call model.dequantize() first"
        )


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters that the policy could not train, act with or save.

    Args:
        model: what a policy is made of, with or without adapters.

    Raises:
        ValueError: for adapter layers without a ``PeftModel`` around them; adapters that are refused
            (``check_config``), merged or switched off; or adapters on weights that the model's code ties.
    """
    layers = list(_adapter_layers(model))
    peft = as_peft(model)
    if peft is None:
        if layers:
            raise ValueError(
                f"the {type(model).__name__} has adapter layers ({layers[0][0]}) but is no PeftModel; use "
                "peft.get_peft_model(base, config) or PeftModel.from_pretrained(base, folder, "
                "is_trainable=True)"
            )
        return
    for config in peft.peft_config.values():
        check_config(config)
    check_base(peft.get_base_model())
    for name, layer in layers:
        if getattr(layer, "merged", False):
            raise ValueError(f"the adapters must not be merged, got {name} merged; call unmerge_adapter()")
        if getattr(layer, "disable_adapters", False):
            raise ValueError(f"the adapters are switched off ({name}); call enable_adapter_layers()")
        biased = any(dict(getattr(layer, "lora_bias", None) or {}).values())
        if biased and getattr(unwrapped(layer), "bias", None) is None:
            raise ValueError(
                f"lora_bias must be off where the layer has no bias to merge it into, got {name}"
            )
    if not any(layer.active_adapters for _, layer in layers):
        raise ValueError(f"no adapter is active, have {sorted(peft.peft_config)}; call set_adapter(name)")
    base: Any = peft.get_base_model()
    if not getattr(base.config, "tie_word_embeddings", False):
        for names in tied_names(base):
            touched = [name for name in names if name != plain_name(name)]
            if touched:
                raise ValueError(
                    f"adapters can't sit on weights that the model's code ties ({', '.join(names)}): merged "
                    "they would be one tensor again"
                )


def _adapter_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Peft's modules in a model, by name: tuner layers, and wrappers of whole modules or token rows."""
    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            yield name, module


def active_adapters(peft: PeftModel) -> list[str]:
    """Names of the adapters that are in use."""
    tuner: Any = peft.base_model
    return list(tuner.active_adapters)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers inside peft's modules, base weights included; each tensor by one name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, layer in _adapter_layers(model):
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            found.setdefault(id(tensor), (f"{prefix}.{name}", tensor))
    return dict(found.values())


def adapter_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters that are adapters' own, not the base model's."""
    own: set[int] = set()
    for _, layer in _adapter_layers(model):
        for kind in layer.adapter_layer_names:
            held = getattr(layer, kind, None)
            if isinstance(held, nn.Parameter):
                own.add(id(held))
            elif isinstance(held, nn.Module):
                own |= {id(parameter) for parameter in held.parameters()}
    return own


def plain_name(name: str) -> str:
    """A parameter's name in the model without adapters."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def unwrapped(module: nn.Module) -> nn.Module:
    """The module of the base model inside peft's wrappers."""
    inner = next((module._modules[name] for name in _WRAPPERS if module._modules.get(name) is not None), None)
    return module if inner is None else unwrapped(inner)


def tied_names(model: nn.Module) -> list[list[str]]:
    """Names of base parameters that are one tensor."""
    own = adapter_parameters(model)
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in own:
            groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def adapters_change_nothing(model: nn.Module) -> bool:
    """Whether only low-rank adapters train and each of them is still the identity (as they start)."""
    from peft.tuners.lora import LoraLayer

    if any(p.requires_grad and "lora_" not in name for name, p in model.named_parameters()):
        return False
    layers = [layer for _, layer in _adapter_layers(model)]
    return all(isinstance(layer, LoraLayer) and _is_identity(layer) for layer in layers)


def _is_identity(layer: Any) -> bool:
    """Whether the active adapters of a low-rank layer leave its output as it is."""
    if layer.merged or len(layer.lora_magnitude_vector):
        return False
    for name in layer.active_adapters:
        if name not in layer.scaling:
            continue
        bias = getattr(layer.lora_B[name], "bias", None) if name in layer.lora_B else None
        if bool(layer.get_delta_weight(name).any()) or (bias is not None and bool(bias.any())):
            return False
    return True


def base_is_start(peft: PeftModel) -> bool:
    """Whether the model without its adapters is the one that training began with."""
    starts = [str(getattr(config, "init_lora_weights", "")) for config in peft.peft_config.values()]
    return not any(start.lower().startswith(CHANGE_BASE) for start in starts)


def merged_copy(peft: PeftModel) -> nn.Module:
    """A copy of the model with its active adapters merged in; what has no adapters is shared, not copied.

    Tied weights that the adapters make different are untied in the copy, and its config says so.
    """
    live: Any = peft.get_base_model()
    inside = {id(tensor) for tensor in adapter_tensors(live).values()}
    shared: dict[int, Any] = {
        id(tensor): tensor for tensor in [*live.parameters(), *live.buffers()] if id(tensor) not in inside
    }
    groups = [names for names in tied_names(live) if any(name != plain_name(name) for name in names)]
    same = [act_as_one(live, names) for names in groups]
    adapted = copy.deepcopy(peft, shared)
    inner: Any = adapted.get_base_model()
    for name in (name for names in groups for name in names):
        parent, key = _place(inner, name)
        own = parent._parameters[key]
        assert own is not None
        parent._parameters[key] = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)
    tied = getattr(inner.config, "tie_word_embeddings", None)
    merged: Any = adapted.merge_and_unload()
    if tied is not None:
        merged.config.tie_word_embeddings = tied
    for names, one in zip(groups, same, strict=True):
        places = [_place(merged, plain_name(name)) for name in names]
        first, *others = [parent._parameters[key] for parent, key in places]
        assert first is not None
        if one or all(other is not None and torch.equal(first, other) for other in others):
            for parent, key in places:
                parent._parameters[key] = first
        else:
            merged.config.tie_word_embeddings = False
            merged.all_tied_weights_keys = {}
    return merged


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, key = name.rpartition(".")
    return model.get_submodule(parent), key
