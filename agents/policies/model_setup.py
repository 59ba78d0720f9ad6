"""Making a causal LM ready for training: loading, dropout off, frozen layers.

Nothing here knows an architecture by name: blocks are found by the config's count, and what comes after them
by watching a forward pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.activations import ACT2FN

from textenv.agents.policies.adapter_files import load_adapter_folder
from textenv.modeling.model_checks import check_decoder
from textenv.modeling.pretrained import make_pretrained
from textenv.modeling.whole_weights import load_decoder
from textenv.tasks.adapter_source import base_of, find_adapter
from textenv.tasks.fetch_model import resolve_model
from textenv.utils.checks import check_at_least

_DROPOUT_NAMES = ("drop", "jitter")


def load_causal_lm(
    source: str | os.PathLike[str] | PretrainedConfig | nn.Module,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> nn.Module:
    """A transformers causal LM from a hub id, a folder, a config (random weights), or itself.

    Args:
        source: what to make it of; a module is taken as it is. A folder or hub id of an adapter gives a
            ``PeftModel`` on the base model that it names, and the adapter trains.
        dtype: of the weights. float32 by default, whatever the files hold: steps of a fine-tuning learning
            rate vanish in 16-bit weights.
        seed: of random weights; the global random state is left alone.
        trust_remote_code: whether code that comes with the files may run.

    Raises:
        TypeError: if ``source`` is none of these.
        ValueError: if the files lack weights, the config is an encoder-decoder's, or an adapter is refused or
            can't be put on its base model; see ``textenv.agents.policies.adapters``.
        FileNotFoundError: if it names a model that ``textenv.tasks.fetch`` fetches, and it was not fetched.
    """
    if isinstance(source, nn.Module):
        return source
    if isinstance(source, PretrainedConfig):
        check_decoder(source, "the model", type(source).__name__)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make_pretrained(AutoModelForCausalLM, source, trust_remote_code=trust_remote_code)
        return model.to(dtype)
    if isinstance(source, str | os.PathLike):
        name = resolve_model(source)
        adapter = find_adapter(name)
        base = load_decoder(
            name if adapter is None else base_of(name, adapter),
            what="model",
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
        return base if adapter is None else load_adapter_folder(name, base, adapter, seed=seed)
    raise TypeError(
        f"model must be a hub id, a folder, a transformers config or a module, got {type(source).__name__}"
    )


DropoutSettings = list[tuple[PretrainedConfig, str, float]]
"""(config, attribute, its probability) as they were before they were set to 0."""


def disable_dropout(model: nn.Module) -> DropoutSettings:
    """Set every dropout (and router jitter) probability to 0: modules, float attributes, and config entries.

    In train mode the model is then deterministic, so that the probability ratio is exactly 1 before the first
    step.

    Returns:
        The config entries that were not 0, for ``dropout_restored``.
    """
    changed: DropoutSettings = []
    configs: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        if "Dropout" in type(module).__name__ and isinstance(vars(module).get("p"), float):
            vars(module)["p"] = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, PretrainedConfig):
                configs[id(value)] = value
            elif _is_probability(name, value):
                setattr(module, name, 0.0)
            elif isinstance(value, dict):  # adapters keep one for each of their names
                value.update({key: 0.0 for key, held in value.items() if _is_probability(name, held)})
    pending = list(configs.values())
    while pending:
        config = pending.pop()
        for name, value in list(vars(config).items()):
            if isinstance(value, PretrainedConfig) and id(value) not in configs:
                configs[id(value)] = value
                pending.append(value)
            elif _is_probability(name, value):
                changed.append((config, name, value))
                setattr(config, name, 0.0)
    return changed


@contextmanager
def dropout_restored(settings: DropoutSettings) -> Iterator[None]:
    """Restore the config entries within the block, so that a saved config contains them."""
    for config, name, value in settings:
        setattr(config, name, value)
    try:
        yield
    finally:
        for config, name, _ in settings:
            setattr(config, name, 0.0)


def _is_probability(name: str, value: object) -> bool:
    return isinstance(value, float) and value > 0.0 and any(part in name.lower() for part in _DROPOUT_NAMES)


def checkpoint_activations(model: Any) -> None:
    """Let the model (in train mode) recompute activations in the backward pass instead of storing them."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:  # transformers before 5.17
        model.gradient_checkpointing_enable({"use_reentrant": False})


def fuse_activations(model: nn.Module) -> None:
    """Put torch's fused kernel in place of transformers' tanh-GELUs that are written out in seven operations.

    The function is the same up to rounding; with GPT-2 a training step is about a tenth faster on a CPU.
    """
    written_out = tuple(type(ACT2FN[name]) for name in ("gelu_new", "gelu_fast"))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) in written_out:
                setattr(module, name, ACT2FN["gelu_pytorch_tanh"])


def transformer_blocks(model: nn.Module) -> nn.ModuleList:
    """The stack of the model's blocks, bottom first: the outermost ModuleList as long as its config says.

    Raises:
        ValueError: if there is none.
    """
    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {count} blocks")


def parameters_after_blocks(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of what runs after the last block and not before (final norm, untied LM head)."""
    blocks = transformer_blocks(model)
    inside = {id(module) for module in blocks.modules()}
    early: set[int] = set()
    late: dict[int, nn.Parameter] = {}
    passed = [False]

    def note(module: nn.Module, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            if passed[0]:
                late[id(parameter)] = parameter
            else:
                early.add(id(parameter))

    def finish(*_: Any) -> None:
        passed[0] = True

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if id(m) not in inside]
    handles.append(blocks[-1].register_forward_hook(finish))
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [parameter for key, parameter in late.items() if key not in early]


def train_top_layers(model: nn.Module, count: int) -> None:
    """Freeze all but the top ``count`` blocks and what comes after them (not a tied LM head).

    Raises:
        ValueError: if the model does not have that many blocks.
    """
    blocks = transformer_blocks(model)
    check_at_least("train_layers", count, 1)
    if not 1 <= count <= len(blocks):
        raise ValueError(f"train_layers must lie in [1, {len(blocks)}], got {count}")
    after = parameters_after_blocks(model)
    model.requires_grad_(False)
    for block in list(blocks)[-count:]:
        block.requires_grad_(True)
    for parameter in after:
        parameter.requires_grad_(True)


def frozen_blocks(model: nn.Module) -> int:
    """Number of bottom blocks that training cannot change: they and all layers before them are frozen."""
    if all(parameter.requires_grad for parameter in model.parameters()):
        return 0
    blocks = transformer_blocks(model)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    count = 0
    for block in blocks:
        if any(id(p) in trainable for p in block.parameters()):
            break
        count += 1
    movable = {id(p) for block in list(blocks)[count:] for p in block.parameters()}
    if not trainable <= movable:
        movable |= {id(p) for p in parameters_after_blocks(model)}
    return count if trainable <= movable else 0
