"""Preference pairs: two episodes on the same prompt, one preferred to the other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.checks import check_finite
from textenv.episodes.ragged import PAIR_WEIGHTS, SIDES
from textenv.episodes.storage import errors_name, load_pair_fields, save_pair_fields
from textenv.utils.indexing import row_index

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True, eq=False)
class PreferenceBatch:
    """B pairs of episodes; both episodes of a pair have the same prompt, and one is preferred.

    Raises:
        TypeError: if a side is not an ``EpisodeBatch``, or margin or label are not numbers.
        ValueError: if the two sides differ in size, margin or label does not have shape (B,), a margin is not
            finite, or a label does not lie in [0, 1].
    """

    chosen: EpisodeBatch
    """B preferred episodes."""
    rejected: EpisodeBatch
    """B episodes that were not preferred."""
    margin: Tensor | None = None
    """(B,) float: margin in the Bradley-Terry model, 0 if None."""
    label: Tensor | None = None
    """(B,) float in [0, 1]: probability that ``chosen`` is better (soft labels), 1 if None."""

    def __post_init__(self) -> None:
        for side in SIDES:
            if not isinstance(getattr(self, side), EpisodeBatch):
                raise TypeError(f"{side} must be an EpisodeBatch, got {type(getattr(self, side)).__name__}")
        if len(self.chosen) != len(self.rejected):
            raise ValueError(
                f"rejected must have {len(self.chosen)} episodes like chosen, got {len(self.rejected)}"
            )
        for name in PAIR_WEIGHTS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
            if value is not None and tuple(value.shape) != (len(self.chosen),):
                raise ValueError(f"{name} must have shape ({len(self.chosen)},), got {tuple(value.shape)}")
            if value is not None and (value.dtype == torch.bool or value.is_complex()):
                raise TypeError(f"{name} must hold numbers, got {value.dtype}")
            if value is not None:
                check_finite(name, value)
        if self.label is not None and bool(((self.label < 0) | (self.label > 1)).any()):
            wrong = int(((self.label < 0) | (self.label > 1)).nonzero()[0])
            raise ValueError(f"label must lie in [0, 1], got {float(self.label[wrong])} at [{wrong}]")

    def __len__(self) -> int:
        return len(self.chosen)

    def select(self, index: Tensor | Sequence[int] | slice) -> PreferenceBatch:
        """Pairs by index, boolean mask or slice."""
        index = row_index(index, len(self))

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index.to(value.device)]

        return PreferenceBatch(
            chosen=self.chosen.select(index),
            rejected=self.rejected.select(index),
            margin=pick(self.margin),
            label=pick(self.label),
        )

    def to(self, device: torch.device | str) -> PreferenceBatch:
        """The same pairs on another device."""
        return PreferenceBatch(
            chosen=self.chosen.to(device),
            rejected=self.rejected.to(device),
            margin=None if self.margin is None else self.margin.to(device),
            label=None if self.label is None else self.label.to(device),
        )

    @classmethod
    def from_texts(
        cls,
        prompts: Sequence[str],
        chosen: Sequence[str],
        rejected: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        margin: Tensor | None = None,
        label: Tensor | None = None,
        append_eos: bool = True,
        max_length: int | None = None,
    ) -> PreferenceBatch:
        """Tokenise pairs of completions; see ``EpisodeBatch.from_texts``."""
        sides = [
            EpisodeBatch.from_texts(prompts, side, tokenizer, append_eos=append_eos, max_length=max_length)
            for side in (chosen, rejected)
        ]
        return cls(chosen=sides[0], rejected=sides[1], margin=margin, label=label)

    def check_sides_differ(self, source: str) -> None:
        """Check for pairs whose sides have the same tokens; nothing can be learned from them.

        Args:
            source: name of the data, for the message.

        Raises:
            ValueError: if both sides of all pairs have the same tokens.

        Warns:
            UserWarning: if both sides of some pairs have; it gives their number.
        """
        width = min(side.input_ids.shape[1] for side in (self.chosen, self.rejected))
        ids = [(side.input_ids * side.attention_mask)[:, :width] for side in (self.chosen, self.rejected)]
        same = (self.chosen.lengths == self.rejected.lengths) & (ids[0] == ids[1]).all(-1)
        if not (count := int(same.sum())):
            return
        what = (
            f"{source}: chosen and rejected have the same tokens in {count} of {len(self)} pairs (after "
            "truncation, or because the tokenizer encodes different texts in the same way)"
        )
        if count == len(self):
            raise ValueError(f"{what}, so there is nothing to learn")
        warnings.warn(f"{what}; nothing is learned from these pairs", stacklevel=3)

    def sides(self) -> dict[str, EpisodeBatch]:
        """``chosen`` and ``rejected`` by name."""
        return {side: getattr(self, side) for side in SIDES}

    def weights(self) -> dict[str, Tensor]:
        """``margin`` and ``label`` by name, where they are given."""
        return {name: getattr(self, name) for name in PAIR_WEIGHTS if getattr(self, name) is not None}

    def save(self, path: str | os.PathLike[str], *, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write the pairs, margins and labels to ``path``; see ``EpisodeBatch.save``."""
        sides = self.sides()
        fields = {side: batch.validate().as_dict() for side, batch in sides.items()}
        texts = None if tokenizer is None else {side: batch.texts(tokenizer) for side, batch in sides.items()}
        save_pair_fields(fields, self.weights(), path, texts=texts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PreferenceBatch:
        """Read what ``save`` wrote; see ``EpisodeBatch.load``."""
        with errors_name(path):
            return cls.from_fields(*load_pair_fields(path))

    @classmethod
    def from_fields(
        cls, sides: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Tensor]
    ) -> PreferenceBatch:
        """Build pairs from the fields of both sides (see ``EpisodeBatch.as_dict``), margins and labels.

        Raises:
            ValueError: if a side is not valid (``EpisodeBatch.validate``).
        """
        batches = {side: EpisodeBatch(**sides[side]).validate() for side in SIDES}
        parts: dict[str, Any] = {**batches, **weights}
        return cls(**parts)
