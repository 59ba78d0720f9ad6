"""Sharded training with FSDP2: each process holds a shard of every block and of its optimizer moments.

``accelerate launch`` with an FSDP2 configuration turns it on. The blocks are sharded by ``fully_shard``; the
layers around them (embeddings, final norm, heads) stay whole in every process, and their gradients are summed
like those of an unsharded model. A rollout gathers the blocks once and decodes with whole weights: decoding
through sharded layers would need the other processes at every token, and these may have finished already.
"""

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
from textenv.agents.optim.backend import Backend
from textenv.agents.policies.model_setup import transformer_blocks


def trunks(policy: Any, *, averaged: bool = False) -> list[nn.Module]:
    """The language models in a policy whose blocks can be sharded: its own, and a separate critic's.

    Args:
        policy: a ``LanguagePolicy``.
        averaged: whether the agent keeps an average of the weights.

    Raises:
        ValueError: for what cannot be combined with sharded weights: adapters, an average of the weights,
            compiled passes, and a separate critic that shares frozen layers with the policy.
    """
    if getattr(policy, "peft", None) is not None:
        raise ValueError("adapters can't be trained on sharded weights; use MULTI_GPU or MULTI_CPU")
    if averaged:
        raise ValueError("ema_decay must be None with sharded weights, for the average would not be sharded")
    if getattr(policy, "compile_backend", None) is not None:
        raise ValueError("compile must be off with sharded weights, which are gathered between the blocks")
    critic = getattr(policy, "critic", None)
    if critic is None:
        return [policy.model]
    if {id(p) for p in critic.parameters()} & {id(p) for p in policy.model.parameters()}:
        raise ValueError("value_model must be 'shared' where frozen layers are sharded, got 'separate'")
    return [policy.model, critic.trunk]


def shard(policy: Any, *, averaged: bool = False) -> None:
    """Shard the blocks of a policy, in place.

    Call it after references were taken and before the optimizer is made.

    Raises:
        ValueError: for what cannot be combined with sharded weights; see ``trunks``.
    """
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plugin: Any = FullyShardedDataParallelPlugin()
    mesh = init_device_mesh(process_group.device().type, (process_group.world_size(),))
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": bool(plugin.reshard_after_forward)}
    if plugin.cpu_offload:
        options["offload_policy"] = plugin.cpu_offload
    for trunk in trunks(policy, averaged=averaged):
        for block in transformer_blocks(trunk):
            part: Any = fully_shard(block, **options)
            # Losses are divided by the denominators of the whole batch, so gradients add up.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
            part.reshards = options["reshard_after_forward"]
    policy.invalidate()


class ShardedBackend(Backend):
    """Optimizer steps on a policy whose blocks ``shard`` has sharded."""

    lockstep = True

    @contextmanager
    def summon_full_params(self) -> Iterator[None]:
        """Gather the blocks once, and keep them whole within the block."""
        parts: list[Any] = [part for part in self.policy.modules() if isinstance(part, FSDPModule)]
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
    def unsharded_state(self, *, write: bool = False) -> Iterator[None]:
        """Replace sharded tensors by whole ones within the block, and restore the shards at its end.

        Args:
            write: write the tensors as they are at the end of the block back into the shards.
        """
        places = [
            (module, name, parameter)
            for module in self.policy.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and process_group.is_sharded(parameter)
        ]
        # After loading, FSDP's hooks look for the shards, which are restored only at the end of the block.
        hooks = {module: module._load_state_dict_post_hooks for module, _, _ in places}
        for module in hooks:
            module._load_state_dict_post_hooks = OrderedDict()
        state = self.optimizer.state
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
            state = self.optimizer.state  # loading makes a new one
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
                self.policy.invalidate()


def _like(full: Tensor, parameter: Any) -> Tensor:
    """This process's shard of a tensor that every process holds whole."""
    return distribute_tensor(
        full.detach().to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


@torch.no_grad()
def _put(parameter: Any, full: Any) -> None:
    parameter.copy_(_like(full, parameter))
