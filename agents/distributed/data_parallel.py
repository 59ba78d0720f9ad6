"""Data parallelism, the interface: what changes where several processes train one agent.

Each function returns at once in a single process, which never imports ``batch_sharding``. Shape letters: B
episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from textenv import scoring as scorer
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.distributed import process_group
from textenv.episodes.batch import EpisodeBatch

if TYPE_CHECKING:
    from textenv.agents.distributed.batch_sharding import LocalRows


def gather_episodes(own: EpisodeBatch, device: torch.device | None = None) -> EpisodeBatch:
    """The episodes of all processes in the order of ``episode_id``, the same in each process.

    Args:
        own: the episodes that this process generated.
        device: device of the result; None = that of ``own``.
    """
    if process_group.world_size() == 1:
        return own
    from textenv.agents.distributed import batch_sharding

    return batch_sharding.gather_episodes(own, device)


def shard_rows(episodes: EpisodeBatch) -> EpisodeBatch:
    """Divide the forward passes over ``episodes``, which every process holds, among the processes.

    Returns:
        The same episodes; passes without gradient over them are shared from now on.
    """
    if process_group.world_size() == 1:
        return episodes
    from textenv.agents.distributed import batch_sharding

    return batch_sharding.shard_rows(episodes)


def local_rows(episodes: EpisodeBatch) -> LocalRows | None:
    """This process's rows of a batch that was divided by ``shard_rows`` or ``gather_episodes``; else None."""
    if process_group.world_size() == 1:
        return None
    from textenv.agents.distributed import batch_sharding

    return batch_sharding.local_rows(episodes)


def local_only() -> AbstractContextManager[None]:
    """Within the block, forward passes run on the full batch in this process only.

    Use it where the other processes do not take part (metrics in process 0).
    """
    if process_group.world_size() == 1:
        return nullcontext()
    from textenv.agents.distributed import batch_sharding

    return batch_sharding.local_only()


def score_episodes(episodes: EpisodeBatch, wrappers: Sequence[Any]) -> None:
    """Compute the rewards of a batch, in place; each process computes those of its rows.

    Raises:
        RewardError: in every process, if a reward fails in one.
    """
    if process_group.world_size() == 1:
        scorer.score_episodes(episodes, wrappers)
        return
    from textenv.agents.distributed import batch_sharding

    batch_sharding.score_episodes(episodes, wrappers)


def microbatches(
    batch: TrainingBatch, max_tokens: int, *, lockstep: bool = False
) -> Iterator[tuple[TrainingBatch, bool]]:
    """This process's micro-batches of the batch of an optimizer step.

    Args:
        batch: all rows, of all processes.
        max_tokens: padded tokens of a micro-batch.
        lockstep: whether all processes must run the same number of passes (sharded weights).

    Yields:
        (micro-batch, whether it counts). Only a process with too few micro-batches gets ones that do not
        count: their loss is multiplied by 0.
    """
    if process_group.world_size() == 1:
        yield from ((part, True) for part in batch.microbatches(max_tokens))
        return
    from textenv.agents.distributed import batch_sharding

    yield from batch_sharding.microbatches(batch, max_tokens, lockstep=lockstep)


def check_minibatches(episodes: int, minibatches: int) -> None:
    """Refuse minibatches that do not have a row for every process.

    Args:
        episodes: ``episodes_per_iteration``.
        minibatches: optimizer steps per pass over them.

    Raises:
        ValueError: naming the settings and the number of processes.
    """
    processes = process_group.world_size()
    if episodes // minibatches < processes:
        raise ValueError(
            f"{processes} processes need episodes_per_iteration / minibatches >= {processes}, "
            f"got {episodes} / {minibatches}"
        )
