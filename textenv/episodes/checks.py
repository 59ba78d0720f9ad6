"""What must hold for the data in an episode batch: actions, rewards and masks. Shape letters: B, L tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from textenv.utils.checks import is_integer
from textenv.utils.names import shown

if TYPE_CHECKING:
    from textenv.episodes.batch import EpisodeBatch


_IDS = ("input_ids", "prompt_lengths", "episode_id", "prompt_index")
_FLAGS = ("attention_mask", "action_mask", "terminated", "truncated")


def check_fields(batch: EpisodeBatch) -> None:
    """Refuse fields of another kind: lists for tensors, a text for a column.

    Raises:
        TypeError: naming the field.
    """
    for spec in fields(batch):
        value = getattr(batch, spec.name)
        if spec.name in ("reward_terms", "extras", "sampling"):
            if not isinstance(value, Mapping):
                raise TypeError(f"{spec.name} must be a dict, got {shown(value)}")
        elif value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{spec.name} must be a tensor, got {type(value).__name__}")
    for name, column in batch.extras.items():
        if isinstance(column, str | bytes) or not hasattr(column, "__len__"):
            raise TypeError(f"extras[{name!r}] must be a list of values, got {shown(column)}")


def check_dtypes(batch: EpisodeBatch) -> None:
    """Refuse what would be cast: numbers that are no integers as ids, or as masks.

    Raises:
        TypeError: naming the field.
    """
    for name, tensor in batch.tensors():
        is_real = not (tensor.is_complex() or tensor.dtype == torch.bool)
        if name in _IDS:
            fits, expected = is_real and not tensor.is_floating_point(), "integers"
        elif name in _FLAGS:
            fits, expected = not (tensor.is_complex() or tensor.is_floating_point()), "bools"
        else:
            fits, expected = is_real, "numbers"
        if not fits:
            raise TypeError(f"{name} must hold {expected}, got {tensor.dtype}")


def check_id_rows(prompts: Sequence[Any], responses: Sequence[Any]) -> None:
    """Refuse lists that are not B prompts and B responses of token ids, no prompt empty.

    Raises:
        TypeError: if an id is no integer.
        ValueError: if the counts differ, a prompt is empty, or an id does not lie in [0, 2**63).

    >>> check_id_rows([[0], [0]], [[1, 2], [1.5]])
    Traceback (most recent call last):
    ...
    TypeError: responses[1] must hold token ids (integers), got 1.5
    """
    if len(prompts) != len(responses):
        raise ValueError(
            f"responses must have as many rows as prompts ({len(prompts)}), got {len(responses)}"
        )
    for name, lists in (("prompts", prompts), ("responses", responses)):
        for i, ids in enumerate(lists):
            if isinstance(ids, str | bytes) or not hasattr(ids, "__len__"):
                raise TypeError(f"{name}[{i}] must be a list of token ids, got {shown(ids)}")
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompts[{i}] is empty; prepend BOS or EOS (column 0 is never an action)")
    for name, lists in (("prompts", prompts), ("responses", responses)):
        for i, ids in enumerate(lists):
            if isinstance(ids, Tensor | np.ndarray):
                ids = ids.tolist()
            if not {*map(type, ids)} <= {int} and not all(map(is_integer, ids)):
                wrong = next(one for one in ids if not is_integer(one))
                raise TypeError(f"{name}[{i}] must hold token ids (integers), got {shown(wrong)}")
            if len(ids) and not (min(ids) >= 0 and max(ids) < 2**63):
                wrong = min(ids) if min(ids) < 0 else max(ids)
                raise ValueError(f"{name}[{i}] must hold token ids in [0, 2**63), got {shown(wrong)}")


def check_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueError: naming the first entry.

    >>> check_finite("margin", torch.tensor([0.0, torch.inf]))
    Traceback (most recent call last):
    ...
    ValueError: margin must be finite, got inf at [1]
    """
    wrong = ~values.isfinite()
    if bool(wrong.any()):
        at = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name} must be finite, got {float(values[tuple(at)])} at {at}")


def check_actions(batch: EpisodeBatch) -> None:
    """Refuse an action without a state before it, and rewards for tokens that the policy did not choose.

    Losses read rewards at actions alone, while returns sum all of them: a reward elsewhere would be reported
    and never learned from.

    Raises:
        ValueError: naming the row (and column).
    """
    if not batch.input_ids.numel():
        return
    first = batch.action_mask[:, 0]
    if bool(first.any()):
        raise ValueError(
            "action_mask must be False in column 0, for the first token has no state before it; "
            f"got True in row {int(first.nonzero()[0])}"
        )
    for name, values in batch.tensors():
        if name == "rewards" or name.startswith("reward_terms/"):
            foreign = (values != 0) & ~batch.action_mask
            if bool(foreign.any()):
                row, column = foreign.nonzero()[0].tolist()
                raise ValueError(
                    f"{name} must be 0 where action_mask is False (a reward is for a token that the policy "
                    f"chose), got {float(values[row, column])} in row {row}, column {column}"
                )


def check_whole(batch: EpisodeBatch) -> None:
    """All that can be checked of a batch.

    Raises:
        ValueError: see ``EpisodeBatch.validate``.
    """
    check_actions(batch)
    for name, values in batch.tensors():
        if name in ("rewards", "final_values", "values") or name.startswith("reward_terms/"):
            check_finite(name, values)
    if batch.input_ids.numel() and int(batch.input_ids.min()) < 0:
        row, column = (batch.input_ids < 0).nonzero()[0].tolist()
        raise ValueError(
            f"input_ids must be token ids >= 0, got {int(batch.input_ids[row, column])} in row {row}, "
            f"column {column}"
        )
    if bool((batch.action_mask & ~batch.attention_mask).any()):
        raise ValueError("action_mask must be False on padding (attention_mask False)")
    columns = torch.arange(batch.input_ids.shape[1], device=batch.device)
    if bool((batch.attention_mask != (columns < batch.lengths.unsqueeze(-1))).any()):
        raise ValueError("attention_mask must be right-padded: ones, then zeros")
    outside = (batch.prompt_lengths < 1) | (batch.prompt_lengths > batch.lengths)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"prompt_lengths[{row}] must lie between 1 and the length of the row, "
            f"{int(batch.lengths[row])}, got {int(batch.prompt_lengths[row])}"
        )
    if bool((batch.action_mask & (columns < batch.prompt_lengths.unsqueeze(-1))).any()):
        raise ValueError("action_mask must be False in the prompt (columns below prompt_lengths)")
