"""What a reward model learns from: pairs, rated texts, or both, and how they become one forward pass.

Shape letters: P pairs, R rated texts, I = P + R items, B = 2P + R rows, L tokens, K heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textenv.agents.batch import TrainingBatch
from textenv.episodes import EpisodeBatch
from textenv.preferences import PreferenceBatch
from textenv.row_index import row_index
from textenv.text_pairs import bos_once

if TYPE_CHECKING:
    from textenv.records import Records

RATING_COLUMNS = ("rating", "reward")


@dataclass
class RewardBatch(TrainingBatch):
    """P pairs and R rated texts. Rows: the P chosen episodes, the P rejected ones, the R rated ones.

    Items 0..P-1 are the pairs, items P..P+R-1 the rated texts; ``select`` and ``len`` are about items.

    Raises:
        ValueError: if the counts do not fit, or nothing is in it.
    """

    pairs: int = 0
    """P."""
    margin: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(P,) by how much chosen should win."""
    label: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(P,) probability that chosen is really better."""
    ratings: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(R,) what the scores of the rated texts should be."""
    item: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """(I,) int64: place of each item in the data set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rated = len(self.ratings)
        if 2 * self.pairs + rated != len(self.episodes):
            raise ValueError(f"episodes must hold 2 x {self.pairs} + {rated} rows, got {len(self.episodes)}")
        for name, size in (("margin", self.pairs), ("label", self.pairs), ("item", self.pairs + rated)):
            if len(getattr(self, name)) != size:
                raise ValueError(f"{name} must have {size} values, got {len(getattr(self, name))}")

    def __len__(self) -> int:
        return self.pairs + len(self.ratings)

    @property
    def row_lengths(self) -> Tensor:
        """(I,) int64: tokens of each item, of a pair's both sides."""
        chosen, rejected, rated = self.episodes.lengths.split([self.pairs, self.pairs, self.rated])
        return torch.cat([chosen + rejected, rated])

    @property
    def rated(self) -> int:
        """R."""
        return len(self.ratings)

    @classmethod
    def of(cls, pairs: PreferenceBatch | None = None, rated: EpisodeBatch | None = None) -> RewardBatch:
        """Put pairs and rated episodes together.

        Args:
            pairs: P pairs.
            rated: R episodes with an extra column "rating" or "reward", or else with their return as rating.

        Raises:
            ValueError: if neither is given, or a rating is not a finite number.
        """
        sides = [] if pairs is None else [pairs.chosen, pairs.rejected]
        sides += [] if rated is None else [rated]
        if not sides or not sum(map(len, sides)):
            raise ValueError("a reward model needs preference pairs or rated episodes, got none")
        count = 0 if pairs is None else len(pairs)
        label = None if pairs is None else pairs.label
        margin = None if pairs is None else pairs.margin
        ratings = torch.zeros(0) if rated is None else ratings_of(rated)
        return cls(
            episodes=EpisodeBatch.concat([tokens_only(side) for side in sides if len(side)]),
            pairs=count,
            margin=torch.zeros(count) if margin is None else margin.float(),
            label=torch.ones(count) if label is None else label.float(),
            ratings=ratings,
            item=torch.arange(count + len(ratings)),
        )

    def to(self, device: torch.device | str) -> RewardBatch:
        """The same on another device."""
        if self.episodes.device == torch.device(device):
            return self
        moved = {name: getattr(self, name).to(device) for name in ("margin", "label", "ratings", "item")}
        return RewardBatch(self.episodes.to(device), pairs=self.pairs, **moved)

    def select(self, index: Tensor) -> RewardBatch:
        """Items by index (i,) int64; pairs come before rated texts, each kind in the order given."""
        index = row_index(index, len(self)).to(self.item.device)
        pairs, rated = index[index < self.pairs], index[index >= self.pairs]
        rows = torch.cat([pairs, pairs + self.pairs, rated + self.pairs])
        return RewardBatch(
            self.episodes.select(rows),
            pairs=len(pairs),
            margin=self.margin[pairs],
            label=self.label[pairs],
            ratings=self.ratings[rated - self.pairs],
            item=self.item[torch.cat([pairs, rated])],
        )

    def microbatches(self, max_tokens: int) -> Iterator[RewardBatch]:
        """Length-sorted parts of at most ``max_tokens`` padded tokens, or one item; no pair is split."""
        if len(self.episodes) * self.episodes.input_ids.shape[1] <= max_tokens:
            yield self
            return
        lengths = self.episodes.lengths
        longer = torch.maximum(lengths[: self.pairs], lengths[self.pairs : 2 * self.pairs])
        longest = torch.cat([longer, lengths[2 * self.pairs :]])
        order = torch.argsort(longest, descending=True, stable=True)
        start = rows = 0
        for stop, item in enumerate(order.tolist()):
            rows += 2 if item < self.pairs else 1
            if rows * int(longest[order[start]]) > max_tokens and stop > start:
                yield self.select(order[start:stop])
                start, rows = stop, 2 if item < self.pairs else 1
        yield self.select(order[start:])


