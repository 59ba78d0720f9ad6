"""Checks of the fields of an episode batch: types, actions, rewards and masks.

Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textenv.episodes.fields import FLAGS, IDS, MAPPINGS, TERM_PREFIX, is_per_token, named_tensors
from textenv.utils.checks import is_integer
from textenv.utils.names import shown


def check_fields(fields: Mapping[str, Any]) -> None:
    """Refuse fields of a wrong type: lists for tensors, a text for a column.

    Raises:
        TypeError: naming the field.
    """
    for name, value in fields.items():
        if name in MAPPINGS:
            if not isinstance(value, Mapping):
                raise TypeError(f"{name} must be a dict, got {shown(value)}")
        elif value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    for name, column in fields["extras"].items():
        if isinstance(column, str | bytes) or not hasattr(column, "__len__"):
            raise TypeError(f"extras[{name!r}] must be a list of values, got {shown(column)}")


def check_tensors(fields: Mapping[str, Any], rows: int, length: int) -> None:
    """Check shapes, and refuse dtypes that would have to be cast: floats as ids or masks, bools as rewards.

    Args:
        fields: of an episode batch.
        rows: B.
        length: L.

    Raises:
        ValueError: naming a field of another shape than (B, L) or (B,).
        TypeError: naming a field of another kind of dtype.
    """
    for name, tensor in named_tensors(fields):
        expected_shape = (rows, length) if is_per_token(name) else (rows,)
        if tuple(tensor.shape) != expected_shape:
            raise ValueError(f"{name} must have shape {expected_shape}, got {tuple(tensor.shape)}")
    for name, tensor in named_tensors(fields):
        is_real = not (tensor.is_complex() or tensor.dtype == torch.bool)
        if name in IDS:
            fits, expected = is_real and not tensor.is_floating_point(), "integers"
        elif name in FLAGS:
            fits, expected = not (tensor.is_complex() or tensor.is_floating_point()), "bools"
        else:
            fits, expected = is_real, "numbers"
        if not fits:
            raise TypeError(f"{name} must hold {expected}, got {tensor.dtype}")


def check_id_rows(prompts: Sequence[Any], responses: Sequence[Any]) -> None:
    """Refuse lists that are not B prompts and B responses of token ids, no prompt empty.

    Raises:
        TypeError: if an id is not an integer.
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


def check_actions(fields: Mapping[str, Any]) -> None:
    """Refuse an action in column 0, and rewards for tokens that the policy did not choose.

    Losses read rewards at actions only, but returns sum all rewards: a reward elsewhere would be reported and
    never learned from.

    Raises:
        ValueError: naming the row (and column).
    """
    action_mask = fields["action_mask"]
    if not action_mask.numel():
        return
    first = action_mask[:, 0]
    if bool(first.any()):
        raise ValueError(
            "action_mask must be False in column 0, for the first token has no state before it; "
            f"got True in row {int(first.nonzero()[0])}"
        )
    for name, values in named_tensors(fields):
        if name == "rewards" or name.startswith(TERM_PREFIX):
            misplaced = (values != 0) & ~action_mask
            if bool(misplaced.any()):
                row, column = misplaced.nonzero()[0].tolist()
                raise ValueError(
                    f"{name} must be 0 where action_mask is False (a reward is for a token that the policy "
                    f"chose), got {float(values[row, column])} in row {row}, column {column}"
                )


def check_whole(fields: Mapping[str, Any]) -> None:
    """Run all checks that read the data.

    Raises:
        ValueError: if column 0 is an action, a reward (or a term of it) is not 0 where no action is, an
            action is on padding or in the prompt, an attention mask has a gap, a prompt is empty or longer
            than its row, an id is negative, or a reward or value is not finite.
    """
    check_actions(fields)
    for name, values in named_tensors(fields):
        if name in ("rewards", "final_values", "values") or name.startswith(TERM_PREFIX):
            check_finite(name, values)
    input_ids, mask, actions = (fields[name] for name in ("input_ids", "attention_mask", "action_mask"))
    prompt_lengths, lengths = fields["prompt_lengths"], mask.sum(-1)
    if input_ids.numel() and int(input_ids.min()) < 0:
        row, column = (input_ids < 0).nonzero()[0].tolist()
        raise ValueError(
            f"input_ids must be token ids >= 0, got {int(input_ids[row, column])} in row {row}, "
            f"column {column}"
        )
    if bool((actions & ~mask).any()):
        raise ValueError("action_mask must be False on padding (attention_mask False)")
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    if bool((mask != (columns < lengths.unsqueeze(-1))).any()):
        raise ValueError("attention_mask must be right-padded: ones, then zeros")
    outside = (prompt_lengths < 1) | (prompt_lengths > lengths)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"prompt_lengths[{row}] must lie between 1 and the length of the row, "
            f"{int(lengths[row])}, got {int(prompt_lengths[row])}"
        )
    if bool((actions & (columns < prompt_lengths.unsqueeze(-1))).any()):
        raise ValueError("action_mask must be False in the prompt (columns below prompt_lengths)")
