"""Functions that save, load and convert episodes and preference pairs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from textenv.episodes.arrow import from_dataset, pairs_from_dataset, pairs_to_dataset, to_dataset
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.episodes.ragged import RaggedEpisodes

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


def save_episodes(
    batch: EpisodeBatch, path: str | os.PathLike[str], *, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write episodes to ``path``; the same as ``EpisodeBatch.save``.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/episodes.jsonl"
        >>> save_episodes(EpisodeBatch.from_ids([[5, 6]], [[7]], rewards=[0.1]), path)
        >>> load_episodes(path).rewards
        tensor([[0.0000, 0.0000, 0.1000]])
    """
    batch.save(path, tokenizer=tokenizer)


def load_episodes(path: str | os.PathLike[str]) -> EpisodeBatch:
    """Read episodes; the same as ``EpisodeBatch.load``."""
    return EpisodeBatch.load(path)


def save_preferences(
    pairs: PreferenceBatch, path: str | os.PathLike[str], *, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write preference pairs to ``path``; the same as ``PreferenceBatch.save``."""
    pairs.save(path, tokenizer=tokenizer)


def load_preferences(path: str | os.PathLike[str]) -> PreferenceBatch:
    """Read preference pairs; the same as ``PreferenceBatch.load``."""
    return PreferenceBatch.load(path)


def episodes_to_dataset(
    batch: EpisodeBatch, tokenizer: PreTrainedTokenizerBase | None = None
) -> datasets.Dataset:
    """A ``datasets.Dataset`` with one row per episode, and the sampling as JSON in its description.

    Args:
        batch: B episodes.
        tokenizer: if given, the columns ``prompt`` and ``completion`` hold the texts, for people.

    Raises:
        ValueError: if the batch is not valid.
        TypeError: if extras or sampling hold something that is not a JSON value.
    """
    return to_dataset(_packed(batch, tokenizer))


def episodes_from_dataset(dataset: datasets.Dataset, *, where: str = "the dataset") -> EpisodeBatch:
    """The inverse of ``episodes_to_dataset``; the dataset may have been selected from or shuffled.

    Raises:
        ValueError: if a required column is missing, or one is unknown or does not fit ``input_ids``.
    """
    return EpisodeBatch(**from_dataset(dataset, where=where).unpack()).validate()


def preferences_to_dataset(
    pairs: PreferenceBatch, tokenizer: PreTrainedTokenizerBase | None = None
) -> datasets.Dataset:
    """A ``datasets.Dataset`` with one row per pair; see ``episodes_to_dataset``."""
    sides = {side: _packed(batch, tokenizer) for side, batch in pairs.sides().items()}
    return pairs_to_dataset(sides, pairs.weights())


def preferences_from_dataset(dataset: datasets.Dataset, *, where: str = "the dataset") -> PreferenceBatch:
    """The inverse of ``preferences_to_dataset``."""
    sides, weights = pairs_from_dataset(dataset, where=where)
    return PreferenceBatch.from_fields({side: ragged.unpack() for side, ragged in sides.items()}, weights)


def _packed(batch: EpisodeBatch, tokenizer: PreTrainedTokenizerBase | None) -> RaggedEpisodes:
    batch.validate()
    return RaggedEpisodes.pack(batch.as_dict(), None if tokenizer is None else batch.texts(tokenizer))
