"""One optimizer step on all rows of a batch, in micro-batches; trouble is told before the weights change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from textenv.agents import distributed
from textenv.agents.batch import TrainingBatch
from textenv.agents.optim import clip_gradients
from textenv.agents.shares import parts_of
from textenv.episodes import EpisodeBatch

if TYPE_CHECKING:
    from textenv.agents.base import Agent, Stats

Bad = tuple[dict[str, float], EpisodeBatch]
"""Statistics and episodes of a micro-batch whose loss was not finite."""


def optimizer_step(agent: Agent, batch: TrainingBatch) -> dict[str, float]:
    """Make the step; the gradient does not depend on how the batch is split, nor over how many processes.

    Every process holds the whole batch, passes over its own rows, and adds up gradients and statistics with
    the others: losses are divided by denominators of the whole batch.

    Returns:
        The sum of each statistic over the micro-batches, and the gradient's norm.

    Raises:
        Diverged: on a NaN or infinite loss or gradient, in every process, before the weights change; the
            episodes are saved.
    """
    batch = batch.to(agent.policy.device)
    totals = agent.totals(batch)
    sums: Stats = {}
    bad: Bad | None = None
    agent.policy.train()
    for part, counts in parts_of(batch, agent.config.max_tokens_per_microbatch, in_step=agent.sharded):
        loss, stats = agent.loss(part, totals)
        stats = {"loss": loss.detach(), **stats}
        if not counts:
            loss, stats = loss * 0.0, {name: torch.zeros_like(value) for name, value in stats.items()}
        for name, value in stats.items():
            sums[name] = sums[name] + value if name in sums else value
        if bad is None and not bool(torch.isfinite(loss)):
            bad = {k: float(v) for k, v in stats.items()}, part.episodes
            if distributed.alone():
                break
        agent.scaler.scale(loss).backward()
    if distributed.reduce_gradients(agent.parameters, bad is not None):
        agent.optimizer.zero_grad(set_to_none=True)
        values, episodes = _first(bad)
        raise agent.failure("loss", values, episodes)
    agent.scaler.unscale_(agent.optimizer)
    try:
        norm = clip_gradients(agent.parameters, agent.config.max_grad_norm)
    except ValueError as error:
        if not agent.scaler.is_enabled():
            agent.optimizer.zero_grad(set_to_none=True)
            known = _read(sums)
            raise agent.failure("gradient", known, batch.episodes) from error
        # Too large a scale: the scaler skips the step and lowers it.
        norm = torch.full_like(sums["loss"], torch.nan)
    agent.scaler.step(agent.optimizer)
    agent.scaler.update()
    agent.schedule.step()
    agent.optimizer.zero_grad(set_to_none=True)
    agent.optimizer_steps += 1
    agent.after_step()
    return _read(sums, grad_norm=norm)


def _read(stats: Stats, **same: Tensor) -> dict[str, float]:
    """Sums of the statistics over the processes, and what is the same in all, in one look at the device."""
    values = torch.stack([value.double() for value in [*stats.values(), *same.values()]]).tolist()
    summed = distributed.total(*values[: len(stats)])
    return dict(zip([*stats, *same], [*summed, *values[len(stats) :]], strict=True))


def _first(bad: Bad | None) -> Bad:
    """The first process's trouble."""
    found = distributed.first(None if bad is None else (bad[0], bad[1].to("cpu")))
    assert found is not None
    return found
