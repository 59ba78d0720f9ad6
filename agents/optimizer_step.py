"""One optimizer step on all rows of a batch, in micro-batches; trouble is told before the weights change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from textenv.agents.batch import TrainingBatch
from textenv.agents.optim import clip_gradients

if TYPE_CHECKING:
    from textenv.agents.base import Agent, Stats


def optimizer_step(agent: Agent, batch: TrainingBatch) -> dict[str, float]:
    """Make the step; the gradient does not depend on how the batch is split.

    Returns:
        The sum of each statistic over the micro-batches, and the gradient's norm.

    Raises:
        Diverged: on a NaN or infinite loss or gradient, before the weights change; the episodes are saved.
    """
    batch = batch.to(agent.policy.device)
    totals = agent.totals(batch)
    sums: Stats = {}
    agent.policy.train()
    for part in batch.microbatches(agent.config.max_tokens_per_microbatch):
        loss, stats = agent.loss(part, totals)
        stats = {"loss": loss.detach(), **stats}
        for name, value in stats.items():
            sums[name] = sums[name] + value if name in sums else value
        if not bool(torch.isfinite(loss)):
            agent.optimizer.zero_grad(set_to_none=True)
            raise agent.failure("loss", {k: float(v) for k, v in stats.items()}, part.episodes)
        agent.scaler.scale(loss).backward()
    agent.scaler.unscale_(agent.optimizer)
    try:
        norm = clip_gradients(agent.parameters, agent.config.max_grad_norm)
    except ValueError as error:
        if not agent.scaler.is_enabled():
            agent.optimizer.zero_grad(set_to_none=True)
            known = {k: float(v) for k, v in sums.items()}
            raise agent.failure("gradient", known, batch.episodes) from error
        # Too large a scale: the scaler skips the step and lowers it.
        norm = torch.full_like(sums["loss"], torch.nan)
    agent.scaler.step(agent.optimizer)
    agent.scaler.update()
    agent.schedule.step()
    agent.optimizer.zero_grad(set_to_none=True)
    agent.optimizer_steps += 1
    agent.after_step()
    sums["grad_norm"] = norm
    values = torch.stack([value.double() for value in sums.values()]).tolist()  # one look at the device
    return dict(zip(sums, values, strict=True))
