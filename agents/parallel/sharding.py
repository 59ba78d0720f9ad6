"""Weights in parts: each process keeps a part of every block of the model, and of its moments.

``accelerate launch`` with an FSDP2 configuration asks for it, or one with DeepSpeed's ZeRO
(``textenv.agents.parallel.deepspeed_engine``). Blocks are sharded, by ``fully_shard`` or by the engine; what
lies around them (embeddings, final norm, heads) stays whole in every process, and with FSDP2 its gradients
are summed like those of an unsharded model. A rollout gathers the blocks once and plays on whole weights:
decoding through sharded layers would ask the other processes at every token, and they may be done already.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textenv.agents.parallel import distributed
from textenv.agents.policies.model_setup import transformer_blocks

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


def zero_stage() -> int:
    """ZeRO's stage in the launcher's configuration, 1 to 3; 0 if it does not ask for DeepSpeed.

    Raises:
        ValueError: for another stage, or for offloading, which is not used here.
    """
    if distributed.alone() or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return 0
    from accelerate import DeepSpeedPlugin

    plugin: Any = DeepSpeedPlugin()
    settings = plugin.deepspeed_config["zero_optimization"]
    for name in ("offload_optimizer", "offload_param"):
        device = (settings.get(name) or {}).get("device", "none")
        if device != "none":
            raise ValueError(f"{name}_device must be none with DeepSpeed, got {device}")
    stage = int(settings["stage"])
    if stage not in (1, 2, 3):
        raise ValueError(f"zero_stage must be 1, 2 or 3, got {stage}")
    return stage


def trunks(agent: Agent) -> list[nn.Module]:
    """The language models in an agent's policy whose blocks can be sharded: its own, and the critic's.

    Raises:
        ValueError: for what does not go together with sharded weights: adapters, an average of the weights,
            compiled passes, and a critic of its own that shares frozen layers with the policy.
    """
    policy: Any = agent.policy
    if getattr(policy, "peft", None) is not None:
        raise ValueError("adapters can't be trained on sharded weights; use MULTI_GPU or MULTI_CPU")
    if getattr(agent, "average", None) is not None:
        raise ValueError("ema_decay must be None with sharded weights, for the average would not be sharded")
    if getattr(policy, "compile_backend", None) is not None:
        raise ValueError("compile must be off with sharded weights, which are gathered between the blocks")
    critic = getattr(policy, "critic", None)
    if critic is None:
        return [policy.model]
    if {id(p) for p in critic.parameters()} & {id(p) for p in policy.model.parameters()}:
        raise ValueError("value_model must be 'shared' where frozen layers are sharded, got 'separate'")
    return [policy.model, critic.trunk]


def shard(agent: Agent) -> bool:
    """Shard the blocks of an agent's policy, if the launcher's configuration asks for FSDP2.

    Call it when references have been taken and before the optimizer is made.

    Returns:
        Whether the processes make their passes in step, for weights or gradients are in parts.

    Raises:
        ValueError: for what does not go together with sharded weights; see ``trunks``.
    """
    if not asked_for():
        return zero_stage() > 0
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plugin: Any = FullyShardedDataParallelPlugin()
    mesh = init_device_mesh(distributed.device().type, (distributed.world_size(),))
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": bool(plugin.reshard_after_forward)}
    if plugin.cpu_offload:
        options["offload_policy"] = plugin.cpu_offload
    for trunk in trunks(agent):
        for block in transformer_blocks(trunk):
            part: Any = fully_shard(block, **options)
            # Losses are divided by the whole batch's denominators, so gradients add up.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
            part.reshards = options["reshard_after_forward"]
    agent.policy.invalidate()
    return True


@contextmanager
def gathered(agent: Agent) -> Iterator[None]:
    """Within the block every process has all weights, for passes without gradient that it makes by itself."""
    if agent.engine is not None:
        with agent.engine.gathered():
            yield
        return
    parts = _parts(agent.policy)
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
    if agent.engine is not None:
        with agent.engine.whole(write=write):
            yield
        return
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
