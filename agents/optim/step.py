"""One optimizer step on all rows of a batch, in micro-batches; trouble is told before the weights change."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from textenv.agents.data.batch import TrainingBatch
from textenv.agents.distributed import process_group
from textenv.agents.distributed.batch_sharding import parts_of
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.log_probs import undivided

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent, Stats

Bad = tuple[dict[str, float], EpisodeBatch]
"""Statistics and episodes of a micro-batch whose loss was not finite."""


def optimizer_step(agent: Agent, batch: TrainingBatch) -> dict[str, float]:
    """Make the step; the gradient does not depend on how the batch is split, nor over how many processes.

    Every process holds the whole batch, passes over its own rows, and adds up gradients and statistics with
    the others: losses are divided by denominators of the whole batch.

    A step that the float16 scaler skips leaves weights, schedule, averages and counters as they are.

    Returns:
        The sum of each statistic over the micro-batches, and the gradient's norm; NaN for a skipped step.

    Raises:
        Diverged: on a NaN or infinite loss or gradient, in every process, before the weights change; the
            episodes are saved.
    """
    batch = batch.to(agent.policy.device)
    totals, engine = agent.totals(batch), agent.engine
    sums: Stats = {}
    bad: Bad | None = None
    agent.policy.train()
    for part, counts in parts_of(batch, agent.config.max_tokens_per_microbatch, in_step=agent.sharded):
        with undivided() if agent.sharded else nullcontext():
            loss, stats = engine.loss(part, totals)
        stats = {"loss": loss.detach(), **stats}
        if not counts:
            loss, stats = loss * 0.0, {name: torch.zeros_like(value) for name, value in stats.items()}
        for name, value in stats.items():
            sums[name] = sums[name] + value if name in sums else value
        if bad is None and not bool(torch.isfinite(loss)):
            bad = {k: float(v) for k, v in stats.items()}, part.episodes
            if process_group.alone():
                break
        engine.backward(loss)
    if engine.reduce(bad is not None):
        engine.drop()
        values, episodes = _first(bad)
        raise agent.failure("loss", values, episodes)
    try:
        norm = engine.step()
    except ValueError as error:
        engine.drop()
        raise agent.failure("gradient", _read(sums), batch.episodes) from error
    engine.drop()
    if norm is None:  # no step was made, so none is counted
        return _read(sums, grad_norm=torch.full((), torch.nan, device=agent.policy.device))
    agent.schedule.step()
    agent.optimizer_steps += 1
    agent.after_step()
    engine.keep()
    return _read(sums, grad_norm=norm)


def _read(stats: Stats, **same: Tensor) -> dict[str, float]:
    """Sums of the statistics over the processes, and what is the same in all, in one look at the device."""
    values = torch.stack([value.double() for value in [*stats.values(), *same.values()]]).tolist()
    summed = process_group.total(*values[: len(stats)])
    return dict(zip([*stats, *same], [*summed, *values[len(stats) :]], strict=True))


def _first(bad: Bad | None) -> Bad:
    """The first process's trouble."""
    found = process_group.first(None if bad is None else (bad[0], bad[1].to("cpu")))
    assert found is not None
    return found
