"""A policy on disk: a folder that plain transformers loads, the rest beside it in safetensors and JSON.

    config.json, model.safetensors, ...   the causal LM, adapters merged in; tokenizer files
    policy.json                           how it acts, which heads and adapters it has
    heads.safetensors                     critics and other heads
    adapter/, base_layers.safetensors     with adapters: they themselves, and the layers that they sit on,
    unmerged reference.safetensors                 by option: weights of the reference that are not the
    policy's

No pickle is written or read.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from textenv.agents.json_files import read_object
from textenv.agents.policies.heads import ValueHead
from textenv.agents.policies.model_setup import dropout_restored, load_causal_lm
from textenv.pretrained import load_pretrained

if TYPE_CHECKING:
    from peft import PeftModel

    from textenv.agents.policies.language_policy import LanguagePolicy

    Policy = TypeVar("Policy", bound=LanguagePolicy)

FORMAT = 1
FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "class": str,
    "settings": dict,
    "heads": list,
    "adapters": bool,
}
"""Fields of ``policy.json`` and their types."""


def save_policy(policy: LanguagePolicy, path: str | os.PathLike[str], *, reference: bool = False) -> None:
    """Write the policy into the folder ``path``; see ``LanguagePolicy.save``."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with dropout_restored(policy.dropout):
        if policy.peft is None:
            _save_model(policy.model, folder)
        else:
            _save_adapters(policy.peft, folder)
    if policy.tokenizer is not None:
        policy.tokenizer.save_pretrained(folder)
    heads = head_tensors(policy)
    if heads:
        save_file(_plain(heads), folder / "heads.safetensors")
    kept = policy.reference() if reference else None
    if kept is not None and (tensors := kept.state_dict()):
        save_file(_plain(tensors), folder / "reference.safetensors")
    settings = {
        "format": FORMAT,
        "class": type(policy).__name__,
        "settings": settings_of(policy),
        "heads": sorted(heads),
        "adapters": policy.peft is not None,
        "reference": None if kept is None else kept.mode,
    }
    (folder / "policy.json").write_text(json.dumps(settings, indent=2) + "\n")


