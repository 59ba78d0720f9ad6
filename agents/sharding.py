"""Weights in parts: with FSDP2 each process keeps a part of every block of the model, and of its moments.

``accelerate launch`` with an FSDP2 configuration asks for it. Blocks are sharded by ``fully_shard``; what
lies around them (embeddings, final norm, heads) stays whole in every process, and its gradients are summed
like those of an unsharded model. A rollout gathers the blocks once and plays on whole weights: decoding
through sharded layers would ask the other processes at every token, and they may be done already.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textenv.agents import distributed
from textenv.agents.model_setup import transformer_blocks

if TYPE_CHECKING:
    from textenv.agents.base import Agent


def asked_for() -> bool:
    """Whether the launcher's configuration asks for FSDP2.

    Raises:
        ValueError: if it asks for the first FSDP, which is not used here.
    """
    if distributed.alone():
        return False
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError(f"fsdp_version must be 2, got {os.environ.get('FSDP_VERSION', '1')}")
    return True


def shard(agent: Agent) -> bool:
    """Shard the blocks of an agent's policy, if the launcher's configuration asks for FSDP2.

    Call it when references have been taken and before the optimizer is made.

    Returns:
        Whether the processes make their passes in step, for weights or gradients are in parts.

    Raises:
        ValueError: for what does not go together with sharded weights: adapters, an average of the weights,
            and a critic of its own that shares frozen layers with the policy.
    """
    if not asked_for():
        return False
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plugin: Any = FullyShardedDataParallelPlugin()
    policy: Any = agent.policy
    if getattr(policy, "peft", None) is not None:
        raise ValueError("adapters can't be trained on sharded weights; use MULTI_GPU or MULTI_CPU")
    if getattr(agent, "average", None) is not None:
        raise ValueError("ema_decay must be None with sharded weights, for the average would not be sharded")
    trunks = [policy.model]
    critic = getattr(policy, "critic", None)
    if critic is not None:
        if {id(p) for p in critic.parameters()} & {id(p) for p in policy.model.parameters()}:
            raise ValueError("value_model must be 'shared' where frozen layers are sharded, got 'separate'")
        trunks.append(critic.trunk)
    mesh = init_device_mesh(distributed.device().type, (distributed.world_size(),))
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": bool(plugin.reshard_after_forward)}
    if plugin.cpu_offload:
        options["offload_policy"] = plugin.cpu_offload
    for trunk in trunks:
        for block in transformer_blocks(trunk):
            part: Any = fully_shard(block, **options)
            # Losses are divided by the whole batch's denominators, so gradients add up.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
            part.reshards = options["reshard_after_forward"]
    policy.invalidate()
    return True


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within the block every process has all weights, for passes without gradient that it makes by itself."""
    parts = _parts(module)
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
def whole(agent: Agent, *, write: bool = False) -> Iterator[None]:
    """Within the block an agent's parameters and moments are ordinary tensors, to be saved or loaded.

    Every process enters it. Its policy can't be called in there.

    Args:
        agent: an agent, sharded or not.
        write: put what the tensors are at the end of the block into the shards.
    """
    if not agent.sharded:
        yield
        return
    places = [
        (module, name, parameter)
        for module in agent.policy.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and distributed.is_sharded(parameter)
    ]
    # After loading, FSDP's hooks look for the shards, which are not in place before the end of the block.
    hooks = {module: module._load_state_dict_post_hooks for module, _, _ in places}
    for module in hooks:
        module._load_state_dict_post_hooks = OrderedDict()
    state = agent.optimizer.state
    kept: list[tuple[Any, dict[str, Any]]] = []
    for module, name, parameter in places:
        full = distributed.whole_tensor(parameter.detach())
        module._parameters[name] = nn.Parameter(full, requires_grad=parameter.requires_grad)
        kept.append((parameter, dict(state[parameter]) if parameter in state else {}))
        for key, value in kept[-1][1].items():
            state[parameter][key] = distributed.whole_tensor(value) if isinstance(value, Tensor) else value
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


def _parts(module: nn.Module) -> list[Any]:
    if distributed.alone():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _like(full: Tensor, parameter: Any) -> Tensor:
    """This process's part of a tensor that every process has."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        full.detach().to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


@torch.no_grad()
def _put(parameter: Any, full: Any) -> None:
    parameter.copy_(_like(full, parameter))
