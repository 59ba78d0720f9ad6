"""Reference policies: a frozen state of the policy, from which the KL divergence is measured.

A reference is taken from the weights in memory, never loaded again by name, and runs in the same
teacher-forced code as the policy, so that the KL divergence is exactly 0 before the first step. Shape
letters: B episodes, L tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn

from textenv.agents.distributed.data_parallel import local_rows
from textenv.agents.policies.adapters import adapter_parameters, adapters_change_nothing, base_is_start
from textenv.agents.policies.model_setup import frozen_blocks, transformer_blocks
from textenv.agents.policies.outputs import Memo, PolicyOutput, ReferenceMode, in_parts, joined_output
from textenv.agents.policies.teacher_forced import TeacherForced
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.log_probs import TokenLogProbs
from textenv.modeling.model_checks import check_finite
from textenv.modeling.split_model import split_model
from textenv.modeling.weight_version import ModelWatch, watch_of


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy for inference that shares frozen parameters: only trainable ones take memory again.

    With adapters or few trained layers this is little memory; if all layers are trained, all are copied.
    """
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def lightest_mode(policy: TeacherForced) -> ReferenceMode:
    """Adapters off while they change nothing, else the shared trunk if layers are frozen, else a copy."""
    if policy.peft is not None and adapters_change_nothing(policy.model):
        return "adapters-off"
    # Compiled code does not call the hook by which a reference reads the output of the policy's trunk.
    return "shared-trunk" if policy.compile_backend is None and frozen_blocks(policy.model) else "copy"


