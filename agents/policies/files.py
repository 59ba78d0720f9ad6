"""A policy on disk: a folder that plain transformers loads, the rest beside it in safetensors and JSON.

    config.json, model.safetensors, ...   the causal LM, adapters merged in; tokenizer files
    policy.json                           how it acts, which heads and adapters it has
    heads.safetensors                     critics and other heads
    adapter/, adapted_layers.safetensors  with adapters: they themselves, and the layers that they sit on
    reference.safetensors                 by option: weights of the reference that are not the policy's

No pickle is written or read.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from textenv.agents.policies.adapter_files import load_adapters, restore_adapters, save_adapters
from textenv.agents.policies.model_setup import dropout_restored, load_causal_lm
from textenv.agents.policies.outputs import ReferencePolicy
from textenv.agents.policies.saved_model import save_ends, save_model
from textenv.agents.policies.teacher_forced import TeacherForced
from textenv.agents.policies.tokenizer_files import save_tokenizer
from textenv.modeling.pretrained import load_pretrained
from textenv.modeling.saved_runs import model_folder
from textenv.utils.files import updated_folder
from textenv.utils.json_files import read_object

Policy = TypeVar("Policy", bound=TeacherForced)

FORMAT = 2
FILES = (
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "heads.safetensors",
    "reference.safetensors",
    "adapter",
    "adapted_layers.safetensors",
    "base_layers.safetensors",
)
"""Files of an earlier save that a later one may not overwrite; they are removed."""
FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "class": str,
    "settings": dict,
    "heads": list,
    "adapters": bool,
}
"""Fields of ``policy.json`` and their types."""


def save_policy(
    path: str | os.PathLike[str],
    *,
    kind: str,
    model: nn.Module,
    peft: Any,
    tokenizer: Any,
    settings: Mapping[str, Any],
    heads: Mapping[str, Tensor],
    dropout: Any,
    reference: ReferencePolicy | None = None,
) -> None:
    """Write the parts of a policy into the folder ``path``; see ``LanguagePolicy.save``.

    Args:
        path: the folder.
        kind: name of the policy's class.
        model: the causal LM.
        peft: the adapters' view of it, None without adapters.
        tokenizer: saved with the model; None saves none.
        settings: constructor arguments, as JSON values.
        heads: tensors that are not the language model's, by name.
        dropout: the model's dropout probabilities, as ``disable_dropout`` gave them.
        reference: the reference policy whose own weights are saved, None saves none.
    """
    with updated_folder(path, stale=FILES, last="policy.json") as folder, dropout_restored(dropout):
        save_model(model, peft, folder)
        adapters = None if peft is None else save_adapters(peft, folder)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
            save_ends(model, tokenizer, folder)
        if heads:
            save_file(_plain(heads), folder / "heads.safetensors")
        if reference is not None and (tensors := reference.state_dict()):
            save_file(_plain(tensors), folder / "reference.safetensors")
        written = {
            "format": FORMAT,
            "class": kind,
            "settings": dict(settings),
            "heads": sorted(heads),
            "adapters": adapters is not None,
            "adapter_state": adapters,
            "reference": None if reference is None else reference.mode,
        }
        (folder / "policy.json").write_text(json.dumps(written, indent=2) + "\n")


def load_policy(cls: type[Policy], path: str | os.PathLike[str], **options: Any) -> Policy:
    """Rebuild a policy from ``save_policy``'s folder; ``options`` override the saved ones.

    Raises:
        FileNotFoundError: if there is no policy in the folder.
        ValueError: if it was written by a newer version or by a class with settings of its own, or its heads
            do not fit.
    """
    folder = model_folder(path)
    if not (folder / "policy.json").is_file():
        raise FileNotFoundError(f"{folder} holds no policy.json; LanguagePolicy(folder) takes a plain model")
    saved = read_object(folder / "policy.json", FIELDS)
    if saved["format"] > FORMAT:
        raise ValueError(f"{folder} has format {saved['format']}, expected at most {FORMAT}; update textenv")
    _check_class(cls, folder, saved)
    settings = {**saved["settings"], **options}
    dtype = settings.pop("dtype")
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    settings.pop("trust_remote_code", None)  # only the user may allow it, never a file
    trust = bool(options.get("trust_remote_code", False))
    if "tokenizer" not in settings and (folder / "tokenizer_config.json").is_file():
        from transformers import AutoTokenizer

        settings["tokenizer"] = load_pretrained(
            AutoTokenizer, folder, what="tokenizer", trust_remote_code=trust
        )
    model = load_causal_lm(folder, dtype=dtype, trust_remote_code=trust)
    if saved["adapters"]:
        model = load_adapters(model, folder, saved.get("adapter_state"))
    policy = cls(model, **settings)
    _load_beside(policy, folder, saved)
    return policy


def _check_class(cls: type[TeacherForced], folder: Path, saved: Mapping[str, Any]) -> None:
    """Refuse a class without the settings that the saved policy's class added."""
    takes = inspect.signature(cls.__init__).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values()):
        return
    if unknown := sorted(set(saved["settings"]) - set(takes)):
        raise ValueError(
            f"{folder} holds a policy of the class {saved['class']} with the settings {unknown}, which "
            f"{cls.__name__} does not have; load it with {saved['class']}.load, or as a plain model with "
            f"{cls.__name__}(folder)"
        )


def restore_policy(policy: TeacherForced, path: str | os.PathLike[str]) -> None:
    """Load the weights of ``save_policy`` into a policy that was made like the saved one.

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
    try:
        if policy.peft is not None:
            restore_adapters(policy.peft, model, folder, saved.get("adapter_state"))
        else:
            policy.model.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise ValueError(f"the policy must be made as the saved one in {folder}: {error}") from error
    _load_beside(policy, folder, saved)
    policy.invalidate()


def _load_beside(policy: TeacherForced, folder: Path, saved: dict[str, Any]) -> None:
    """Load heads and reference, whose files lie beside the model's."""
    if saved["heads"]:
        load_heads(policy, folder)
    if saved["reference"] is not None:
        reference = policy.reference(saved["reference"])
        if (folder / "reference.safetensors").is_file():
            reference.load_state_dict(load_file(folder / "reference.safetensors"))


def head_tensors(policy: TeacherForced) -> dict[str, Tensor]:
    """Parameters and buffers of the policy that are not the language model's, by name."""
    own = {id(tensor) for tensor in [*policy.model.parameters(), *policy.model.buffers()]}
    named = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    saved = policy.state_dict(keep_vars=True)
    return {
        name: tensor.detach()
        for name, tensor in named.items()
        if name in saved and not name.startswith("model.") and id(tensor) not in own
    }


def load_heads(policy: TeacherForced, path: str | os.PathLike[str]) -> None:
    """Load the weights saved in the folder ``path`` into the policy's heads.

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


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors requires."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
