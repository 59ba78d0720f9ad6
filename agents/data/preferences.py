"""What preference agents learn from: two episodes a row, of pairs or of responses beside mismatched ones.

Shape letters: P rows of two episodes, B = 2P episodes, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textenv.agents.data.batch import TrainingBatch
from textenv.agents.data.episodes import from_rankings, text_records
from textenv.envs.token_constraints import TokenConstraints
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.utils.hashing import hash_key
from textenv.utils.indexing import row_index
from textenv.utils.names import shown

if TYPE_CHECKING:
    from textenv.data.records import Records


class PairedBatch(TrainingBatch):
    """P rows of two episodes: episode i and episode P + i belong together and are never separated.

    ``len`` and ``select`` are about rows; ``tensors`` are aligned with the 2P episodes.

    Raises:
        ValueError: if the number of episodes is odd.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.episodes) % 2:
            raise ValueError(f"a paired batch must hold an even number of episodes, got {len(self.episodes)}")

    def __len__(self) -> int:
        return len(self.episodes) // 2

    @property
    def row_lengths(self) -> Tensor:
        """(P,) int64: tokens of both episodes of each row."""
        return self.episodes.lengths.view(2, len(self)).sum(0)

    @classmethod
    def of_pairs(cls, pairs: PreferenceBatch) -> PairedBatch:
        """Chosen episodes, then rejected ones; margins and labels stand at both.

        Raises:
            ValueError: if there is no pair, or an episode has nothing that the policy chose.
        """
        if not len(pairs):
            raise ValueError("preference learning needs at least one pair, got none")
        batch = cls(EpisodeBatch.concat([tokens_and_rule(pairs.chosen), tokens_and_rule(pairs.rejected)]))
        silent = batch.episodes.response_lengths == 0
        if bool(silent.any()):
            side, row = divmod(int(silent.nonzero()[0]), len(pairs))
            raise ValueError(f"{('chosen', 'rejected')[side]}[{row}] must hold at least one action, got none")
        for name in ("margin", "label"):
            value = getattr(pairs, name)
            if value is not None:
                batch.tensors[name] = value.float().repeat(2)
        return batch

    def first(self) -> TrainingBatch:
        """The first episode of each row, with its tensors."""
        return super().select(torch.arange(len(self)))

    def second(self) -> TrainingBatch:
        """The second episode of each row, with its tensors."""
        return super().select(torch.arange(len(self), 2 * len(self)))

    def to(self, device: torch.device | str) -> PairedBatch:
        """The same on another device."""
        moved = super().to(device)
        return PairedBatch(moved.episodes, moved.tensors)

    def select(self, index: Tensor) -> PairedBatch:
        """Rows by index (p,) int64."""
        index = row_index(index, len(self))
        chosen = super().select(torch.cat([index, index + len(self)]))
        return PairedBatch(chosen.episodes, chosen.tensors)

    def microbatches(self, max_tokens: int) -> Iterator[PairedBatch]:
        """Length-sorted parts of at most ``max_tokens`` padded tokens, or one row; no row is split."""
        if len(self.episodes) * self.episodes.input_ids.shape[1] <= max_tokens:
            yield self
            return
        longest = self.episodes.lengths.view(2, len(self)).amax(0)
        order = torch.argsort(longest, descending=True, stable=True)
        sizes, start = longest[order].tolist(), 0
        while start < len(sizes):
            stop = min(len(sizes), start + max(1, max_tokens // (2 * sizes[start])))
            yield self.select(order[start:stop])
            start = stop


def tokens_and_rule(episodes: EpisodeBatch) -> EpisodeBatch:
    """The episodes without rewards, columns and how they were sampled; the rule of legal tokens stays."""
    rule = TokenConstraints.from_sampling(episodes.sampling)
    return EpisodeBatch(
        input_ids=episodes.input_ids,
        attention_mask=episodes.attention_mask,
        prompt_lengths=episodes.prompt_lengths,
        action_mask=episodes.action_mask,
        sampling={} if rule is None else rule.to_sampling(),
    )


def as_pairs(
    dataset: Any, tokenizer: Any, *, max_length: int | None = None, pairs_per_prompt: int = 16
) -> PreferenceBatch:
    """Turn a data set into preference pairs.

    Args:
        dataset: a ``PreferenceBatch``; an ``EpisodeBatch`` with rewards (see ``pairs_from_returns``); or
            anything that ``textenv.data.load_columns`` reads, with the columns prompt, chosen, rejected (and
            margin, label), with prompt, completion and reward, or with prompt and completions (ranked, best
            first).
        tokenizer: needed for everything that is text.
        max_length: longest text in tokens; longer ones lose their end.
        pairs_per_prompt: at most so many pairs where they are made from returns.

    Raises:
        ValueError: if text is given without a tokenizer, or the columns are none of these.
    """
    if isinstance(dataset, PreferenceBatch):
        return dataset
    if isinstance(dataset, EpisodeBatch):
        return pairs_from_returns(dataset, per_prompt=pairs_per_prompt)
    records = text_records(dataset, tokenizer)
    columns = set(records.columns)
    from textenv.data.loading import episodes_from_records, preferences_from_records

    if {"chosen", "rejected"} <= columns:
        return preferences_from_records(records, tokenizer, max_length=max_length)
    if "completions" in columns:
        return pairs_from_returns(from_rankings(records, tokenizer), per_prompt=pairs_per_prompt)
    if "reward" in columns:
        episodes = episodes_from_records(records, tokenizer, max_length=max_length)
        return pairs_from_returns(episodes, per_prompt=pairs_per_prompt)
    raise ValueError(
        f"{records.name} must have the columns chosen and rejected, completions, or reward; "
        f"it has {', '.join(sorted(columns)) or 'none'}"
    )


def makes_pairs(dataset: EpisodeBatch | PreferenceBatch | Records) -> bool:
    """Whether ``as_pairs`` makes the pairs of a data set from returns or rankings."""
    if isinstance(dataset, EpisodeBatch | PreferenceBatch):
        return isinstance(dataset, EpisodeBatch)
    return not {"chosen", "rejected"} <= set(dataset.columns)


def as_labelled(
    dataset: Any, tokenizer: Any, *, max_length: int | None = None
) -> tuple[EpisodeBatch, Tensor]:
    """Turn a data set into responses that are desirable or not.

    Args:
        dataset: pairs in any form that ``as_pairs`` takes (chosen ones are desirable, rejected ones not);
            prompt, completion and label (bool) in any form that ``textenv.data.load_columns`` reads; or an
            ``EpisodeBatch`` with an extra column label, or else with rewards: then a response is desirable
            if its return is above the mean.
        tokenizer: needed for everything that is text.
        max_length: longest text in tokens; longer ones lose their end.

    Returns:
        B episodes, and (B,) bool which of them are desirable.

    Raises:
        ValueError: if text is given without a tokenizer, the columns are none of these, or all responses are
            of one kind.
    """
    if not isinstance(dataset, PreferenceBatch | EpisodeBatch):
        records = text_records(dataset, tokenizer)
        if "label" in records.columns and "completion" in records.columns:
            from textenv.data.loading import episodes_from_records

            records = records.require("label")
            dataset = episodes_from_records(records, tokenizer, max_length=max_length)
        else:
            dataset = as_pairs(dataset, tokenizer, max_length=max_length)
    if isinstance(dataset, PreferenceBatch):
        episodes = PairedBatch.of_pairs(dataset).episodes
        desirable = torch.arange(len(episodes)) < len(dataset)
    elif "label" in dataset.extras:
        episodes, desirable = dataset, torch.tensor([_flag(value) for value in dataset.extras["label"]])
    else:
        episodes, desirable = dataset, (dataset.returns > dataset.returns.mean()).cpu()
    if bool(desirable.all()) or not bool(desirable.any()):
        kind = "desirable" if bool(desirable.all()) else "undesirable"
        raise ValueError(f"the data set must hold desirable and undesirable responses, got {kind} ones alone")
    return tokens_and_rule(episodes), desirable.to(episodes.device)


def pairs_from_returns(episodes: EpisodeBatch, *, per_prompt: int = 16, seed: int = 0) -> PreferenceBatch:
    """Pairs of episodes on the same prompt, the one with the higher return preferred.

    Args:
        episodes: with rewards.
        per_prompt: at most so many pairs of a prompt, drawn by hash from all that differ in return.
        seed: of that draw.

    Raises:
        ValueError: if no two episodes on the same prompt differ in return.

    Example:
        >>> logged = EpisodeBatch.from_ids([[1], [1], [2]], [[5], [6, 7], [8]], rewards=[0.0, 1.0, 1.0])
        >>> pairs = pairs_from_returns(logged)
        >>> pairs.chosen.input_ids.tolist(), pairs.rejected.input_ids.tolist()
        ([[1, 6, 7]], [[1, 5]])
    """
    returns = episodes.returns.cpu()
    better: list[Tensor] = []
    worse: list[Tensor] = []
    for rows in rows_by_prompt(episodes):
        above = returns[rows].unsqueeze(1) > returns[rows].unsqueeze(0)
        winner, loser = above.nonzero(as_tuple=True)
        kept = torch.argsort(hash_key(seed, rows[winner], rows[loser]))[:per_prompt]
        better.append(rows[winner[kept]])
        worse.append(rows[loser[kept]])
    if not sum(map(len, better)):
        raise ValueError("no two episodes on the same prompt differ in return, so there is no pair to learn")
    return PreferenceBatch(
        chosen=episodes.select(torch.cat(better)), rejected=episodes.select(torch.cat(worse))
    )


def rows_by_prompt(episodes: EpisodeBatch) -> list[Tensor]:
    """Rows of each prompt's episodes, (n,) int64 each, prompts told apart by their tokens."""
    groups: dict[tuple[int, ...], list[int]] = {}
    ids, lengths = episodes.input_ids.tolist(), episodes.prompt_lengths.tolist()
    for row, (tokens, length) in enumerate(zip(ids, lengths, strict=True)):
        groups.setdefault(tuple(tokens[:length]), []).append(row)
    return [torch.tensor(rows) for rows in groups.values()]


def mismatched(episodes: EpisodeBatch) -> EpisodeBatch:
    """Each episode's prompt with the response to another prompt (where there is one): B episodes.

    Raises:
        ValueError: if there are fewer than two episodes.
    """
    if len(episodes) < 2:
        raise ValueError(f"mismatched responses need at least 2 episodes, got {len(episodes)}")
    groups = rows_by_prompt(episodes)
    order = torch.cat(groups).tolist()
    # With episodes of a prompt side by side, a shift by the largest group leaves every group.
    shift = min(max(map(len, groups)), len(order) - 1)
    donor = {row: order[(place + shift) % len(order)] for place, row in enumerate(order)}
    ids, mask = episodes.input_ids.tolist(), episodes.action_mask.tolist()
    lengths, starts = episodes.lengths.tolist(), episodes.prompt_lengths.tolist()
    prompts = [ids[row][: starts[row]] for row in range(len(order))]
    others = [donor[row] for row in range(len(order))]
    joined = EpisodeBatch.from_ids(
        prompts,
        [ids[other][starts[other] : lengths[other]] for other in others],
        sampling=dict(episodes.sampling),
    )
    for row, other in enumerate(others):
        own = mask[other][starts[other] : lengths[other]]
        joined.action_mask[row, starts[row] : starts[row] + len(own)] = torch.tensor(own, dtype=torch.bool)
    return joined.to(episodes.device)


def _flag(value: Any) -> bool:
    given = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(given, bool | int | float) or given not in (0, 1):
        raise ValueError(f"label must be true or false, got {shown(value)}")
    return bool(given)
