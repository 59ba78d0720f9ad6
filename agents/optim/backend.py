"""What makes an optimizer step of a loss: gradients, clipping, moving the weights.

One face for the three ways in which weights lie in processes: whole in each (``Engine``, here), in parts by
FSDP2 (``sharding.ShardedEngine``) or in parts by DeepSpeed (``deepspeed_engine.ZeroEngine``).
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from textenv.agents.distributed import process_group
from textenv.agents.optim.fsdp import zero_stage
from textenv.agents.optim.master_weights import MasterWeights
from textenv.agents.optim.optimizer import clip_gradients

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent, Stats
    from textenv.agents.data.batch import Totals, TrainingBatch


class Engine:
    """Steps on weights that every process has whole.

    Args:
        agent: an agent whose optimizer was just made.
    """

    def __init__(self, agent: Agent) -> None:
        # Not a cycle: an agent's weights and files go when it goes, not when the garbage collector comes.
        self.agent: Agent = weakref.proxy(agent)
        # float16 gradients underflow unless the loss is scaled up; everywhere else the scaler passes through.
        half = agent.config.autocast == "float16"
        self.scaler = torch.amp.GradScaler(agent.policy.device.type, enabled=half)
        self.masters = MasterWeights(agent.optimizer)

    # -- a step ----------------------------------------------------------------------------------------------

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """The agent's loss of a micro-batch, and statistics."""
        return self.agent.loss(batch, totals)

    def backward(self, loss: Tensor) -> None:
        """Add up gradients."""
        self.scaler.scale(loss).backward()

    def reduce(self, bad: bool) -> bool:
        """Sum the gradients over the processes.

        Args:
            bad: whether this process found something wrong.

        Returns:
            Whether any process did.
        """
        return process_group.reduce_gradients(self.agent.parameters, bad)

    def step(self) -> Tensor | None:
        """Clip the gradients and move the weights.

        Returns:
            The gradient's norm before, a scalar tensor; None where the weights stay, for the scaled gradients
            overflowed float16, and the scale was lowered.

        Raises:
            ValueError: if the norm is NaN or infinite for another reason; the weights are as they were.
        """
        agent = self.agent
        self.masters.take_gradients()
        self.scaler.unscale_(agent.optimizer)
        try:
            norm = clip_gradients(self.masters.moved(agent.parameters), agent.config.max_grad_norm)
        except ValueError:
            scale = self.scaler.get_scale()
            self.scaler.update()
            if self.scaler.get_scale() >= scale:
                raise
            return None
        self.scaler.step(agent.optimizer)
        self.scaler.update()
        self.masters.give_weights()
        return norm

    def drop(self) -> None:
        """Forget the gradients."""
        self.agent.optimizer.zero_grad(set_to_none=True)
        self.masters.drop_gradients()

    def keep(self) -> None:
        """Take over weights that were moved outside of the optimizer (target heads)."""

    # -- whole weights ---------------------------------------------------------------------------------------

    def gathered(self) -> AbstractContextManager[None]:
        """Within the block every process has all weights, for passes without gradient it makes by itself."""
        return nullcontext()

    def whole(self, *, write: bool = False) -> AbstractContextManager[None]:
        """Within the block the agent's parameters and moments are ordinary tensors, to be saved or loaded.

        Every process enters it. The policy can't be called in there where weights are in parts.

        Args:
            write: put what the tensors are at the end of the block into the parts.
        """
        return nullcontext()


def start_engine(agent: Agent) -> Engine:
    """The engine that the launcher's configuration asks for, for an agent whose optimizer was just made.

    Raises:
        ValueError: for settings that do not go together with it.
    """
    if stage := zero_stage():
        from textenv.agents.optim.deepspeed import ZeroEngine

        return ZeroEngine(agent, stage)
    if agent.sharded:
        from textenv.agents.optim.sharded import ShardedEngine

        return ShardedEngine(agent)
    return Engine(agent)
