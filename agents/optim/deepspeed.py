"""DeepSpeed's engine in the place of an agent's optimizer step: ZeRO stages 1, 2 and 3.

``accelerate launch`` with a DeepSpeed configuration asks for it (Rajbhandari et al. 2020). In stage 1 each of
W processes keeps 1/W of the moments, in stage 2 also of the gradients, in stage 3 also of the weights of the
transformer blocks; what lies around the blocks stays whole, as with FSDP2. The optimizer is the agent's own
AdamW, which moves the engine's parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textenv.agents.distributed import process_group
from textenv.agents.optim.backend import Engine
from textenv.agents.optim.fsdp import trunks
from textenv.agents.policies.model_setup import transformer_blocks

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent, Stats
    from textenv.agents.data.batch import Totals, TrainingBatch

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's tensors of a weight's shape."""


class ZeroEngine(Engine):
    """An agent's policy and optimizer in the engine's hands.

    Args:
        agent: an agent whose optimizer was just made.
        stage: ZeRO's stage, 1 to 3.

    Raises:
        ValueError: if the policy is not in float32 or needs a scaler of losses, for another optimizer than
            AdamW, and in stage 3 for what ``textenv.agents.optim.fsdp.trunks`` refuses.
    """

    def __init__(self, agent: Agent, stage: int) -> None:
        import deepspeed

        kinds = {parameter.dtype for parameter in agent.policy.parameters()}
        if kinds != {torch.float32}:
            raise ValueError(f"dtype must be float32 with DeepSpeed, got {sorted(map(str, kinds))}")
        if agent.config.autocast == "float16":
            raise ValueError("autocast must be 'float32' or 'bfloat16' with DeepSpeed, got 'float16'")
        if type(agent.optimizer) is not torch.optim.AdamW:
            raise ValueError(f"optimizer must be 'adamw' with DeepSpeed, got {agent.config.optimizer!r}")
        models = trunks(agent) if stage == 3 else []
        super().__init__(agent)
        self.policy, self.optimizer = agent.policy, agent.optimizer
        self.stage = stage
        self.parameters: list[Any] = list(agent.policy.parameters())
        self.members = [list(group["params"]) for group in agent.optimizer.param_groups]
        self.root = _Root(agent.policy)
        self.engine: Any = deepspeed.initialize(
            model=self.root, optimizer=agent.optimizer, config=_settings(agent)
        )[0]
        self.zero: Any = self.engine.optimizer
        self.frozen: dict[nn.Parameter, int] = {}
        # AdamW makes its state in its first step, the engine looks for it after the first group's.
        for part in self.parts:
            moments = {name: torch.zeros_like(part) for name in MOMENTS}
            self.optimizer.state[part] = {"step": torch.zeros((), device=part.device), **moments}
        if stage < 3:
            self.zero._lazy_init_hp_params_optimizer_state()
        else:
            self._keep_whole({id(p) for model in models for p in transformer_blocks(model).parameters()})
        agent.policy.invalidate()

    def _keep_whole(self, inside: set[int]) -> None:
        """Let every process have all parameters but those of the blocks, which are ``inside``."""
        kept = self.zero.persistent_parameters
        for parameter in self.parameters:
            if id(parameter) not in inside:
                if not parameter.ds_persist:
                    parameter.ds_persist = True
                    kept.append(parameter)
                parameter.is_external_param = True  # else it is let go as long as the engine traces passes
        self._gather(kept)
        self.frozen = {p: p._version for p in kept if not p.requires_grad}

    # -- a step ----------------------------------------------------------------------------------------------

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """The agent's loss, as a forward pass of the engine's."""
        found: list[Stats] = []

        def run() -> Tensor:
            loss, stats = self.agent.loss(batch, totals)
            found.append(stats)
            return loss

        # With autocast's cache of cast weights stage 3 lets go of weights that the backward pass still needs.
        cache = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            return self.engine(run), found[0]
        finally:
            torch.set_autocast_cache_enabled(cache)

    def backward(self, loss: Tensor) -> None:
        """Add up gradients; the engine averages over processes what has to be summed."""
        self.engine.backward(loss * process_group.world_size())

    def reduce(self, bad: bool) -> bool:
        """Whether any process found something wrong; the engine sums the gradients in the backward pass."""
        return process_group.reduce_gradients((), bad)

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

    def keep(self) -> None:
        """Put frozen weights that were moved all the same (target heads) into the parts."""
        moved = [parameter for parameter, seen in self.frozen.items() if parameter._version != seen]
        self._write_back(moved)
        self._gather(moved)
        self.frozen.update({parameter: parameter._version for parameter in moved})

    def drop(self) -> None:
        """Forget the gradients."""
        self.zero.zero_grad()
        for kept in (self.zero.averaged_gradients, getattr(self.zero, "all_grad_tensors", {})):
            kept.update(dict.fromkeys(kept))

    # -- whole weights ---------------------------------------------------------------------------------------

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within the block every process has all weights, and passes ask no other process."""
        if self.stage < 3:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        offload = self.zero.parameter_offload
        self._gather(self.zero.persistent_parameters)
        parts = [p for p in self.parameters if not p.ds_persist]
        with GatheredParameters(parts):
            offload._remove_module_hooks()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield
            finally:
                offload.setup_zero_stage3_hooks()

    @contextmanager
    def whole(self, *, write: bool = False) -> Iterator[None]:
        """Within the block the agent's parameters and moments are ordinary tensors, to be saved or loaded.

        Args:
            write: put what the tensors are at the end of the block into the parts.
        """
        with self.gathered():
            self.agent.optimizer = plain = self._plain_optimizer()
            try:
                yield
            finally:
                self.agent.optimizer = self.optimizer
                if write and self.stage == 3:
                    self._write_back(self.parameters)
            if write and self.stage == 3:
                self._gather(self.parameters)
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
        """Spread settings and moments of an optimizer over whole weights."""
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
        """What AdamW moves in this process: its part of the weights, (n,) each."""
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
        """Put what whole weights are into the parts, and let go of the whole."""
        if parameters:
            parameters[0].partition(parameters, has_been_updated=True)


class _Root(nn.Module):
    """What the engine calls: whatever it is given, which calls the policy."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        return run()


def _own_part(whole: Tensor, parameter: Any) -> Tensor:
    """What stage 3 keeps of a tensor like ``parameter`` in this process, padded with zeros: (n,)."""
    size = parameter.ds_tensor.numel()
    padded = nn.functional.pad(whole.flatten(), (0, size * process_group.world_size() - whole.numel()))
    return padded[process_group.rank() * size :][:size]


def _settings(agent: Agent) -> dict[str, Any]:
    """The launcher's configuration with what the agent decides: precision, batches, clipping, optimizer."""
    from accelerate import DeepSpeedPlugin

    plugin: Any = DeepSpeedPlugin()
    return plugin.deepspeed_config | {
        "train_batch_size": process_group.world_size(),
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": agent.config.max_grad_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
    }
