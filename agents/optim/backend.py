"""Gradients, clipping and the step of the weights, behind one interface.

There are three backends. ``Backend`` (here) holds the weights whole in every process,
``fsdp.ShardedBackend`` in shards by FSDP2, and ``deepspeed.ZeroBackend`` in shards by DeepSpeed.
``optim.setup.make_backend`` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.distributed import process_group
from textenv.agents.optim.master_weights import KEY, MasterWeights
from textenv.agents.optim.optimizer import clip_gradients

Stats = dict[str, Tensor]
"""Statistics of a micro-batch: name -> scalar; they add up over the micro-batches of an optimizer step."""
LossFunction = Callable[[TrainingBatch, Totals], tuple[Tensor, Stats]]
"""``Agent.loss``: the loss of a micro-batch divided by the totals of the optimizer step, and statistics."""


class Backend:
    """Optimizer steps on weights that every process holds whole.

    Args:
        policy: the module that holds the weights.
        parameters: the trainable parameters, the same in every process and in the same order.
        optimizer: an optimizer of these parameters; it must not have made a step.
        autocast: number format of matrix products; "float16" scales the loss.
        max_grad_norm: gradients are scaled down to this L2 norm; None leaves them as they are.
    """

    lockstep = False
    """Whether all processes must run the same number of forward passes, because the weights are in shards."""

    def __init__(
        self,
        policy: Any,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        *,
        autocast: str = "float32",
        max_grad_norm: float | None = None,
    ) -> None:
        self.policy = policy
        self.parameters: Sequence[Any] = parameters
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        # float16 gradients underflow unless the loss is scaled up; everywhere else the scaler passes through.
        self.scaler = torch.amp.GradScaler(policy.device.type, enabled=autocast == "float16")
        self.masters = MasterWeights(optimizer)

    def wrap(self, loss_fn: LossFunction) -> LossFunction:
        """The loss function as the backend has to call it."""
        return loss_fn

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss`` to those of the earlier micro-batches."""
        self.scaler.scale(loss).backward()

    def reduce(self, failed: bool) -> bool:
        """Sum the gradients over the processes.

        Args:
            failed: whether this process has a loss that is not finite.

        Returns:
            Whether any process has.
        """
        return process_group.all_reduce_gradients(self.parameters, failed)

    def step(self) -> Tensor | None:
        """Clip the gradients and move the weights.

        Returns:
            The gradient norm before clipping, a scalar tensor. None if the weights did not move because the
            scaled gradients overflowed float16; the scale is then lower in the next step.

        Raises:
            ValueError: if the norm is NaN or infinite for another reason; the weights are as before.
        """
        self.masters.take_gradients()
        self.scaler.unscale_(self.optimizer)
        try:
            norm = clip_gradients(self.masters.moved(self.parameters), self.max_grad_norm)
        except ValueError:
            scale = self.scaler.get_scale()
            self.scaler.update()
            if self.scaler.get_scale() >= scale:
                raise
            return None
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.masters.give_weights()
        return norm

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        self.masters.drop_gradients()

    def sync_weights(self) -> None:
        """Take over weights that were changed outside of the optimizer (target heads)."""

    def summon_full_params(self) -> AbstractContextManager[None]:
        """Within the block every process holds all weights, for forward passes without gradients."""
        return nullcontext()

    def unsharded_state(self, *, write: bool = False) -> AbstractContextManager[None]:
        """Within the block parameters and moments are ordinary tensors, to be saved or loaded.

        Every process enters the block. Where weights are in shards, the policy cannot be called in it.

        Args:
            write: write the tensors as they are at the end of the block back into the shards.
        """
        return nullcontext()

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's ``state_dict``, with the float32 copies of 16-bit weights as ``"master"``."""
        found = self.optimizer.state_dict()
        state = {index: dict(values) for index, values in found["state"].items()}
        for index, master in self.masters.tensors().items():
            state.setdefault(index, {})[KEY] = master
        return {**found, "state": state}

    def load_optimizer_state(self, state: dict[str, Any], scaler: dict[str, Any] | None) -> None:
        """Restore what ``optimizer_state`` gave, and the state of the loss scaler if there is one."""
        for own, saved in zip(self.optimizer.param_groups, state["param_groups"], strict=True):
            # Which kernels compute the step is a matter of this machine, not of the one that saved.
            saved |= {name: own[name] for name in ("fused", "foreach") if name in own}
        self.masters.load(state["state"])
        self.optimizer.load_state_dict(state)
        if scaler is not None:
            self.scaler.load_state_dict(scaler)