def load_policy(cls: type[Policy], path: str | os.PathLike[str], **options: Any) -> Policy:
    """Rebuild a policy from ``save_policy``'s folder; ``options`` come before what was saved.

    Raises:
        FileNotFoundError: if there is no policy in the folder.
        ValueError: if it was written by a newer version, or its heads do not fit.
    """
    folder = Path(path)
    if not (folder / "policy.json").is_file():
        raise FileNotFoundError(f"{folder} holds no policy.json; LanguagePolicy(folder) takes a plain model")
    saved = read_object(folder / "policy.json", FIELDS)
    if saved["format"] > FORMAT:
        raise ValueError(f"{folder} has format {saved['format']}, expected at most {FORMAT}; update textenv")
    settings = {**saved["settings"], **options}
    dtype = settings.pop("dtype")
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    settings.pop("trust_remote_code", None)  # the user's to say, never a file's
    trust = bool(options.get("trust_remote_code", False))
    if "tokenizer" not in settings and (folder / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        settings["tokenizer"] = load_pretrained(
            AutoTokenizer, folder, what="tokenizer", trust_remote_code=trust
        )
    model = load_causal_lm(folder, dtype=dtype, trust_remote_code=trust)
    if saved["adapters"]:
        model = _with_adapters(model, folder)
    policy = cls(model, **settings)
    _load_beside(policy, folder, saved)
    return policy


def restore_policy(policy: LanguagePolicy, path: str | os.PathLike[str]) -> None:
    """Give a policy the weights that ``save_policy`` wrote; it was made as the saved one had been.

    Raises:
        ValueError: if it has other weights, heads, adapters or another reference than were saved.
    """
    folder = Path(path)
    saved = read_object(folder / "policy.json", FIELDS)
    for name, own in (("adapters", policy.peft is not None), ("class", type(policy).__name__)):
        if saved[name] != own:
            raise ValueError(f"the policy must be made as the saved one, {name} {saved[name]!r}; got {own!r}")
    # The model's own class, so no code that came with the files is ever needed.
    kind: Any = type(policy.model)
    model = kind.from_pretrained(folder, dtype=next(policy.model.parameters()).dtype, local_files_only=True)
    if saved["adapters"]:
        model = _with_adapters(model, folder).get_base_model()
    try:
        policy.model.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise ValueError(f"the policy must be made as the saved one in {folder}: {error}") from error
    _load_beside(policy, folder, saved)
    policy.invalidate()


def _load_beside(policy: LanguagePolicy, folder: Path, saved: dict[str, Any]) -> None:
    """Heads and reference, which lie beside the model."""
    if saved["heads"]:
        load_heads(policy, folder)
    if saved["reference"] is not None:
        reference = policy.reference(saved["reference"])
        if (folder / "reference.safetensors").is_file():
            reference.load_state_dict(load_file(folder / "reference.safetensors"))


def settings_of(policy: LanguagePolicy) -> dict[str, Any]:
    """Constructor arguments as JSON values, without the model and a value head that was given as a module."""
    shared = "shared" if isinstance(policy.value_head, ValueHead) else False
    decoding = policy.decoding
    return {
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": decoding.top_p,
        "greedy": decoding.greedy,
        "value_head": "separate" if policy.critic is not None else shared,
        "head_kind": policy.head_kind,
        "train_layers": policy.train_layers,
        "gradient_checkpointing": policy.gradient_checkpointing,
        "autocast": policy.autocast,
        "dtype": str(next(policy.model.parameters()).dtype).removeprefix("torch."),
        "max_tokens": policy.max_tokens,
        "seed": policy.seed,
        **policy.extra_settings(),
    }


def head_tensors(policy: LanguagePolicy) -> dict[str, Tensor]:
    """Parameters and buffers of the policy that are not the language model's, by name."""
    own = {id(tensor) for tensor in [*policy.model.parameters(), *policy.model.buffers()]}
    named = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    saved = policy.state_dict(keep_vars=True)
    return {
        name: tensor.detach()
        for name, tensor in named.items()
        if name in saved and not name.startswith("model.") and id(tensor) not in own
    }


def load_heads(policy: LanguagePolicy, path: str | os.PathLike[str]) -> None:
    """Give the policy's heads the weights saved in the folder ``path``.

    Raises:
        ValueError: if the policy has other heads than were saved; make it with the same ones first.
    """
    saved, own = load_file(Path(path) / "heads.safetensors"), head_tensors(policy)
    if set(saved) != set(own):
        missing, extra = sorted(set(saved) - set(own)), sorted(set(own) - set(saved))
        raise ValueError(
            f"the policy must have the heads saved in {os.fspath(path)}; it lacks {missing[:5]} and has "
            f"{extra[:5]} besides (make it with the same value_head=...)"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
    policy.invalidate()


# -- the language model --------------------------------------------------------------------------------------


def _save_model(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


def _save_adapters(peft: PeftModel, folder: Path) -> None:
    """The merged model for anyone to load; adapters and the layers that they sit on to train on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    _save_model(copy.deepcopy(peft).merge_and_unload(), folder)
    peft.save_pretrained(str(folder / "adapter"))
    base: dict[str, Tensor] = {}
    for name, module in peft.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer):
            for key, tensor in module.get_base_layer().named_parameters():
                base[f"{name}.{key}"] = tensor
    save_file(_plain(base), folder / "base_layers.safetensors")


def _with_adapters(model: Any, folder: Path) -> PeftModel:
    from peft import PeftModel

    base = load_file(folder / "base_layers.safetensors")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in base.items():
            parameters[name].copy_(tensor)
    return PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors with memory of their own, as safetensors wants them."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
