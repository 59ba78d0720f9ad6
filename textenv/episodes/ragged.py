"""The fields of episodes without padding: the form that both file formats store.

Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textenv.episodes.fields import (
    PER_ROW,
    PER_TOKEN,
    REQUIRED,
    TERM_PREFIX,
    is_per_token,
    named_tensors,
    usual_dtype,
)
from textenv.utils.checks import check_at_least
from textenv.utils.host_memory import check_fits
from textenv.utils.names import shown

STORED = (*PER_ROW, *(name for name in PER_TOKEN if name != "attention_mask"))
"""Fields that files hold, besides mappings; ``attention_mask`` follows from the lengths."""
REQUIRED_IN_FILES = tuple(name for name in REQUIRED if name in STORED)
"""Stored fields without a default."""
TEXTS = ("prompt", "completion")
"""Columns with the texts, for people who read the file; ignored when loading."""
SIDES = ("chosen", "rejected")
"""The two episodes of a preference pair."""
PAIR_WEIGHTS = ("margin", "label")
"""Numbers per preference pair, each of them optional."""


def is_stored(name: str) -> bool:
    """Whether files hold this field (or ``reward_terms/NAME``) as a column of numbers."""
    return name in STORED or name.startswith(TERM_PREFIX)


def dtypes_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The dtypes that are not the usual ones, by field.

    >>> dtypes_of({"rewards": torch.zeros(1, dtype=torch.float64), "values": torch.zeros(1)})
    {'rewards': 'float64'}
    """
    found = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    return {name: dtype for name, dtype in found.items() if dtype != usual_dtype(name)}


def to_numpy(tensor: Tensor) -> np.ndarray:
    """The values on the CPU; half precision as float32, which is exact and supported by every format."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


def to_tensor(values: np.ndarray, dtype: str) -> Tensor:
    """A copy (arrays from files are read-only) as a tensor of the named torch dtype."""
    return torch.from_numpy(np.array(values)).to(getattr(torch, dtype))


@dataclass
class RaggedEpisodes:
    """B episodes without padding: the tokens of all rows in one array."""

    lengths: np.ndarray
    """(B,) int64: tokens of each episode."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """name -> (B,) or, per token, (sum of the lengths,); reward terms as ``reward_terms/NAME``."""
    extras: dict[str, list[Any]] = field(default_factory=dict)
    """name -> B JSON values."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """``prompt`` and ``completion`` -> B texts for people who read the file, or nothing."""
    meta: dict[str, Any] = field(default_factory=dict)
    """``sampling``, ``dtypes``, ``pad_token_id`` and ``width``, each only where it is not the default."""

    @classmethod
    def pack(
        cls, fields: Mapping[str, Any], texts: Sequence[tuple[str, str]] | None = None
    ) -> RaggedEpisodes:
        """Remove the padding.

        Args:
            fields: all fields of a valid ``EpisodeBatch`` of B episodes. Values on padding are dropped,
                except a pad id that is the same everywhere.
            texts: B pairs (prompt, completion) to store beside the ids.

        Raises:
            TypeError: if extras or sampling hold something that is not a JSON value.
        """
        mask, input_ids = fields["attention_mask"], fields["input_ids"]
        tensors = {name: tensor for name, tensor in named_tensors(fields) if is_stored(name)}
        lengths = mask.sum(-1).cpu().numpy()
        padding = input_ids[~mask].unique()
        meta: dict[str, Any] = {}
        if fields["sampling"]:
            _check_json(fields["sampling"], "sampling")
            meta["sampling"] = fields["sampling"]
        if dtypes := dtypes_of(tensors):
            meta["dtypes"] = dtypes
        if len(padding) == 1 and int(padding[0]) != 0:
            meta["pad_token_id"] = int(padding[0])
        if input_ids.shape[1] > lengths.max(initial=0):
            meta["width"] = input_ids.shape[1]
        for name, values in fields["extras"].items():
            for i, value in enumerate(values):
                _check_json(value, f"extras[{name!r}][{i}]")
        return cls(
            lengths=lengths,
            columns={name: to_numpy(x[mask] if is_per_token(name) else x) for name, x in tensors.items()},
            extras={name: list(values) for name, values in fields["extras"].items()},
            texts={}
            if texts is None
            else {name: [pair[i] for pair in texts] for i, name in enumerate(TEXTS)},
            meta=meta,
        )

    def unpack(self) -> dict[str, Any]:
        """Put the padding back: the arguments of ``EpisodeBatch``, with tensors on the CPU.

        Raises:
            ValueError: if an entry of ``meta`` is wrong.
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
            if name.startswith(TERM_PREFIX):
                terms[name.removeprefix(TERM_PREFIX)] = tensor
            else:
                tensors[name] = tensor
        return {
            **tensors,
            "attention_mask": mask,
            "reward_terms": terms,
            "extras": self.extras,
            "sampling": self.meta.get("sampling", {}),
        }


def _check_meta(meta: Mapping[str, Any], rows: int) -> None:
    """Check the entries for all episodes of a file.

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
