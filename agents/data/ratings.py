"""What a reward model learns from: pairs, rated texts, or both, and how they become one forward pass.

Shape letters: P pairs, R rated texts, I = P + R items, B = 2P + R rows, L tokens, K heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from textenv.agents.data.batch import TrainingBatch
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.utils.indexing import row_index

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
    template: str | None = None
    """How texts were rendered: "chat", or as prompt and completion joined; None if tokens were given."""

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
        return RewardBatch(self.episodes.to(device), pairs=self.pairs, template=self.template, **moved)

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
            template=self.template,
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
    values = {name: getattr(batch, name) for name in ("margin", "label", "ratings", "item", "template")}
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


def joined(parts: list[RewardBatch]) -> RewardBatch:
    """Pairs of all parts, then rated texts of all parts."""
    chosen = [part.episodes.select(slice(0, part.pairs)) for part in parts]
    rejected = [part.episodes.select(slice(part.pairs, 2 * part.pairs)) for part in parts]
    rated = [part.episodes.select(slice(2 * part.pairs, None)) for part in parts]
    sides = [side for side in [*chosen, *rejected, *rated] if len(side)]
    if not sides:
        raise ValueError("a reward model needs preference pairs or rated episodes, got none")
    count = sum(len(part) for part in parts)
    templates = sorted({part.template for part in parts if part.template is not None})
    if len(templates) > 1:
        raise ValueError("pairs and ratings must be all texts or all messages, got both")
    return RewardBatch(
        EpisodeBatch.concat(sides),
        pairs=sum(part.pairs for part in parts),
        margin=torch.cat([part.margin for part in parts]),
        label=torch.cat([part.label for part in parts]),
        ratings=torch.cat([part.ratings for part in parts]),
        item=torch.arange(count),
        template=templates[0] if templates else None,
    )
