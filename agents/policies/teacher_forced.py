"""Teacher-forced passes of a policy over episodes: with gradient, or without and cached.

Old, new and reference log-probs are computed here with the same temperature, token constraints and precision.
Scoring, advantages and metrics of one iteration need the same values, so the last result is cached.
Shape letters: B episodes, L tokens, d width.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from textenv.agents.distributed.data_parallel import local_rows
from textenv.agents.policies.critics import SeparateCritic, final_states
from textenv.agents.policies.outputs import (
    Memo,
    PolicyOutput,
    ReferenceMode,
    ReferencePolicy,
    in_parts,
    joined_output,
)
from textenv.envs.token_constraints import TokenConstraints
from textenv.episodes.batch import EpisodeBatch
from textenv.generation.policy import DecodingPolicy
from textenv.modeling.log_probs import TokenLogProbs, token_log_probs
from textenv.modeling.nucleus import TokenRestriction
from textenv.modeling.packing import check_packing
from textenv.modeling.weight_version import float_settings, watch_of
from textenv.utils.deprecation import warn_renamed

Autocast = Literal["float32", "bfloat16", "float16"]


def filters(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling filters under which actions are not drawn from the policy's distribution; {} = none."""
    neutral = {"top_k": 0, "top_p": 1.0, "greedy": False}
    return {name: sampling[name] for name, off in neutral.items() if sampling.get(name, off) != off}


