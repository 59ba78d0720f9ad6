"""Save the language model of a policy, and check once that it loads as the same model.

Compared are every parameter and buffer of the reloaded model with what was to be written (exactly, in the
dtype that the files have), and the logits of a few tokens with those of the policy itself. It costs one load
on the CPU and two or three passes over 8 tokens; no random number is drawn and nothing of the policy changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from textenv.agents.policies.adapters import merged_copy
from textenv.modeling.model_checks import usable_positions
from textenv.modeling.pretrained import load_pretrained
from textenv.modeling.split_model import eval_mode, model_vocab_size
from textenv.tasks.stop_tokens import generation_ends, stop_tokens
from textenv.utils.quiet import without_bars

PROBE_TOKENS = 8
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of logits, relative to their standard deviation, on one kind of device."""
_ACROSS = {torch.float64: 1e-8, torch.float32: 1e-2}
"""The same, where the policy's logits come from an accelerator and the saved model's from the CPU."""
_SIXTEEN_BITS = 0.1
"""RMS difference relative to the standard deviation, for 16-bit weights: merging rounds them."""


class SavedModelDiffers(RuntimeError):
    """Plain transformers loads another model from the folder than the one that was saved."""


def save_model(model: nn.Module, peft: Any, folder: Path) -> None:
    """Write the causal LM, adapters merged in, and check that plain transformers loads the same model.

    Args:
        model: a policy's causal LM.
        peft: the adapters' view of it, None without adapters.
        folder: where to write.

    Raises:
        TypeError: for a model that transformers can't write.
        SavedModelDiffers: if the folder holds another model than the policy.
    """
    if not hasattr(model, "save_pretrained"):
        raise TypeError(f"only a model of transformers can be saved, got {type(model).__name__}")
    written: Any = model if peft is None else merged_copy(peft)
    with without_bars():
        written.save_pretrained(folder)
    check_saved(model, written, folder)


def save_ends(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Set the stop tokens of the saved generation config, so that plain ``generate`` ends texts as here.

    To the ends that the model names come the tokenizer's EOS and, with a chat template, the token that ends
    the assistant's turn. A single end that is merely the default of the model's class gives way to them.
    Without a tokenizer nothing changes, nor does the policy's own model.
    """
    path = folder / "generation_config.json"
    if tokenizer is None or not path.is_file():
        return
    chat = bool(getattr(tokenizer, "chat_template", None))
    size = model_vocab_size(model, 1 << 62)
    ends = [*generation_ends(model), *stop_tokens(tokenizer, chat=chat)]
    ends = [end for end in dict.fromkeys(ends) if end < size]
    written = json.loads(path.read_text())
    before = written.get("eos_token_id")
    if ends and set(ends) != set(before if isinstance(before, list) else [before]):
        written["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def check_saved(model: nn.Module, written: nn.Module, folder: Path) -> None:
    """Compare what plain transformers loads from ``folder`` with the model.

    Args:
        model: the policy's causal LM.
        written: the model as it was to be written: the policy's own, or a copy with its adapters merged in.
        folder: where it was written.

    Raises:
        SavedModelDiffers: if they differ by more than rounding.
    """
    reloaded = _plain_load(written, folder)
    _compare_tensors(written, reloaded)
    if not _can_run(model):
        return
    ids = probe_ids(model)
    live = _logits(model, ids)
    if written is not model:
        _compare_logits(live, _logits(written, ids), "the merged model")
    _compare_logits(live, _logits(reloaded, ids), "the saved model")


def probe_ids(model: nn.Module) -> Tensor:
    """A few tokens across the vocabulary, and some of those with separately trained rows: (1, n)."""
    count = min(PROBE_TOKENS, usable_positions(model) or PROBE_TOKENS)
    size = model_vocab_size(model, 2)
    ids = torch.linspace(0, size - 1, count).long()
    rows = [
        token
        for module in model.modules()
        for indices in dict(getattr(module, "token_indices", None) or {}).values()
        for token in indices
    ]
    own = torch.tensor(sorted(set(rows)), dtype=torch.int64)[: count // 2]
    ids[: len(own)] = own
    return ids.unsqueeze(0)


def _plain_load(written: Any, folder: Path) -> Any:
    """The model as ``AutoModelForCausalLM`` loads it; one with code of its own by its own class."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    options: dict[str, Any] = {"local_files_only": True, "dtype": "auto", "output_loading_info": True}
    with torch.random.fork_rng(devices=[]), without_bars():
        if type(written.config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            model, report = load_pretrained(AutoModelForCausalLM, folder, what="model", **options)
        else:
            model, report = type(written).from_pretrained(folder, **options)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(what):
            names = sorted(map(str, report[what]))[:5]
            raise SavedModelDiffers(
                f"transformers can't load the {type(written).__name__} again, {what}: {names}; a model with "
                "modules of its own needs a class of its own"
            )
    return model.eval()


def _compare_tensors(written: nn.Module, reloaded: nn.Module) -> None:
    """Check that every tensor was written exactly."""
    expected, found = written.state_dict(), reloaded.state_dict()
    if set(expected) != set(found):
        names = sorted(set(expected) ^ set(found))[:5]
        raise SavedModelDiffers(f"the saved model loads with other tensors than the policy's: {names}")
    for name, tensor in expected.items():
        other = found[name]
        tensor = tensor.detach().cpu().to(other.dtype)
        same = other.shape == tensor.shape and bool(torch.isclose(tensor, other, 0, 0, equal_nan=True).all())
        if not same:
            raise SavedModelDiffers(
                f"{name} of the saved model loads with other values than the policy's; is it tied to another "
                "tensor in one of the two?"
            )


def _compare_logits(live: Tensor, other: Tensor, what: str) -> None:
    across = live.device != other.device
    live, other = live.cpu(), other.cpu()
    if live.shape != other.shape:
        raise SavedModelDiffers(
            f"logits of {what} have the shape {tuple(other.shape)}, expected the policy's {tuple(live.shape)}"
        )
    dtype = live.dtype if torch.finfo(live.dtype).bits <= torch.finfo(other.dtype).bits else other.dtype
    live, other = live.double(), other.double()
    std = float(live.std(correction=0))
    gap = (live - other).abs()
    tolerance = (_ACROSS if across else _TOLERANCE).get(dtype)
    size = float(gap.square().mean().sqrt() if tolerance is None else gap.max())
    if size > (tolerance or _SIXTEEN_BITS) * max(std, 1e-12):
        raise SavedModelDiffers(
            f"logits of {what} differ from the policy's by {size:.3g}, with a standard deviation of {std:.3g}"
        )


def _logits(model: Any, ids: Tensor) -> Tensor:
    device = next(model.parameters()).device
    ids = ids.to(device)
    with eval_mode(list(model.modules())), torch.autocast(device.type, enabled=False):
        found: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return found


def _can_run(model: nn.Module) -> bool:
    """Whether the model can be called in this process alone: its weights are not in parts elsewhere."""
    from torch.distributed.fsdp import FSDPModule

    parts = any(isinstance(module, FSDPModule) for module in model.modules())
    return not parts and not any(hasattr(parameter, "ds_id") for parameter in model.parameters())
