"""The optimizer, the learning-rate schedule, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from textenv.agents.distributed.process_group import is_sharded, whole_tensor

OptimizerKind = Literal["adamw", "adamw_8bit"]
CRITICS = ("value_head.", "critic.", "turn_critic.", "token_baseline.")
"""Beginnings of the names of a policy's critic parameters."""
SCHEDULES = ("constant", "linear", "cosine")


def check_trains(policy: nn.Module) -> None:
    """Refuse a policy in which only a critic has trainable parameters.

    Raises:
        ValueError: if all parameters outside of the critic are frozen.
    """
    own = [parameter for name, parameter in policy.named_parameters() if not name.startswith(CRITICS)]
    if any(parameter.requires_grad for parameter in own):
        return
    cause = "set requires_grad where it is to train"
    if getattr(policy, "peft", None) is not None:
        cause = "load adapters by PeftModel.from_pretrained(..., is_trainable=True)"
    count = sum(parameter.numel() for parameter in own)
    raise ValueError(f"all {count} parameters of the policy are frozen, so it can't learn; {cause}")


def parameter_groups(
    module: nn.Module, *, weight_decay: float = 0.0, critic_learning_rate: float | None = None
) -> list[dict[str, object]]:
    """Trainable parameters in two groups: matrices decay, vectors (biases, norms) do not.

    Args:
        module: whose parameters are trained.
        weight_decay: of matrices.
        critic_learning_rate: if given, parameters of critics (``CRITICS``) are in groups of their own.

    Raises:
        ValueError: if nothing is trainable.
    """
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the module has no trainable parameter")
    kinds: list[tuple[list[nn.Parameter], dict[str, object]]] = [([p for _, p in trainable], {})]
    if critic_learning_rate is not None:
        policy = [p for name, p in trainable if not name.startswith(CRITICS)]
        critics = [p for name, p in trainable if name.startswith(CRITICS)]
        kinds = [(policy, {}), (critics, {"lr": critic_learning_rate})]
    groups: list[dict[str, object]] = []
    for parameters, options in kinds:
        matrices, vectors = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
        groups.append({"params": matrices, "weight_decay": weight_decay, **options})
        groups.append({"params": vectors, "weight_decay": 0.0, **options})
    return [group for group in groups if group["params"]]


def make_optimizer(
    module: nn.Module,
    *,
    learning_rate: float,
    critic_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    kind: OptimizerKind = "adamw",
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) over the trainable parameters, fused where torch has a kernel.

    Args:
        module: whose parameters are trained.
        learning_rate: of the first step.
        critic_learning_rate: the same of critics; None = ``learning_rate``.
        weight_decay: of matrices; vectors do not decay.
        betas: decay rates of the moments.
        eps: added to the denominator.
        kind: "adamw", or "adamw_8bit" with moments in blocks of 8-bit numbers (Dettmers et al. 2022, "8-bit
            optimizers via block-wise quantization"), for parameters of 4,096 numbers and more.

    Raises:
        ValueError: if nothing is trainable, ``learning_rate`` is negative, ``kind`` is unknown, or 8-bit
            moments are asked for sharded weights or a device that has no kernels for them.
        ImportError: for "adamw_8bit" without bitsandbytes.
    """
    if learning_rate < 0:
        raise ValueError(f"learning_rate must be >= 0, got {learning_rate}")
    if kind not in get_args(OptimizerKind):
        raise ValueError(f"optimizer must be one of {list(get_args(OptimizerKind))}, got {kind!r}")
    groups = parameter_groups(module, weight_decay=weight_decay, critic_learning_rate=critic_learning_rate)
    devices = {p.device.type for p in module.parameters() if p.requires_grad}
    if kind == "adamw_8bit":
        if any(is_sharded(p) for p in module.parameters()):
            raise ValueError("optimizer must be 'adamw' with sharded weights, got 'adamw_8bit'")
        if not devices <= {"cpu", "cuda", "xpu"}:
            raise ValueError(
                f"optimizer 'adamw_8bit' needs cpu, cuda or xpu, got weights on {sorted(devices)}"
            )
        try:
            from textenv.agents.optim.adamw_8bit import AdamW8bit
        except ImportError as error:
            raise ImportError(
                "optimizer='adamw_8bit' needs bitsandbytes: pip install 'textenv[quantized]'"
            ) from error
        return AdamW8bit(groups, lr=learning_rate, betas=betas, eps=eps)
    fused: bool | None = devices <= {"cpu", "cuda", "mps", "xpu"}
    foreach = None
    if any(is_sharded(p) for p in module.parameters()):
        fused = foreach = False  # kernels over many tensors take no mixture of sharded and whole ones
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused, foreach=foreach)


def make_schedule(
    optimizer: torch.optim.Optimizer,
    name: str = "constant",
    *,
    total_steps: int | None = None,
    warmup_steps: int = 0,
) -> LRScheduler:
    """A schedule over optimizer steps: "constant", "linear" or "cosine", after a linear warm-up.

    The rates are those of transformers' schedules of these names, whose module imports peft, accelerate and,
    where they are installed, bitsandbytes and DeepSpeed: seconds that a run without them can do without.

    Raises:
        ValueError: on an unknown name, or one that needs ``total_steps`` without it.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {list(SCHEDULES)}, got {name!r}")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be >= 0, got {warmup_steps}")
    if name != "constant" and total_steps is None:
        raise ValueError(f"schedule {name!r} needs total_steps, got None")
    return LambdaLR(optimizer, partial(_rate, name=name, total=total_steps or 0, warm=warmup_steps))


def _rate(step: int, *, name: str, total: int, warm: int) -> float:
    """Learning rate at a step, as a fraction of the peak learning rate."""
    if step < warm:
        return step / max(1, warm)
    decaying = max(1, total - warm)
    if name == "linear":
        return max(0.0, (total - step) / decaying)
    if name == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warm) / decaying))))
    return 1.0


def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """Scale the gradients to a global 2-norm of at most ``max_norm``; None only measures.

    Returns:
        The norm before, a scalar tensor.

    Raises:
        ValueError: if the norm is NaN or infinite, before any parameter is changed.
    """
    tensors = [p for p in parameters if p.grad is not None]
    # Sharded and whole gradients separately: no operation takes both.
    kinds = [[p for p in tensors if is_sharded(p) == kind] for kind in (False, True)]
    norms = [
        torch.nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds if kind
    ]
    norm = norms[0] if len(norms) == 1 else torch.nn.utils.get_total_norm(list(map(whole_tensor, norms)))
    norm = whole_tensor(norm)
    if not bool(torch.isfinite(norm)):
        raise ValueError(
            f"the gradient norm is {norm.item()}; lower the learning rate or check the rewards for outliers"
        )
    if max_norm is not None:
        for kind in filter(None, kinds):
            torch.nn.utils.clip_grads_with_norm_(kind, max_norm, norm)
    return norm
