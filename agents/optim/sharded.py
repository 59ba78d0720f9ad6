"""Steps on weights that FSDP2 keeps in parts, and how they become whole for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import distribute_tensor

from textenv.agents.distributed import process_group
from textenv.agents.optim.backend import Engine


class ShardedEngine(Engine):
    """Steps of an agent whose blocks ``sharding.shard`` has sharded."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather the blocks once, and keep them whole within the block."""
        parts: list[Any] = [part for part in self.agent.policy.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(part.reshards)
                part.reshard()

    @contextmanager
    def whole(self, *, write: bool = False) -> Iterator[None]:
        """Put whole tensors in the place of sharded ones, and the shards back at the end.

        Args:
            write: put what the tensors are at the end of the block into the shards.
        """
        agent = self.agent
        places = [
            (module, name, parameter)
            for module in agent.policy.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and process_group.is_sharded(parameter)
        ]
        # After loading, FSDP's hooks look for the shards, which are not in place before the end of the block.
        hooks = {module: module._load_state_dict_post_hooks for module, _, _ in places}
        for module in hooks:
            module._load_state_dict_post_hooks = OrderedDict()
        state = agent.optimizer.state
        kept: list[tuple[Any, dict[str, Any]]] = []
        for module, name, parameter in places:
            full = process_group.whole_tensor(parameter.detach())
            module._parameters[name] = nn.Parameter(full, requires_grad=parameter.requires_grad)
            kept.append((parameter, dict(state[parameter]) if parameter in state else {}))
            for key, value in kept[-1][1].items():
                state[parameter][key] = (
                    process_group.whole_tensor(value) if isinstance(value, Tensor) else value
                )
        try:
            yield
        finally:
            state = agent.optimizer.state  # loading makes a new one
            for (module, name, parameter), (_, before) in zip(places, kept, strict=True):
                loaded: Any = module._parameters[name]
                module._parameters[name] = parameter
                if write:
                    _put(parameter, loaded)
                    for key, value in state[parameter].items() if parameter in state else ():
                        if isinstance(value, Tensor) and value.shape == parameter.shape:
                            state[parameter][key] = _like(value, parameter)
                elif before:
                    state[parameter] = before
            for module, own in hooks.items():
                module._load_state_dict_post_hooks = own
            if write:
                agent.policy.invalidate()


def _like(full: Tensor, parameter: Any) -> Tensor:
    """This process's part of a tensor that every process has."""
    return distribute_tensor(
        full.detach().to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


@torch.no_grad()
def _put(parameter: Any, full: Any) -> None:
    parameter.copy_(_like(full, parameter))
