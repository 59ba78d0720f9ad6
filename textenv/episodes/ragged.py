"""Episodes without their padding: the form that both kinds of episode file write down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.utils.checks import check_at_least
from textenv.utils.host_memory import check_fits
from textenv.utils.names import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PER_ROW = ("prompt_lengths", "final_values", "terminated", "truncated", "episode_id", "prompt_index")
"""Fields of shape (B,)."""
PER_TOKEN = ("input_ids", "action_mask", "log_probs", "values", "rewards")
"""Fields of shape (B, L); ``attention_mask`` follows from the lengths."""
REQUIRED = ("input_ids", "prompt_lengths", "action_mask")
"""Fields without a default."""
TEXTS = ("prompt", "completion")
"""Columns for the human reader, ignored when loading."""
_USUAL_DTYPES = {
    "input_ids": "int64",
    "prompt_lengths": "int64",
    "episode_id": "int64",
    "prompt_index": "int64",
    "action_mask": "bool",
    "terminated": "bool",
    "truncated": "bool",
}


def is_per_token(name: str) -> bool:
    """Whether a field (or ``reward_terms/NAME``) has one value per token."""
    return name in PER_TOKEN or name.startswith("reward_terms/")


def usual_dtype(name: str) -> str:
    """The dtype that a field has if nothing else is recorded: float32 for all numbers that are not ids."""
    return _USUAL_DTYPES.get(name, "float32")


def dtypes_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The dtypes that are not the usual ones, by field.

    >>> dtypes_of({"rewards": torch.zeros(1, dtype=torch.float64), "values": torch.zeros(1)})
    {'rewards': 'float64'}
    """
    found = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    return {name: dtype for name, dtype in found.items() if dtype != usual_dtype(name)}


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The values on the CPU; half-precision floats as float32, which is exact and known to every format."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


def to_tensor(values: np.ndarray, dtype: str) -> Tensor:
    """A tensor of its own (files give read-only arrays) of the named torch dtype."""
    return torch.from_numpy(np.array(values)).to(getattr(torch, dtype))


@dataclass
class RaggedEpisodes:
    """B episodes, flat: the tokens of all rows one after the other."""

    lengths: np.ndarray
    """(B,) int64: tokens of each episode."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """name -> (B,) or, per token, (sum of the lengths,); reward terms as ``reward_terms/NAME``."""
    extras: dict[str, list[Any]] = field(default_factory=dict)
    """name -> B JSON values."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """``prompt`` and ``completion`` for the reader, or nothing."""
    meta: dict[str, Any] = field(default_factory=dict)
    """``sampling``, ``dtypes``, ``pad_token_id`` and ``width``, each only where it is not the default."""

    @classmethod
    def pack(cls, batch: EpisodeBatch, tokenizer: PreTrainedTokenizerBase | None = None) -> RaggedEpisodes:
        """Take the padding away.

        Args:
            batch: B episodes. What stands on padding is dropped, except a uniform pad id.
            tokenizer: if given, the texts are kept beside the ids.

        Raises:
            ValueError: if the batch is not valid (``EpisodeBatch.validate``).
            TypeError: if extras or sampling hold something that is not a JSON value.
        """
        batch.validate()
        mask = batch.attention_mask
        tensors = {name: tensor for name, tensor in batch.tensors() if name != "attention_mask"}
        lengths = batch.lengths.cpu().numpy()
        padding = batch.input_ids[~mask].unique()
        meta: dict[str, Any] = {}
        if batch.sampling:
            _check_json(batch.sampling, "sampling")
            meta["sampling"] = batch.sampling
        if dtypes := dtypes_of(tensors):
            meta["dtypes"] = dtypes
        if len(padding) == 1 and int(padding[0]) != 0:
            meta["pad_token_id"] = int(padding[0])
        if batch.input_ids.shape[1] > lengths.max(initial=0):
            meta["width"] = batch.input_ids.shape[1]
        for name, values in batch.extras.items():
            for i, value in enumerate(values):
                _check_json(value, f"extras[{name!r}][{i}]")
        texts = {}
        if tokenizer is not None:
            pairs = batch.texts(tokenizer)
            texts = {"prompt": [pair[0] for pair in pairs], "completion": [pair[1] for pair in pairs]}
        return cls(
            lengths=lengths,
            columns={name: to_numpy(x[mask] if is_per_token(name) else x) for name, x in tensors.items()},
            extras={name: list(values) for name, values in batch.extras.items()},
            texts=texts,
            meta=meta,
        )

    def unpack(self) -> EpisodeBatch:
        """Put the padding back: a batch on the CPU.

        Raises:
            ValueError: if the episodes are not valid, for example because the first token is an action.
        """
        _check_meta(self.meta, len(self.lengths))
        lengths = torch.from_numpy(np.array(self.lengths, dtype=np.int64))
        width = max(int(self.meta.get("width", 0)), int(self.lengths.max(initial=0)))
        mask = torch.arange(width) < lengths.unsqueeze(-1)
        tensors: dict[str, Any] = {}
        terms: dict[str, Tensor] = {}
        for name, values in self.columns.items():
            tensor = to_tensor(values, self.meta.get("dtypes", {}).get(name, usual_dtype(name)))
            if is_per_token(name):
                fill = self.meta.get("pad_token_id", 0) if name == "input_ids" else 0
                padded = torch.full(mask.shape, fill, dtype=tensor.dtype)
                padded[mask] = tensor
                tensor = padded
            if name.startswith("reward_terms/"):
                terms[name.removeprefix("reward_terms/")] = tensor
            else:
                tensors[name] = tensor
        return EpisodeBatch(
            attention_mask=mask,
            reward_terms=terms,
            extras=self.extras,
            sampling=self.meta.get("sampling", {}),
            **tensors,
        ).validate()


def _check_meta(meta: Mapping[str, Any], rows: int) -> None:
    """What stands once for all episodes of a file.

    Raises:
        ValueError: naming the entry.
    """
    for name in ("sampling", "dtypes"):
        if not isinstance(meta.get(name, {}), Mapping):
            raise ValueError(f"{name} must be an object, got {shown(meta[name])}")
    for name, dtype in meta.get("dtypes", {}).items():
        if not isinstance(dtype, str) or not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtypes: {name} must be the name of a torch dtype, got {shown(dtype)}")
    for name in ("width", "pad_token_id"):
        if name in meta:
            check_at_least(name, meta[name], 0)
    check_fits(f"{rows} episodes of {meta.get('width', 0)} tokens", 8 * rows * meta.get("width", 0))


def _check_json(value: Any, name: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a JSON value to be saved, got {shown(value)} ({error})") from None