class Reference:
    """A frozen policy; ``policy.reference()`` makes it.

    Args:
        policy: policy whose weights, temperature, token constraints and autocast format are used.
        mode: "copy" = a frozen copy (sharing what is frozen anyway); "adapters-off" = the policy's own model
            without its adapters; "shared-trunk" = a copy of the trained top layers above the policy's frozen
            trunk, which runs once for both when both are requested (``policy.evaluate(...,
            reference=True)``).

    Raises:
        ValueError: if the mode is unknown, or the policy has no adapters or no frozen trunk for it.
    """

    def __init__(self, policy: TeacherForced, mode: ReferenceMode) -> None:
        if mode not in get_args(ReferenceMode):
            raise ValueError(f"reference mode must be one of {list(get_args(ReferenceMode))}, got {mode!r}")
        self.policy = policy
        self.mode: ReferenceMode = mode
        self._copy: nn.Module | None = None
        self._trunk = _Trunk()
        self._memo = Memo()
        self._watch: ModelWatch | None = None
        if mode == "adapters-off":
            if policy.peft is None:
                raise ValueError("reference mode 'adapters-off' needs a policy with adapters (lora=)")
            own = adapter_parameters(policy.model)
            moving = [n for n, p in policy.model.named_parameters() if p.requires_grad and id(p) not in own]
            if moving:
                raise ValueError(f"reference mode 'adapters-off' needs a frozen base, but {moving[0]} trains")
            if not base_is_start(policy.peft):
                raise ValueError(
                    "reference mode 'adapters-off' needs adapters whose start left the base weights alone, "
                    "got another init_lora_weights; mode 'copy' takes the start"
                )
            return
        check_finite(policy.model, "the policy that the reference is taken from")
        self._copy = frozen_copy(policy.model)
        self._watch = ModelWatch(self._copy, count_steps=False)
        if mode == "shared-trunk":
            if policy.compile_backend is not None:
                raise ValueError(
                    "reference mode 'shared-trunk' hooks into the trunk, which compile=... forbids"
                )
            count = frozen_blocks(policy.model)
            if not count:
                raise ValueError("reference mode 'shared-trunk' needs frozen bottom layers (train_layers=)")
            self._trunk = _Trunk(transformer_blocks(policy.model)[count - 1])
            blocks = transformer_blocks(self._copy)
            for i in range(count):
                blocks[i] = _SharedBlock(blocks[i], self._trunk, last=i == count - 1)
            # The check of how a model splits runs forwards of its own, which must not fall between trunk and
            # top.
            split_model(policy.model)
            split_model(self._copy)

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The reference as a plain causal LM, for as long as the block runs."""
        if self._copy is not None:
            yield self._copy
            return
        assert self.policy.peft is not None
        with watch_of(self.policy.model).lock, self.policy.peft.disable_adapter():
            yield self.policy.model

    def forward_model(self, episodes: EpisodeBatch, *, entropy: bool = False) -> TokenLogProbs:
        """One pass; on the policy's trunk if the policy has just run on the same episodes in ``sharing``."""
        with torch.no_grad(), self.active() as model:
            return self.policy.forward_model(model, episodes, entropy=entropy)

    def evaluate(self, episodes: EpisodeBatch, *, entropy: bool = False) -> PolicyOutput:
        """Log-probs and, if asked, entropies, in parts as ``LanguagePolicy.evaluate`` does; no gradient."""

        def run(part: EpisodeBatch) -> PolicyOutput:
            found = self.forward_model(part, entropy=entropy)
            return PolicyOutput(found.log_probs, entropy=found.entropy)

        state = self._state()
        known = self._memo.get(episodes, state)
        if known is not None and known.has({"entropy"} if entropy else set()):
            return known
        local = local_rows(episodes)
        if local is not None:
            own = self.evaluate(local.own, entropy=entropy)
            return self._memo.put(episodes, state, joined_output(local, own, episodes))
        return self._memo.put(episodes, state, in_parts(episodes, self.policy.max_tokens, run))

    def log_prob(self, episodes: EpisodeBatch) -> Tensor:
        """Log-probs of the actions: (B, L), 0 elsewhere; no gradient."""
        if self.mode == "shared-trunk" and (found := self.policy.known_ref_log_probs(episodes)) is not None:
            return found
        return self.evaluate(episodes).log_probs

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """In the block, a pass of the policy leaves its trunk's output to the reference's next pass."""
        if self._trunk.last is None:
            yield
            return
        try:
            with self._trunk.recording():
                yield
        finally:
            self._trunk.outputs.clear()

    def _state(self) -> Hashable:
        policy = self.policy
        rules = policy.temperature, policy.autocast, policy.packing, policy.legality
        if self._watch is not None:
            return rules, self._watch.state()
        frozen = [p for p in policy.model.parameters() if not p.requires_grad]
        return rules, tuple((id(p), p._version, p.data_ptr()) for p in frozen)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that only the reference has; shared ones are saved with the policy."""
        if self._copy is None:
            return {}
        shared = {id(p) for p in self.policy.model.parameters()}
        return {name: p.detach() for name, p in self._copy.named_parameters() if id(p) not in shared}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore them.

        Raises:
            ValueError: if the names are not those of this reference.
        """
        own = self.state_dict()
        if set(own) != set(state):
            wrong = sorted(set(own) ^ set(state))
            raise ValueError(f"the saved reference must have the weights of this one, differ {wrong[:5]}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])
        self.policy.invalidate()


class _Trunk:
    """Recorded outputs of the policy's last frozen block, one entry per forward pass, oldest first."""

    def __init__(self, last: nn.Module | None = None) -> None:
        self.last = last
        self.outputs: list[Any] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        assert self.last is not None
        handle = self.last.register_forward_hook(lambda _module, _args, output: self.outputs.append(output))
        try:
            yield
        finally:
            handle.remove()


class _SharedBlock(nn.Module):
    """A frozen block of the reference: returns the recorded trunk output if there is one, else runs."""

    def __init__(self, block: nn.Module, trunk: _Trunk, *, last: bool) -> None:
        super().__init__()
        self.block = block
        self._trunk, self._last = trunk, last

    def __getattr__(self, name: str) -> Any:
        # Backbones read attributes of their blocks, such as the attention type.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self._trunk.outputs
        if not outputs:
            return self.block(*args, **kwargs)
        return outputs.pop(0) if self._last else outputs[0]