class TeacherForced(nn.Module):
    """Teacher-forced passes; the subclass ``LanguagePolicy`` also acts, and is built and saved by name."""

    model: nn.Module
    """The causal LM (with adapter layers inside it, if there are adapters)."""
    peft: Any
    """The adapters' view of the model, None without adapters."""
    compile_backend: str | None
    """Backend of ``torch.compile`` for teacher-forced passes, None without compiling."""
    value_head: nn.Module | None
    """(..., d) -> (...,) on the policy's trunk."""
    critic: SeparateCritic | None
    """The critic with a trunk of its own."""
    decoding: DecodingPolicy
    """The decoding policy; holds temperature and logits processor."""
    legality: TokenConstraints | None
    """Which tokens are legal, for episodes whose ``sampling`` does not contain it."""
    max_tokens: int
    """Padded tokens of one pass of ``evaluate``."""
    _packing: bool = False
    _restriction: TokenRestriction | None = None
    """Rule under which the policy's own passes compute log-probs at the moment."""
    _reference: ReferencePolicy | None
    _memo: Memo
    _warned: bool

    def reference(self, mode: ReferenceMode | None = None) -> ReferencePolicy:
        """The frozen policy to measure KL against."""
        raise NotImplementedError

    def invalidate(self) -> None:
        """Clear the cache, after weights changed in a way that cannot be detected (``.data`` edits)."""
        self.decoding.invalidate()
        self._memo.forget()

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def temperature(self) -> float:
        """Temperature: logits are divided by it."""
        return self.decoding.temperature

    @property
    def autocast(self) -> Autocast:
        """Number format of matrix products in teacher-forced passes."""
        return self._autocast

    @autocast.setter
    def autocast(self, name: Autocast) -> None:
        if name not in get_args(Autocast):
            raise ValueError(f"autocast must be one of {list(get_args(Autocast))}, got {name!r}")
        self._autocast: Autocast = name

    @property
    def packing(self) -> bool:
        """Whether teacher-forced passes put several episodes in one row.

        Raises:
            ValueError: if it is set for a model in which a packed episode would not be what it is alone.
        """
        return self._packing

    @packing.setter
    def packing(self, on: bool) -> None:
        if on:
            check_packing(self.model)
        self._packing = on

    def forward(
        self, episodes: EpisodeBatch, *, values: bool = False, entropy: bool = False, hidden: bool = False
    ) -> PolicyOutput:
        """Differentiable pass over a minibatch: one backbone forward for all that is asked for.

        Args:
            episodes: B episodes.
            values: also V of the state before each action.
            entropy: also entropies.
            hidden: also the LM head's inputs.

        Raises:
            ValueError: if values are requested from a policy without a critic.
        """
        if torch.is_grad_enabled():
            self.warn_of_filters(episodes.sampling)
            asked = {"values": values, "entropy": entropy, "hidden": hidden}
            with watch_of(self).lock:
                state, wanted = self._state(), {name for name, on in asked.items() if on}
                kept = self._memo.take_graph(episodes, state, wanted)
            if kept is not None:
                return kept
        return self._pass(episodes, values=values, entropy=entropy, hidden=hidden)

    def expect_step(self, episodes: EpisodeBatch) -> None:
        """Declare that the next optimizer step uses exactly these episodes, so it can reuse their evaluation.

        The evaluation of a batch that fits ``max_tokens`` is then made with gradient, and ``forward`` on the
        same episodes returns it, once, as long as no weight has changed: the same numbers with one pass less.
        """
        if len(episodes) * episodes.input_ids.shape[1] <= self.max_tokens:
            self._memo.expect(episodes)

    def evaluate(
        self,
        episodes: EpisodeBatch,
        *,
        values: bool | None = None,
        entropy: bool = False,
        final_values: bool = False,
        reference: bool = False,
    ) -> PolicyOutput:
        """One pass without gradient, in length-sorted parts of at most ``max_tokens`` padded tokens.

        Of a batch that all processes hold (``agents.distributed.data_parallel``) each passes over its
        own rows.

        The last evaluation is cached, and returned again for the same episodes until a weight changes. Do not
        change it in place.

        Args:
            episodes: B episodes.
            values: also V of the state before each action; None = if there is a critic.
            entropy: also entropies.
            final_values: also V after the last token.
            reference: also the reference's log-probs.

        Raises:
            ValueError: if values are requested from a policy without a critic.
        """
        values = self._has_critic if values is None else values
        with watch_of(self).lock:
            return self._evaluate(episodes, values, entropy, final_values, reference)

    def _evaluate(
        self, episodes: EpisodeBatch, values: bool, entropy: bool, final_values: bool, reference: bool
    ) -> PolicyOutput:
        """``evaluate``; the caller holds the model's lock."""
        asked = {
            "values": values,
            "entropy": entropy,
            "final_values": final_values,
            "ref_log_probs": reference,
        }
        wanted = {name for name, flag in asked.items() if flag}
        state = self._state()
        known = self._memo.get(episodes, state)
        if known is not None and known.has(wanted):
            return known
        local = local_rows(episodes)
        if local is not None:
            own = self.evaluate(
                local.own, values=values, entropy=entropy, final_values=final_values, reference=reference
            )
            return self._memo.put(episodes, state, joined_output(local, own, episodes))
        other = self.reference() if reference else None
        shared = other is not None and other.mode == "shared-trunk"

        def run(part: EpisodeBatch) -> PolicyOutput:
            if other is None or not shared:
                return self._pass(part, values=values, entropy=entropy, final_values=final_values)
            with other.sharing():
                output = self._pass(part, values=values, entropy=entropy, final_values=final_values)
                return output._replace(ref_log_probs=other.forward_model(part).log_probs)

        expected = not shared and self._memo.expects(episodes)
        if expected:
            self.train()
            with torch.enable_grad():
                found = self._memo.put_graph(episodes, state, run(episodes))
        with torch.no_grad():
            if not expected:
                found = in_parts(episodes, self.max_tokens, run)
            if other is not None and not shared:
                found = found._replace(ref_log_probs=other.log_prob(episodes))
        return self._memo.put(episodes, state, found)

    def known_ref_log_probs(self, episodes: EpisodeBatch) -> Tensor | None:
        """The reference's log-probs (B, L), if the last evaluation found them for these episodes."""
        known = self._memo.get(episodes, self._state())
        return None if known is None else known.ref_log_probs

    def log_prob(self, episodes: EpisodeBatch) -> Tensor:
        """Log-probs of the actions: (B, L), 0 elsewhere; no gradient."""
        shared = self._reference is not None and self._reference.mode == "shared-trunk"
        return self.evaluate(episodes, reference=shared).log_probs

    def values(self, episodes: EpisodeBatch) -> Tensor:
        """V of the state before each action: (B, L), 0 elsewhere; no gradient."""
        found = self.evaluate(episodes, values=True).values
        assert found is not None
        return found

    def entropy(self, episodes: EpisodeBatch) -> Tensor:
        """Entropy in nats of the distribution of each action: (B, L), 0 elsewhere; no gradient."""
        found = self.evaluate(episodes, entropy=True).entropy
        assert found is not None
        return found

    def forward_model(
        self, model: nn.Module, episodes: EpisodeBatch, *, entropy: bool = False, **options: Any
    ) -> TokenLogProbs:
        """Pass of any causal LM with this policy's temperature, token constraints and precision."""
        legality = TokenConstraints.from_sampling(episodes.sampling) or self.legality
        with watch_of(model).lock, self._precision():
            return token_log_probs(
                model,
                episodes,
                temperature=self.temperature,
                legality=legality,
                with_entropy=entropy,
                packing=self.packing,
                **options,
            )

    def score(self, model: nn.Module, episodes: EpisodeBatch, **options: Any) -> TokenLogProbs:
        """Deprecated: ``forward_model``."""
        warn_renamed("score", "forward_model")
        return self.forward_model(model, episodes, **options)

    def warn_of_filters(self, sampling: Mapping[str, Any] | None = None) -> bool:
        """Warn, once, if actions come from a filtered distribution (log-probs are those of the whole one).

        Args:
            sampling: of the episodes; None = how this policy acts.

        Returns:
            Whether filters are on.
        """
        sampling = self.decoding.sampling() if sampling is None else sampling
        on = filters(sampling)
        if on and not self._warned:
            self._warned = True
            warnings.warn(
                f"training on actions drawn with {on}, but log-probs are those of all tokens, so KL "
                "estimates and probability ratios are wrong; train with top_k=0, top_p=1.0, greedy=False",
                stacklevel=3,
            )
        return bool(on)

    def _pass(
        self,
        episodes: EpisodeBatch,
        *,
        values: bool = False,
        entropy: bool = False,
        final_values: bool = False,
        hidden: bool = False,
        processed: bool = True,
    ) -> PolicyOutput:
        """A teacher-forced pass; ``processed``: under the distribution that the logits processor makes."""
        if (values or final_values) and not self._has_critic:
            raise ValueError("values need a critic: make the policy with value_head=True, got none")
        head = self.value_head
        states = hidden or (final_values and head is not None)
        found = self.forward_model(
            self.model,
            episodes,
            entropy=entropy,
            with_hidden=states,
            value_head=head if values else None,
            logits_processor=self.decoding.logits_processor if processed else None,
            restriction=self._restriction,
        )
        state_values, final = found.values, None
        if head is not None and final_values:
            assert found.hidden is not None
            final = head(final_states(found.hidden, episodes))
        if self.critic is not None and (values or final_values):
            with self._precision():
                state_values, final = self.critic(episodes, packing=self.packing)
        return PolicyOutput(
            log_probs=found.log_probs,
            values=state_values if values else None,
            entropy=found.entropy,
            final_values=final if final_values else None,
            hidden=found.hidden if hidden else None,
        )

    @property
    def _has_critic(self) -> bool:
        return self.value_head is not None or self.critic is not None

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.autocast))

    def _state(self) -> Hashable:
        """A key that is equal as long as a repeated pass gives the same result."""
        weights = self.decoding.weights_version, watch_of(self).state(), float_settings(self)
        rules = (self.temperature, self.autocast, self.packing, self.legality, self.decoding.logits_processor)
        return weights, rules, self._restriction
