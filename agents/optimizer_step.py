"""One optimizer step on all rows of a batch, in micro-batches; trouble is told before the weights change."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from textenv.agents.batch import TrainingBatch
from textenv.agents.optim import clip_gradients
from textenv.agents.parallel import distributed
from textenv.agents.parallel.shares import parts_of
from textenv.episodes import EpisodeBatch
from textenv.log_probs import undivided

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
    totals, engine = agent.totals(batch), agent.engine
    run = agent.loss if engine is None else engine.loss
    sums: Stats = {}
    bad: Bad | None = None
    agent.policy.train()
    for part, counts in parts_of(batch, agent.config.max_tokens_per_microbatch, in_step=agent.sharded):
        with undivided() if agent.sharded else nullcontext():
            loss, stats = run(part, totals)
        stats = {"loss": loss.detach(), **stats}
        if not counts:
            loss, stats = loss * 0.0, {name: torch.zeros_like(value) for name, value in stats.items()}
        for name, value in stats.items():
            sums[name] = sums[name] + value if name in sums else value
        if bad is None and not bool(torch.isfinite(loss)):
            bad = {k: float(v) for k, v in stats.items()}, part.episodes
            if distributed.alone():
                break
        if engine is None:
            agent.scaler.scale(loss).backward()
        else:
            engine.backward(loss)
    if distributed.reduce_gradients(() if engine is not None else agent.parameters, bad is not None):
        _drop_gradients(agent)
        values, episodes = _first(bad)
        raise agent.failure("loss", values, episodes)
    try:
        norm = _move(agent) if engine is None else engine.step()
    except ValueError as error:
        _drop_gradients(agent)
        raise agent.failure("gradient", _read(sums), batch.episodes) from error
    agent.schedule.step()
    _drop_gradients(agent)
    agent.optimizer_steps += 1
    agent.after_step()
    if engine is not None:
        engine.keep()
    return _read(sums, grad_norm=norm)


def _move(agent: Agent) -> Tensor:
    """Clip the gradients and move the weights; the norm before, which is NaN where the scaler skips a step.

    Raises:
        ValueError: if the norm is NaN or infinite and no scaler is in use.
    """
    agent.scaler.unscale_(agent.optimizer)
    try:
        norm = clip_gradients(agent.parameters, agent.config.max_grad_norm)
    except ValueError:
        if not agent.scaler.is_enabled():
            raise
        # Too large a scale: the scaler skips the step and lowers it.
        norm = torch.tensor(torch.nan, device=agent.policy.device)
    agent.scaler.step(agent.optimizer)
    agent.scaler.update()
    return norm


def _drop_gradients(agent: Agent) -> None:
    if agent.engine is None:
        agent.optimizer.zero_grad(set_to_none=True)
    else:
        agent.engine.drop()


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
