"""Weights in parts: each process keeps a part of every block of the model, and of its moments.

``accelerate launch`` with an FSDP2 configuration asks for it, or one with DeepSpeed's ZeRO
(``textenv.agents.optim.deepspeed``). Blocks are sharded, by ``fully_shard`` or by the engine; what
lies around them (embeddings, final norm, heads) stays whole in every process, and with FSDP2 its gradients
are summed like those of an unsharded model. A rollout gathers the blocks once and plays on whole weights:
decoding through sharded layers would ask the other processes at every token, and they may be done already.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torch import nn

from textenv.agents.distributed import process_group
from textenv.agents.policies.model_setup import transformer_blocks

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent


def asked_for() -> bool:
    """Whether the launcher's configuration asks for FSDP2.

    Raises:
        ValueError: if it asks for the first FSDP, which is not used here.
    """
    if process_group.alone():
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
    if process_group.alone() or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
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
    mesh = init_device_mesh(process_group.device().type, (process_group.world_size(),))
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
