"""Offline data in every form that users have, as episodes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from textenv.agents.data.batch import TrainingBatch
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.modeling.model_checks import check_holds
from textenv.prompts.columns import Columns

if TYPE_CHECKING:
    from textenv.data.records import Records

_RANKED = ("prompt", "completions", "completion", "reward")
"""Columns of rankings that are read or made here; all others are kept."""


def is_tokens(dataset: Any) -> bool:
    """Whether a data set is tokens already, so that nothing is read, tokenized or cut."""
    if isinstance(dataset, Mapping):
        return all(map(is_tokens, dataset.values()))
    return isinstance(dataset, EpisodeBatch | PreferenceBatch | TrainingBatch)


def as_episodes(dataset: Any, tokenizer: Any, *, need_rewards: bool = False) -> EpisodeBatch:
    """Turn a data set into episodes.

    Args:
        dataset: an ``EpisodeBatch``, a ``PreferenceBatch`` (chosen earns +1, rejected -1), or anything that
            ``textenv.data.load_columns`` reads: a path, hub id, ``datasets`` object or list of rows with the
            columns prompt and completion (and reward); prompt, chosen and rejected; prompt and completions
            (ranked, best first: rewards fall in equal steps from +1 to -1); text; or messages.
        tokenizer: needed for everything that is text.
        need_rewards: refuse records that say nothing of how good they are.

    Raises:
        ValueError: if text is given without a tokenizer, or the columns fit none of the forms.
    """
    if isinstance(dataset, EpisodeBatch):
        return dataset.validate()
    if isinstance(dataset, PreferenceBatch):
        return from_preferences(dataset)
    from textenv.data.loading import episodes_from_records, preferences_from_records

    records = text_records(dataset, tokenizer)
    columns = set(records.columns)
    if {"chosen", "rejected"} <= columns:
        return from_preferences(preferences_from_records(records, tokenizer))
    if "completions" in columns:
        return from_rankings(records, tokenizer)
    return episodes_from_records(_with_rewards(records) if need_rewards else records, tokenizer)


def fitting(policy: Any, dataset: Any) -> Any:
    """The data set, if the policy's model has its tokens and enough positions for its texts.

    Args:
        policy: has ``model``.
        dataset: episodes, or a batch with ``episodes``; anything else is not looked at.

    Raises:
        ValueError: if a token or a text is beyond the model.
    """
    episodes = getattr(dataset, "episodes", dataset)
    if isinstance(episodes, PreferenceBatch):
        fitting(policy, episodes.chosen), fitting(policy, episodes.rejected)
    if isinstance(episodes, EpisodeBatch) and len(episodes):
        ids = torch.where(episodes.attention_mask.bool(), episodes.input_ids, 0)
        check_holds(policy.model, int(ids.max()), int(episodes.lengths.max()))
    return dataset


def as_demonstrations(dataset: Any, tokenizer: Any, *, need_rewards: bool = False) -> EpisodeBatch:
    """Turn a data set into episodes to be cloned: of pairs the chosen, of rankings the best, else all.

    Args:
        dataset: as ``as_episodes`` takes it.
        tokenizer: needed for everything that is text.
        need_rewards: see ``as_episodes``.

    Raises:
        ValueError: see ``as_episodes``.
    """
    if isinstance(dataset, PreferenceBatch):
        return dataset.chosen
    if isinstance(dataset, EpisodeBatch):
        return dataset.validate()
    from textenv.data.loading import episodes_from_records

    records = text_records(dataset, tokenizer)
    if {"chosen", "rejected"} <= set(records.columns):
        return episodes_from_records(records.renamed({"chosen": "completion"}), tokenizer)
    if "completions" in records.columns:
        ranked = from_rankings(records, tokenizer)
        return ranked.select(ranked.returns == 1.0)
    return episodes_from_records(_with_rewards(records) if need_rewards else records, tokenizer)


def _with_rewards(records: Records) -> Records:
    try:
        return records.require("reward")
    except ValueError as error:
        raise ValueError(
            f"{error}; this agent learns from rewards: a number a row, or chosen and rejected, or ranked "
            "completions"
        ) from None


def from_preferences(pairs: PreferenceBatch) -> EpisodeBatch:
    """Both sides of every pair, +1 for the chosen and -1 for the rejected one: B pairs -> 2B episodes."""
    sides = []
    for episodes, reward in ((pairs.chosen, 1.0), (pairs.rejected, -1.0)):
        side = episodes.select(slice(None))
        side.rewards = side.at_last_action(torch.full((len(side),), reward, device=side.device))
        side.reward_terms = {}
        sides.append(side)
    joined = EpisodeBatch.concat(sides)
    joined.episode_id = torch.arange(len(joined), device=joined.device)
    return joined


def from_rankings(records: Any, tokenizer: Any) -> EpisodeBatch:
    """Rows of a prompt and its completions, best first; rewards fall in equal steps from +1 to -1.

    Prompt and completions are texts or lists of messages. All other columns become extras of each episode.

    Raises:
        ValueError: if a row ranks fewer than two completions.
    """
    prompts: list[Any] = []
    completions: list[Any] = []
    rewards: list[float] = []
    columns = Columns()
    for number, row in enumerate(records):
        ranked = row["completions"]
        if not isinstance(ranked, list | tuple) or len(ranked) < 2:
            raise ValueError(
                f"row {number}: completions must be a list of at least 2, best first, got {ranked!r}"
            )
        for rank, completion in enumerate(ranked):
            prompts.append(row["prompt"])
            completions.append(completion)
            rewards.append(1.0 - 2.0 * rank / (len(ranked) - 1))
            columns.add({name: value for name, value in row.items() if name not in _RANKED})
    extras = {name: list(values) for name, values in columns.values.items()}
    if all(isinstance(value, str) for value in (*prompts, *completions)):
        episodes = EpisodeBatch.from_texts(prompts, completions, tokenizer, rewards=rewards)
        episodes.extras = extras
        return episodes
    from textenv.data.loading import episodes_from_records, load_columns

    table = {"prompt": prompts, "completion": completions, "reward": rewards, **extras}
    return episodes_from_records(load_columns(table), tokenizer)


def text_records(dataset: Any, tokenizer: Any) -> Records:
    """The records of a data set of texts.

    Raises:
        ValueError: if there is no tokenizer for them, or see ``textenv.data.load_columns``.
    """
    if tokenizer is None:
        raise ValueError("a data set of texts needs tokenizer=, got None")
    from textenv.data.loading import load_columns

    return load_columns(os.fspath(dataset) if isinstance(dataset, os.PathLike) else dataset)
