"""Optimizer steps by DeepSpeed's engine: ZeRO stages 1, 2 and 3.

``accelerate launch`` with a DeepSpeed configuration turns it on (Rajbhandari et al. 2020). In stage 1 each of
W processes keeps 1/W of the moments, in stage 2 also of the gradients, in stage 3 also of the weights of the
transformer blocks; layers outside the blocks stay whole, as with FSDP2. The optimizer is the agent's own
AdamW, which updates the engine's shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.distributed import process_group
from textenv.agents.optim.backend import Backend, LossFunction, Stats
from textenv.agents.optim.fsdp import trunks
from textenv.agents.policies.model_setup import transformer_blocks

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's tensors of a weight's shape."""


class ZeroBackend(Backend):
    """Optimizer steps by DeepSpeed's engine, which holds the policy and the optimizer.

    Args:
        policy: a ``LanguagePolicy``.
        parameters: its trainable parameters.
        optimizer: AdamW over them; it must not have made a step.
        stage: ZeRO's stage, 1 to 3.
        autocast: number format of matrix products.
        max_grad_norm: gradients are scaled down to this L2 norm; None leaves them as they are.
        averaged: whether the agent keeps an average of the weights.

    Raises:
        ValueError: if the policy is not in float32 or needs a scaler of losses, for another optimizer than
            AdamW, and in stage 3 for what ``textenv.agents.optim.fsdp.trunks`` refuses.
    """

    lockstep = True

    def __init__(
        self,
        policy: Any,
        parameters: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        *,
        stage: int,
        autocast: str = "float32",
        max_grad_norm: float | None = None,
        averaged: bool = False,
    ) -> None:
        import deepspeed

        kinds = {parameter.dtype for parameter in policy.parameters()}
        if kinds != {torch.float32}:
            raise ValueError(f"dtype must be float32 with DeepSpeed, got {sorted(map(str, kinds))}")
        if autocast == "float16":
            raise ValueError("autocast must be 'float32' or 'bfloat16' with DeepSpeed, got 'float16'")
        if type(optimizer) is not torch.optim.AdamW:
            raise ValueError(f"optimizer must be 'adamw' with DeepSpeed, got {type(optimizer).__name__}")
        models = trunks(policy, averaged=averaged) if stage == 3 else []
        super().__init__(policy, parameters, optimizer, autocast=autocast, max_grad_norm=max_grad_norm)
        self.stage = stage
        self.all_parameters: list[Any] = list(policy.parameters())
        self.members = [list(group["params"]) for group in optimizer.param_groups]
        self.root = _Root(policy)
        self.engine: Any = deepspeed.initialize(
            model=self.root, optimizer=optimizer, config=_settings(max_grad_norm)
        )[0]
        self.zero: Any = self.engine.optimizer
        self.frozen: dict[nn.Parameter, int] = {}
        # AdamW creates its state in its first step, but the engine reads it after the first group's step.
        for part in self.parts:
            moments = {name: torch.zeros_like(part) for name in MOMENTS}
            self.optimizer.state[part] = {"step": torch.zeros((), device=part.device), **moments}
        if stage < 3:
            self.zero._lazy_init_hp_params_optimizer_state()
        else:
            self._keep_whole({id(p) for model in models for p in transformer_blocks(model).parameters()})
        policy.invalidate()

    def _keep_whole(self, inside: set[int]) -> None:
        """Keep all parameters whole in every process, except those of the blocks (ids ``inside``)."""
        kept = self.zero.persistent_parameters
        for parameter in self.all_parameters:
            if id(parameter) not in inside:
                if not parameter.ds_persist:
                    parameter.ds_persist = True
                    kept.append(parameter)
                parameter.is_external_param = True  # otherwise it is freed while the engine traces passes
        self._gather(kept)
        self.frozen = {p: p._version for p in kept if not p.requires_grad}

    def wrap(self, loss_fn: LossFunction) -> LossFunction:
        """The loss function, called as a forward pass of the engine."""

        def call(batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
            found: list[Stats] = []

            def run() -> Tensor:
                loss, stats = loss_fn(batch, totals)
                found.append(stats)
                return loss

            # With autocast's cache of cast weights stage 3 frees weights that the backward pass still needs.
            cache = torch.is_autocast_cache_enabled()
            torch.set_autocast_cache_enabled(False)
            try:
                return self.engine(run), found[0]
            finally:
                torch.set_autocast_cache_enabled(cache)

        return call

    def backward(self, loss: Tensor) -> None:
        """Add gradients; the engine averages over processes, so the loss is multiplied by their number."""
        self.engine.backward(loss * process_group.world_size())

    def reduce(self, failed: bool) -> bool:
        """Whether any process has a loss that is not finite; the engine has summed the gradients already."""
        return process_group.all_reduce_gradients((), failed)

    def step(self) -> Tensor:
        """Clip the gradients and move the weights.

        Returns:
            The gradient's norm before, a scalar tensor.

        Raises:
            ValueError: if the norm is NaN or infinite; the weights are as they were.
        """
        self.engine.step()
        self.policy.invalidate()
        if not self.engine.was_step_applied():
            raise ValueError("the gradient norm is not finite")
        norm = self.engine.get_global_grad_norm()
        return torch.as_tensor(norm, device=self.policy.device)

    def sync_weights(self) -> None:
        """Write frozen weights that were changed (target heads) into the shards."""
        moved = [parameter for parameter, seen in self.frozen.items() if parameter._version != seen]
        self._write_back(moved)
        self._gather(moved)
        self.frozen.update({parameter: parameter._version for parameter in moved})

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.zero.zero_grad()
        for kept in (self.zero.averaged_gradients, getattr(self.zero, "all_grad_tensors", {})):
            kept.update(dict.fromkeys(kept))

    @contextmanager
    def summon_full_params(self) -> Iterator[None]:
        """Within the block every process holds all weights, and passes need no other process."""
        if self.stage < 3:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        offload = self.zero.parameter_offload
        self._gather(self.zero.persistent_parameters)
        parts = [p for p in self.all_parameters if not p.ds_persist]
        with GatheredParameters(parts):
            offload._remove_module_hooks()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield
            finally:
                offload.setup_zero_stage3_hooks()

    @contextmanager
    def unsharded_state(self, *, write: bool = False) -> Iterator[None]:
        """Within the block parameters and moments are ordinary tensors, to be saved or loaded.

        Args:
            write: write the tensors as they are at the end of the block back into the shards.
        """
        with self.summon_full_params():
            own, plain = self.optimizer, self._plain_optimizer()
            self.optimizer = plain
            try:
                yield
            finally:
                self.optimizer = own
                if write and self.stage == 3:
                    self._write_back(self.all_parameters)
            if write and self.stage == 3:
                self._gather(self.all_parameters)
        if write:
            self.zero.refresh_fp32_params()
            self._take(plain)
            self.policy.invalidate()

    def _plain_optimizer(self) -> torch.optim.AdamW:
        """AdamW over whole weights, with whole moments."""
        from deepspeed.utils import safe_get_full_optimizer_state

        groups = [
            {**group, "params": members}
            for group, members in zip(self.optimizer.param_groups, self.members, strict=True)
        ]
        plain = torch.optim.AdamW(groups)
        for parameter in (p for members in self.members for p in members):
            plain.state[parameter] = {
                "step": self.optimizer.state[self.parts[0]]["step"].clone(),
                **{name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS},
            }
        return plain

    def _take(self, plain: torch.optim.Optimizer) -> None:
        """Write the settings and moments of an optimizer over whole weights into the shards."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        for own, group in zip(self.optimizer.param_groups, plain.param_groups, strict=True):
            own.update({name: value for name, value in group.items() if name != "params"})
        for parameter, state in plain.state.items():
            for name in MOMENTS:
                if self.stage < 3:
                    safe_set_full_optimizer_state(parameter, state[name], name)
                else:
                    safe_set_local_optimizer_state(parameter, _own_part(state[name], parameter), name)
            for part in self.parts:
                self.optimizer.state[part]["step"].copy_(state["step"])

    @property
    def parts(self) -> list[Tensor]:
        """The shards that AdamW updates in this process, (n,) each."""
        found: list[Tensor] = (
            self.zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else self.zero.single_partition_of_fp32_groups
        )
        return found

    @staticmethod
    def _gather(parameters: list[Any]) -> None:
        if parameters:
            parameters[0].all_gather(parameters)

    @staticmethod
    def _write_back(parameters: list[Any]) -> None:
        """Write whole weights into the shards, and free the whole ones."""
        if parameters:
            parameters[0].partition(parameters, has_been_updated=True)


class _Root(nn.Module):
    """The module that the engine calls; it calls the given function, which calls the policy."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        return run()


def _own_part(whole: Tensor, parameter: Any) -> Tensor:
    """This process's shard in stage 3 of a tensor like ``parameter``, padded with zeros: (n,)."""
    size = parameter.ds_tensor.numel()
    padded = nn.functional.pad(whole.flatten(), (0, size * process_group.world_size() - whole.numel()))
    return padded[process_group.rank() * size :][:size]


def _settings(max_grad_norm: float | None) -> dict[str, Any]:
    """The launcher's configuration with the agent's values: precision, batches, clipping, optimizer."""
    from accelerate import DeepSpeedPlugin

    plugin: Any = DeepSpeedPlugin()
    return plugin.deepspeed_config | {
        "train_batch_size": process_group.world_size(),
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
    }
