"""Records of texts or messages as what a reward model learns from, rendered as it will read them in use.

Shape letters: B texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from textenv.agents.data.ratings import RATING_COLUMNS, RewardBatch, end_rows, joined
from textenv.data.encoding import joined_conversation, raise_at
from textenv.data.loading import load_columns
from textenv.data.record_warnings import RepeatedPrompts
from textenv.data.records import Records
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.prompts.messages import chat_options
from textenv.rewards.retokenize import text_ids

JOINED = "{prompt}{completion}"
"""How texts are rendered."""
Item = str | list[Mapping[str, Any]]
"""A whole text, or a whole conversation."""


def as_reward_batch(
    dataset: Any, tokenizer: Any, *, max_length: int | None = None, append_eos: bool | None = None
) -> RewardBatch:
    """Turn a data set into pairs and rated texts.

    Args:
        dataset: a ``RewardBatch``; a ``PreferenceBatch``; rated episodes (see ``RewardBatch.of``);
            ``{"pairs": ..., "ratings": ...}`` of these; or anything that ``textenv.data.load_columns`` reads:
            with the columns prompt, chosen, rejected (and margin, label) for pairs, and with reward or rating
            beside prompt and completion, text, or messages for rated texts. Prompts and completions are all
            texts, which are joined, or all messages, which the chat template renders.
        tokenizer: needed for everything that is text.
        max_length: longest text in tokens; longer ones lose their beginning (special tokens stay).
        append_eos: whether every row ends by EOS; None leaves tokens as they are, and adds none to texts.

    Raises:
        ValueError: if text is given without a tokenizer, the columns are of neither kind, or texts and
            messages are mixed.
    """
    if isinstance(dataset, Mapping) and set(dataset) <= {"pairs", "ratings"}:
        options: dict[str, Any] = {"max_length": max_length, "append_eos": append_eos}
        return joined([as_reward_batch(part, tokenizer, **options) for part in dataset.values()])
    tokens = None
    if isinstance(dataset, RewardBatch):
        tokens = dataset
    elif isinstance(dataset, PreferenceBatch):
        tokens = RewardBatch.of(dataset)
    elif isinstance(dataset, EpisodeBatch):
        tokens = RewardBatch.of(rated=dataset)
    if tokens is not None:
        eos = None if tokenizer is None else tokenizer.eos_token_id
        return tokens if append_eos is None else end_rows(tokens, eos, with_eos=append_eos)
    if tokenizer is None:
        raise ValueError("a data set of texts needs tokenizer=, got None")
    return reward_batch_from_records(dataset, tokenizer, max_length=max_length, append_eos=bool(append_eos))


def reward_batch_from_records(
    dataset: Any, tokenizer: Any, *, max_length: int | None = None, append_eos: bool = False
) -> RewardBatch:
    """Read pairs or rated texts; see ``as_reward_batch``.

    Raises:
        ValueError: naming the place, if a column is missing, both sides of a pair are equal, or a weight is
            out of range.
        TypeError: naming the place, if texts and messages are mixed.

    Warns:
        UserWarning: if pairs are equal as the model reads them, or texts hold their prompt again, with their
            number.
    """
    records = load_columns(dataset)
    columns = set(records.columns)
    pairs = {"chosen", "rejected"} <= columns
    if not pairs and not columns & set(RATING_COLUMNS):
        raise ValueError(
            f"{records.name} must have the columns chosen and rejected, or a column reward or rating; "
            f"it has {', '.join(sorted(columns)) or 'none'}"
        )

    options = [chat_options(row, place) for place, row in records.rows()]

    def episodes(items: Sequence[Item]) -> EpisodeBatch:
        ids = text_ids(tokenizer, items, append_eos=append_eos, max_length=max_length, options=options)
        return EpisodeBatch.from_ids([row[:1] for row in ids], [row[1:] for row in ids])

    if pairs:
        chosen, rejected, weights = _pairs(records)
        sides = [episodes(items) for items in (chosen, rejected)]
        both = PreferenceBatch(chosen=sides[0], rejected=sides[1], **weights)
        both.check_sides_differ(records.name)
        batch = RewardBatch.of(both)
        first = chosen[0]
    else:
        items, ratings = _rated(records)
        rated = episodes(items)
        rated.extras = {"rating": ratings}
        batch = RewardBatch.of(rated=rated)
        first = items[0]
    batch.template = JOINED if isinstance(first, str) else "chat"
    return batch


def _pairs(records: Records) -> tuple[list[Item], list[Item], dict[str, torch.Tensor]]:
    """Chosen and rejected items, and margins and labels where there are some."""
    weights: dict[str, list[float]] = {name: [] for name in ("margin", "label") if name in records.columns}
    chosen: list[Item] = []
    rejected: list[Item] = []
    in_completions = RepeatedPrompts(records.name)
    for place, row in records.require("prompt", "chosen", "rejected", *weights).rows():
        in_completions.add(row["prompt"], row["chosen"], row["rejected"])
        if row["chosen"] == row["rejected"]:
            raise ValueError(f"{place}: chosen and rejected are equal: {row['chosen']!r}")
        for name, column in weights.items():
            column.append(float(row[name]))
        if "label" in weights and not 0 <= weights["label"][-1] <= 1:
            raise ValueError(f"{place}: label must lie in [0, 1], got {weights['label'][-1]}")
        for items, side in ((chosen, "chosen"), (rejected, "rejected")):
            _add(items, _whole(place, row["prompt"], row[side]), place)
    in_completions.warn()
    return chosen, rejected, {name: torch.tensor(column) for name, column in weights.items()}


def _rated(records: Records) -> tuple[list[Item], list[float]]:
    """Items and their ratings."""
    rating = next(name for name in RATING_COLUMNS if name in records.columns)
    forms = (("text",), ("prompt", "completion"), ("messages",))
    form = next((form for form in forms if set(form) <= set(records.columns)), ("prompt", "completion"))
    items: list[Item] = []
    ratings: list[float] = []
    for place, row in records.require(*form, rating).rows():
        if isinstance(row[rating], bool) or not isinstance(row[rating], int | float):
            raise ValueError(f"{place}: {rating} must be a number, got {row[rating]!r}")
        parts = [row[name] for name in form]
        _add(items, parts[0] if len(parts) == 1 else _whole(place, *parts), place)
        ratings.append(float(row[rating]))
    return items, ratings


def _whole(place: str, prompt: Any, completion: Any) -> Item:
    """Prompt and completion as one text or one conversation."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion
    try:
        return list(joined_conversation(prompt, completion))
    except TypeError as error:
        raise_at(place, error)


def _add(items: list[Item], item: Item, place: str) -> None:
    if items and isinstance(items[0], str) != isinstance(item, str):
        raise TypeError(f"{place}: the records must be all texts or all messages")
    items.append(item)
