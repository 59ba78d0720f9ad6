"""Make the optimizer, and the backend that the launcher's configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from textenv.agents.optim.backend import Backend
from textenv.agents.optim.launcher import asked_for, zero_stage
from textenv.agents.optim.optimizer import make_optimizer
from textenv.agents.settings.base import AgentConfig


def make_backend(policy: Any, trainable: Callable[[], nn.Module], config: AgentConfig) -> Backend:
    """The backend that the launcher asks for, with a new optimizer.

    Call it after references were taken: it shards the policy's weights if the launcher asks for FSDP2.

    Args:
        policy: a ``LanguagePolicy``, or another module with a device.
        trainable: gives the module whose parameters are trained; called after the weights were sharded.
        config: learning rate, optimizer, precision and clipping.

    Raises:
        ValueError: for settings or a policy that cannot be combined with the backend, see
            ``textenv.agents.optim.fsdp.trunks`` and ``textenv.agents.optim.deepspeed.ZeroBackend``.
    """
    averaged = getattr(config, "ema_decay", None) is not None
    sharded, stage = asked_for(), zero_stage()
    if sharded:
        from textenv.agents.optim.fsdp import shard

        shard(policy, averaged=averaged)
    module = trainable()
    optimizer = make_optimizer(
        module,
        learning_rate=config.learning_rate,
        critic_learning_rate=getattr(config, "critic_learning_rate", None),
        weight_decay=config.weight_decay,
        betas=config.adam_betas,
        eps=config.adam_eps,
        kind=config.optimizer,
    )
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {"autocast": config.autocast, "max_grad_norm": config.max_grad_norm}
    if stage:
        from textenv.agents.optim.deepspeed import ZeroBackend

        return ZeroBackend(policy, parameters, optimizer, stage=stage, averaged=averaged, **options)
    if sharded:
        from textenv.agents.optim.fsdp import ShardedBackend

        return ShardedBackend(policy, parameters, optimizer, **options)
    return Backend(policy, parameters, optimizer, **options)
