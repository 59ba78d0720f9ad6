"""One optimizer step on all rows of a batch, in micro-batches; errors are raised before weights change."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.distributed import process_group
from textenv.agents.distributed.data_parallel import microbatches
from textenv.agents.optim.backend import Backend, LossFunction, Stats
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.log_probs import single_length_group


class NonFinite(Exception):
    """A loss or gradient was NaN or infinite; the weights are as before the step.

    Args:
        term: "loss" or "gradient".
        values: statistics of the micro-batch, or of the step.
        episodes: the episodes of the micro-batch, or of the step.
    """

    def __init__(self, term: str, values: dict[str, float], episodes: EpisodeBatch) -> None:
        super().__init__(f"the {term} is not finite")
        self.term, self.values, self.episodes = term, values, episodes


class StepResult(NamedTuple):
    """The result of one optimizer step."""

    stats: dict[str, float]
    """Sum of each statistic over the micro-batches, and ``grad_norm``; NaN if the step was skipped."""
    applied: bool
    """Whether the weights changed. The float16 scaler skips steps whose scaled gradients overflow."""


def optimizer_step(
    batch: TrainingBatch, totals: Totals, loss_fn: LossFunction, backend: Backend, *, max_tokens: int
) -> StepResult:
    """Compute the gradient in micro-batches and move the weights.

    The gradient depends neither on the split into micro-batches nor on the number of processes. Every process
    holds the whole batch, runs its own rows, and sums gradients and statistics with the others: losses are
    divided by denominators of the whole batch.

    Args:
        batch: all rows of the step, on the policy's device.
        totals: denominators of the step.
        loss_fn: the loss of a micro-batch and its statistics.
        backend: holds the weights and the optimizer.
        max_tokens: padded tokens of one micro-batch.

    Raises:
        NonFinite: on a NaN or infinite loss or gradient, in every process, before the weights change.
    """
    loss_fn = backend.wrap(loss_fn)
    sums: Stats = {}
    failed: tuple[dict[str, float], EpisodeBatch] | None = None
    for part, counts in microbatches(batch, max_tokens, lockstep=backend.lockstep):
        with single_length_group() if backend.lockstep else nullcontext():
            loss, stats = loss_fn(part, totals)
        stats = {"loss": loss.detach(), **stats}
        if not counts:
            loss, stats = loss * 0.0, {name: torch.zeros_like(value) for name, value in stats.items()}
        for name, value in stats.items():
            sums[name] = sums[name] + value if name in sums else value
        if failed is None and not bool(torch.isfinite(loss)):
            failed = {k: float(v) for k, v in stats.items()}, part.episodes
            if process_group.world_size() == 1:
                break
        backend.backward(loss)
    if backend.reduce(failed is not None):
        backend.zero_grad()
        first = process_group.first_not_none(None if failed is None else (failed[0], failed[1].to("cpu")))
        assert first is not None
        raise NonFinite("loss", *first)
    try:
        norm = backend.step()
    except ValueError as error:
        backend.zero_grad()
        raise NonFinite("gradient", _sums(sums), batch.episodes) from error
    backend.zero_grad()
    skipped = norm is None
    if norm is None:
        norm = torch.full((), torch.nan, device=batch.episodes.device)
    return StepResult(_sums(sums, grad_norm=norm), applied=not skipped)


def _sums(stats: Stats, **same: Tensor) -> dict[str, float]:
    """Statistics summed over the processes, and values equal in all, in one transfer from the device."""
    values = torch.stack([value.double() for value in [*stats.values(), *same.values()]]).tolist()
    summed = process_group.all_reduce_sum(*values[: len(stats)])
    return dict(zip([*stats, *same], [*summed, *values[len(stats) :]], strict=True))