def ratings_of(episodes: EpisodeBatch) -> Tensor:
    """(R,) ratings: the extra column "rating" or "reward" if there is one, else the returns.

    Raises:
        ValueError: if a rating is missing or not finite.
    """
    name = next((name for name in RATING_COLUMNS if name in episodes.extras), None)
    if name is None:
        values = episodes.returns.float()
    else:
        column = episodes.extras[name]
        for row, value in enumerate(column):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name}[{row}] must be a number, got {value!r}")
        values = torch.tensor(column, dtype=torch.float32, device=episodes.device)
    if not bool(torch.isfinite(values).all()):
        row = int((~torch.isfinite(values)).nonzero()[0])
        raise ValueError(f"{name or 'rewards'}[{row}] must be finite, got {float(values[row])}")
    return values


def tokens_only(episodes: EpisodeBatch) -> EpisodeBatch:
    """The episodes without rewards, columns and what else a reward model does not read."""
    return EpisodeBatch(
        input_ids=episodes.input_ids,
        attention_mask=episodes.attention_mask,
        prompt_lengths=episodes.prompt_lengths,
        action_mask=episodes.action_mask,
    )


def as_reward_batch(dataset: Any, tokenizer: Any, *, max_length: int | None = None) -> RewardBatch:
    """Turn a data set into pairs and rated texts.

    Args:
        dataset: a ``RewardBatch``; a ``PreferenceBatch``; rated episodes (see ``RewardBatch.of``);
            ``{"pairs": ..., "ratings": ...}`` of these; or anything that ``textenv.data.load_columns`` reads:
            with the columns prompt, chosen, rejected (and margin, label) for pairs, and with reward or rating
            beside prompt and completion, text, or messages for rated texts.
        tokenizer: needed for everything that is text.
        max_length: longest text in tokens; longer ones lose their end.

    Raises:
        ValueError: if text is given without a tokenizer, or the columns are of neither kind.
    """
    if isinstance(dataset, RewardBatch):
        return dataset
    if isinstance(dataset, PreferenceBatch):
        return RewardBatch.of(dataset)
    if isinstance(dataset, EpisodeBatch):
        return RewardBatch.of(rated=dataset)
    if isinstance(dataset, Mapping) and set(dataset) <= {"pairs", "ratings"}:
        parts = [as_reward_batch(part, tokenizer, max_length=max_length) for part in dataset.values()]
        return _joined(parts)
    if tokenizer is None:
        raise ValueError("a data set of texts needs tokenizer=, got None")
    from textenv.data import episodes_from_records, load_columns, preferences_from_records

    records = load_columns(dataset)
    columns = set(records.columns)
    pairs = {"chosen", "rejected"} <= columns
    if not pairs and not columns & set(RATING_COLUMNS):
        raise ValueError(
            f"{records.name} must have the columns chosen and rejected, or a column reward or rating; "
            f"it has {', '.join(sorted(columns)) or 'none'}"
        )
    if pairs and _is_text(records, "chosen"):
        return _text_pairs(records, tokenizer, max_length)
    if pairs:
        return RewardBatch.of(preferences_from_records(records, tokenizer, max_length=max_length))
    if {"text"} <= columns or ({"prompt", "completion"} <= columns and _is_text(records, "completion")):
        return _rated_texts(records, tokenizer, max_length)
    return RewardBatch.of(rated=episodes_from_records(records, tokenizer, max_length=max_length))


def _is_text(records: Records, column: str) -> bool:
    """Whether a column holds text, by its first row; messages are rendered by the chat template instead."""
    first = next(iter(records.rows()), None)
    return first is None or isinstance(first[1].get(column), str)


def _text_pairs(records: Records, tokenizer: Any, max_length: int | None) -> RewardBatch:
    """Pairs of whole texts, tokenized as a reward model reads them: prompt and completion as one text."""
    from textenv.records import HeldPrompts

    weights: dict[str, list[float]] = {name: [] for name in ("margin", "label") if name in records.columns}
    chosen, rejected = [], []
    held = HeldPrompts(records.name)
    for place, row in records.require("prompt", "chosen", "rejected", *weights).rows():
        held.add(row["prompt"], row["chosen"], row["rejected"])
        if row["chosen"] == row["rejected"]:
            raise ValueError(f"{place}: chosen and rejected are equal: {row['chosen']!r}")
        for name, column in weights.items():
            column.append(float(row[name]))
        if "label" in weights and not 0 <= weights["label"][-1] <= 1:
            raise ValueError(f"{place}: label must lie in [0, 1], got {weights['label'][-1]}")
        chosen.append(row["prompt"] + row["chosen"])
        rejected.append(row["prompt"] + row["rejected"])
    held.warn()
    tensors = {name: torch.tensor(column) for name, column in weights.items()}
    sides = [text_episodes(texts, tokenizer, max_length=max_length) for texts in (chosen, rejected)]
    batch = PreferenceBatch(chosen=sides[0], rejected=sides[1], **tensors)
    batch.check_sides_differ(records.name)
    return RewardBatch.of(batch)


