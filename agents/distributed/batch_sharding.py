"""Several processes: every process holds the whole batch, and runs the model on its own rows of it.

A batch is small compared with the model. The processes exchange their episodes once, and each computes the
statistics of the whole batch (whitening, group baselines, running means, KL controllers, metrics), with equal
results. Only the model's passes are divided. ``data_parallel`` is the interface to this module. Shape
letters: B episodes, L tokens, W processes.
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
from textenv.episodes.batch import EpisodeBatch


@dataclass(frozen=True)
class LocalRows:
    """This process's rows of a batch that all processes hold."""

    own: EpisodeBatch
    """The episodes of this process."""
    rows: list[Tensor]
    """Rows of the whole batch that each process works on: W times (b,) int64."""

    def assemble(self, found: Mapping[str, Tensor], whole: EpisodeBatch) -> dict[str, Tensor]:
        """Combine the results of all processes.

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


_divided: Any = WeakTensorKeyDictionary()
"""``input_ids`` of a whole batch -> its ``LocalRows``."""
_off = False


def local_rows(episodes: EpisodeBatch) -> LocalRows | None:
    """See ``data_parallel.local_rows``."""
    return None if _off else _divided.get(episodes.input_ids)


@contextmanager
def local_only() -> Iterator[None]:
    """See ``data_parallel.local_only``."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


def gather_episodes(own: EpisodeBatch, device: torch.device | None = None) -> EpisodeBatch:
    """See ``data_parallel.gather_episodes``."""
    parts = process_group.gather(own.to("cpu"))
    for part in parts:
        part.sampling = dict(own.sampling)
    joined = EpisodeBatch.concat(parts)
    order = torch.argsort(joined.episode_id, stable=True)
    whole = joined.select(order).to(device or own.device)
    rows = order.argsort().split([len(part) for part in parts])
    _divided[whole.input_ids] = LocalRows(own.to(whole.device), list(rows))
    return whole


def shard_rows(episodes: EpisodeBatch) -> EpisodeBatch:
    """See ``data_parallel.shard_rows``; a batch with fewer rows than processes is not divided."""
    processes = process_group.world_size()
    if local_rows(episodes) is None and len(episodes) >= processes:
        rows = [rows_of_rank(rank, episodes.lengths) for rank in range(processes)]
        _divided[episodes.input_ids] = LocalRows(episodes.select(rows[process_group.rank()]), rows)
    return episodes


def score_episodes(episodes: EpisodeBatch, wrappers: Sequence[Any]) -> None:
    """See ``data_parallel.score_episodes``."""
    local = local_rows(shard_rows(episodes))
    if local is None:
        scorer.score_episodes(episodes, wrappers)
        return
    error: scorer.RewardError | None = None
    with process_group.collective("scoring"):
        try:
            scorer.score_episodes(local.own, wrappers)
        except scorer.RewardError as raised:
            error = raised
    failed = process_group.first_not_none(None if error is None else str(error))
    if failed is not None:
        raise error or scorer.RewardError(failed)
    found = local.assemble({"": local.own.rewards, **local.own.reward_terms}, episodes)
    episodes.rewards = found.pop("")
    episodes.reward_terms = found


def rows_of_rank(rank: int, lengths: Tensor) -> Tensor:
    """Rows of one process, by length so that all have the same amount of work: (B,) -> (b,) int64."""
    order = torch.argsort(lengths.cpu(), descending=True, stable=True)
    return order[rank :: process_group.world_size()]


def microbatches(
    batch: TrainingBatch, max_tokens: int, *, lockstep: bool = False
) -> Iterator[tuple[TrainingBatch, bool]]:
    """See ``data_parallel.microbatches``; the micro-batches that do not count are the shortest row."""
    lengths = batch.row_lengths
    rows = rows_of_rank(process_group.rank(), lengths)
    own = list(batch.select(rows).microbatches(max_tokens)) if len(rows) else []
    count = int(process_group.all_reduce_max(len(own))[0]) if lockstep else max(1, len(own))
    for part in own:
        yield part, True
    for _ in range(count - len(own)):
        yield batch.select(lengths.argmin().reshape(1).cpu()), False
