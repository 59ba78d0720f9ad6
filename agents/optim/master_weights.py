"""float32 copies of 16-bit weights, which the optimizer updates instead of the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from textenv.agents.distributed.process_group import is_sharded

HALF = (torch.bfloat16, torch.float16)
KEY = "master"
"""Name of a copy among the tensors of an optimizer's state."""


def wider(tensor: Tensor) -> Tensor:
    """A detached tensor that accumulates small changes: 16-bit numbers as float32, others unchanged."""
    detached = tensor.detach()
    return detached.float() if detached.dtype in HALF else detached


class MasterWeights:
    """The float32 copies of an optimizer's 16-bit parameters; they replace the parameters in it.

    A change below about 0.4 % of a weight is rounded away in bfloat16, and below 0.05 % in float16, so steps
    and moments are made in float32 and the weights are rounded from the result (Micikevicius et al. 2018,
    "Mixed precision training", section 3.1). Without 16-bit parameters nothing is changed.

    Args:
        optimizer: one that has made no step yet.

    Raises:
        ValueError: for 16-bit parameters that are sharded.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._pairs: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
        index = 0
        for group in optimizer.param_groups:
            for place, weight in enumerate(group["params"]):
                if weight.dtype in HALF:
                    if is_sharded(weight):
                        raise ValueError(
                            "dtype must be float32 with sharded weights, got "
                            f"{str(weight.dtype).removeprefix('torch.')}; set autocast='bfloat16' instead"
                        )
                    group["params"][place] = master = nn.Parameter(weight.detach().float())
                    self._pairs[index] = weight, master
                index += 1

    def moved(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """The parameters, those with a copy replaced by it."""
        copies = {id(weight): master for weight, master in self._pairs.values()}
        return [copies.get(id(parameter), parameter) for parameter in parameters]

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Move the weights' gradients to the copies; a weight that was changed elsewhere is copied again."""
        for weight, master in self._pairs.values():
            master.copy_(torch.where(master.to(weight.dtype) == weight, master, weight.float()))
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None

    @torch.no_grad()
    def give_weights(self) -> None:
        """Write the rounded copies to the weights."""
        for weight, master in self._pairs.values():
            weight.copy_(master)

    def drop_gradients(self) -> None:
        """Drop gradients that were not moved to the copies."""
        for weight, _ in self._pairs.values():
            weight.grad = None

    def tensors(self) -> dict[int, Tensor]:
        """The copies by the parameter's index in the optimizer."""
        return {index: master.detach().cpu() for index, (_, master) in self._pairs.items()}

    @torch.no_grad()
    def load(self, state: dict[int, dict[str, object]]) -> None:
        """Load the copies from an optimizer's state by index, and remove them from it."""
        for index, values in state.items():
            saved = values.pop(KEY, None)
            if isinstance(saved, Tensor) and index in self._pairs:
                self._pairs[index][1].copy_(saved)