def _rated_texts(records: Records, tokenizer: Any, max_length: int | None) -> RewardBatch:
    rating = next(name for name in RATING_COLUMNS if name in records.columns)
    parts = ["text"] if "text" in records.columns else ["prompt", "completion"]
    texts, ratings = [], []
    for place, row in records.require(*parts, rating).rows():
        if isinstance(row[rating], bool) or not isinstance(row[rating], int | float):
            raise ValueError(f"{place}: {rating} must be a number, got {row[rating]!r}")
        texts.append("".join(row[part] for part in parts))
        ratings.append(float(row[rating]))
    episodes = text_episodes(texts, tokenizer, max_length=max_length)
    episodes.extras = {"rating": ratings}
    return RewardBatch.of(rated=episodes)


def text_episodes(texts: Sequence[str], tokenizer: Any, *, max_length: int | None = None) -> EpisodeBatch:
    """Whole texts with the tokenizer's own special tokens, as ``textenv.rewards.RewardModel`` makes them.

    Args:
        texts: B texts.
        tokenizer: the scorer's.
        max_length: longest text in tokens; longer ones lose their end (special tokens stay).

    Raises:
        ValueError: if a text has no token.
    """
    cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
    ids = tokenizer(list(texts), **cut)["input_ids"] if len(texts) else []
    ids = bos_once(ids, tokenizer)
    for row, found in enumerate(ids):
        if not found:
            raise ValueError(f"text {row} has no token: {texts[row]!r}")
    return EpisodeBatch.from_ids([row[:1] for row in ids], [row[1:] for row in ids])


def end_rows(batch: RewardBatch, eos: int | None, *, with_eos: bool) -> RewardBatch:
    """Let every row end by EOS, or none.

    Raises:
        ValueError: if EOS is to be appended and there is none, or a row is nothing but EOS.
    """
    episodes = batch.episodes
    lengths = episodes.lengths
    rows = torch.arange(len(lengths), device=lengths.device)
    ends = episodes.input_ids[rows, lengths - 1] == (-1 if eos is None else eos)
    if with_eos:
        if eos is None:
            raise ValueError("append_eos needs a tokenizer with an eos_token, got none")
        ids = torch.nn.functional.pad(episodes.input_ids, (0, 1))
        ids[rows[~ends], lengths[~ends]] = eos
        lengths = lengths + (~ends).long()
    else:
        ids, lengths = episodes.input_ids, lengths - ends.long()
        if bool((lengths < 1).any()):
            raise ValueError(f"row {int((lengths < 1).nonzero()[0])} is empty but for EOS: nothing to score")
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(-1)
    action = torch.nn.functional.pad(episodes.action_mask, (0, ids.shape[1] - episodes.action_mask.shape[1]))
    ended = EpisodeBatch(
        input_ids=ids,
        attention_mask=mask,
        prompt_lengths=torch.minimum(episodes.prompt_lengths, lengths),
        action_mask=action & mask,
    )
    values = {name: getattr(batch, name) for name in ("margin", "label", "ratings", "item")}
    return RewardBatch(ended.select(rows), pairs=batch.pairs, **values)


def drop_tokens(episodes: EpisodeBatch, share: float) -> EpisodeBatch:
    """Leave out each token with probability ``share``, but the first and the last of a row; rows close up.

    What is left is for scoring alone: prompt and response are no longer told apart.

    Args:
        episodes: B rows.
        share: in [0, 1).
    """
    columns = torch.arange(episodes.input_ids.shape[1], device=episodes.device)
    last = episodes.lengths.unsqueeze(-1) - 1
    drawn = torch.rand(episodes.input_ids.shape, device=episodes.device) >= share
    kept = episodes.attention_mask & (drawn | (columns == 0) | (columns == last))
    # A stable sort puts what is kept first, in its order.
    order = torch.argsort((~kept).to(torch.int8), dim=-1, stable=True)
    width = int(kept.sum(-1).max())
    mask = (columns < kept.sum(-1, keepdim=True))[:, :width]
    return EpisodeBatch(
        input_ids=episodes.input_ids.gather(1, order)[:, :width],
        attention_mask=mask,
        prompt_lengths=torch.ones_like(episodes.prompt_lengths),
        action_mask=mask & (columns[:width] > 0),
    )


def _joined(parts: list[RewardBatch]) -> RewardBatch:
    """Pairs of all parts, then rated texts of all parts."""
    chosen = [part.episodes.select(slice(0, part.pairs)) for part in parts]
    rejected = [part.episodes.select(slice(part.pairs, 2 * part.pairs)) for part in parts]
    rated = [part.episodes.select(slice(2 * part.pairs, None)) for part in parts]
    sides = [side for side in [*chosen, *rejected, *rated] if len(side)]
    if not sides:
        raise ValueError("a reward model needs preference pairs or rated episodes, got none")
    count = sum(len(part) for part in parts)
    return RewardBatch(
        EpisodeBatch.concat(sides),
        pairs=sum(part.pairs for part in parts),
        margin=torch.cat([part.margin for part in parts]),
        label=torch.cat([part.label for part in parts]),
        ratings=torch.cat([part.ratings for part in parts]),
        item=torch.arange(count),
    )
