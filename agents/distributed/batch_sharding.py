"""Shares: every process holds the whole batch, and works on its own rows of it.

A batch is small beside the model, so the processes exchange their episodes once and then compute statistics
of the whole batch (whitening, baselines of groups, running means, KL controllers, metrics) each for itself,
with equal results. Passes of the model are made for a process's own rows only. Shape letters: B episodes, L
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from textenv import scoring as scorer
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.distributed import process_group
from textenv.agents.settings.base import OnlineConfig
from textenv.episodes.batch import EpisodeBatch


@dataclass(frozen=True)
class Share:
    """What part of a batch is this process's."""

    own: EpisodeBatch
    """The episodes of this process."""
    rows: list[Tensor]
    """Rows of the whole batch that each process holds: W times (b,) int64."""

    def assemble(self, found: Mapping[str, Tensor], whole: EpisodeBatch) -> dict[str, Tensor]:
        """Put the processes' results together.

        Args:
            found: tensors about ``own``, (b, l) or (b,), by names that are the same in every process.
            whole: the batch.

        Returns:
            The same about ``whole``: (B, L) or (B,), 0 beyond a process's longest row.
        """
        parts = process_group.gather({name: value.cpu() for name, value in found.items()})
        result: dict[str, Tensor] = {}
        for name, own in parts[0].items():
            joined = own.new_zeros(whole.input_ids.shape[: own.dim()])
            for rows, part in zip(self.rows, parts, strict=True):
                if own.dim() == 2:
                    joined[rows, : part[name].shape[1]] = part[name]
                else:
                    joined[rows] = part[name]
            result[name] = joined.to(found[name].device)
        return result


_shares: Any = WeakTensorKeyDictionary()
"""``input_ids`` of a whole batch -> its share."""
_off = False


def share_of(episodes: EpisodeBatch) -> Share | None:
    """This process's share of a batch that all processes hold; None if they do not, or there is one."""
    return None if _off else _shares.get(episodes.input_ids)


@contextmanager
def by_itself() -> Iterator[None]:
    """Within the block this process passes over whole batches: the others are not there to do their share."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


def gather_episodes(own: EpisodeBatch, device: torch.device | None = None) -> EpisodeBatch:
    """The episodes of all processes in ticket order, the same in each process.

    Args:
        own: what this process played.
        device: where the whole batch is to be; None = where ``own`` is.
    """
    if process_group.alone():
        return own
    parts = process_group.gather(own.to("cpu"))
    for part in parts:
        part.sampling = dict(own.sampling)
    joined = EpisodeBatch.concat(parts)
    order = torch.argsort(joined.episode_id, stable=True)
    whole = joined.select(order).to(device or own.device)
    rows = order.argsort().split([len(part) for part in parts])
    _shares[whole.input_ids] = Share(own.to(whole.device), list(rows))
    return whole


def spread(episodes: EpisodeBatch) -> EpisodeBatch:
    """Share out the passes without gradient over ``episodes``, which every process holds; gives them back."""
    known = share_of(episodes) is not None
    if not known and not process_group.alone() and len(episodes) >= process_group.world_size():
        rows = [rows_of(number, episodes.lengths) for number in range(process_group.world_size())]
        _shares[episodes.input_ids] = Share(episodes.select(rows[process_group.rank()]), rows)
    return episodes


def score_share(episodes: EpisodeBatch, wrappers: Sequence[Any]) -> None:
    """Pay the rewards of a batch, in place: each process asks for those of its own rows.

    Raises:
        RewardError: in every process, if a reward fails in one.
    """
    share = share_of(spread(episodes))
    if share is None:
        scorer.score_episodes(episodes, wrappers)
        return
    error: scorer.RewardError | None = None
    with process_group.joined("scoring"):
        try:
            scorer.score_episodes(share.own, wrappers)
        except scorer.RewardError as raised:
            error = raised
    failed = process_group.first(None if error is None else str(error))
    if failed is not None:
        raise error or scorer.RewardError(failed)
    found = share.assemble({"": share.own.rewards, **share.own.reward_terms}, episodes)
    episodes.rewards = found.pop("")
    episodes.reward_terms = found


def check_shares(config: OnlineConfig) -> None:
    """Refuse minibatches that have no row for every process.

    Raises:
        ValueError: naming the settings and the number of processes.
    """
    processes, episodes = process_group.world_size(), config.episodes_per_iteration
    if episodes // config.minibatches < processes:
        raise ValueError(
            f"{processes} processes need episodes_per_iteration / minibatches >= {processes}, "
            f"got {episodes} / {config.minibatches}"
        )


def rows_of(number: int, lengths: Tensor) -> Tensor:
    """Rows of process ``number``, dealt by length so that all have alike to do: (B,) -> (b,) int64."""
    order = torch.argsort(lengths.cpu(), descending=True, stable=True)
    return order[number :: process_group.world_size()]


def parts_of(
    batch: TrainingBatch, max_tokens: int, *, in_step: bool = False
) -> Iterator[tuple[TrainingBatch, bool]]:
    """This process's micro-batches of an optimizer step's batch.

    Args:
        batch: all rows, of all processes.
        max_tokens: padded tokens of a micro-batch.
        in_step: every process gets as many, because their passes need each other (sharded weights).

    Yields:
        (micro-batch, whether it counts). A process that has none, or fewer than another that it must keep up
        with, gets ones that do not: the shortest row, to be passed through for nothing.
    """
    if process_group.alone():
        for part in batch.microbatches(max_tokens):
            yield part, True
        return
    lengths = batch.row_lengths
    rows = rows_of(process_group.rank(), lengths)
    own = list(batch.select(rows).microbatches(max_tokens)) if len(rows) else []
    count = int(process_group.largest(len(own))[0]) if in_step else max(1, len(own))
    for part in own:
        yield part, True
    for _ in range(count - len(own)):
        yield batch.select(lengths.argmin().reshape(1).cpu()), False
