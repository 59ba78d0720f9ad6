"""LanguagePolicy: a causal LM with an optional critic; it acts in text environments and agents train it.

Acting, old, new and reference log-probs share one temperature and one legality rule; old, new and reference
ones also share one teacher-forced forward (``textenv.log_probs``). Shape letters: B episodes, L tokens, N
environment rows, V vocabulary, d hidden width.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from textenv.acting import DecodingPolicy, LogitsProcessor
from textenv.agents.critics import SeparateCritic, final_states
from textenv.agents.heads import HeadKind, ValueHead, checked_head, head_dtype
from textenv.agents.model_setup import (
    add_lora,
    as_peft,
    checkpoint_activations,
    disable_dropout,
    fuse_activations,
    load_causal_lm,
    train_top_layers,
)
from textenv.agents.references import Reference, ReferenceMode, lightest_mode
from textenv.agents.teacher_forced import Evaluation, Memo, filters, in_parts
from textenv.episodes import EpisodeBatch
from textenv.legality import Legality, vocabulary_size
from textenv.log_probs import TokenLogProbs, token_log_probs
from textenv.model_split import output_head

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

CriticKind = Literal["shared", "separate"]
Autocast = Literal["float32", "bfloat16", "float16"]


class LanguagePolicy(nn.Module):
    """A causal LM as a policy over tokens.

    The model is prepared in place: every dropout probability is set to 0, so train mode is deterministic,
    and activations that transformers writes out in many operations give way to fused ones. Call the policy on
    a minibatch for what has gradients (``policy(episodes).log_probs``); ``evaluate`` and its kin have none.

    Args:
        model: a transformers causal LM: hub id, folder, config (random weights), module, or peft model. A
            module is not copied.
        tokenizer: the task's; saved with the model.
        temperature: logits are divided by it, when acting and in every log-prob.
        top_k: act among the k likeliest tokens, 0 for all. Log-probs do not know of it: off while training.
        top_p: act within the nucleus of this mass. Log-probs do not know of it: off while training.
        greedy: act by the likeliest token.
        value_head: False = no critic; True or "shared" = a head on the policy's trunk; "separate" = a trunk
            of its own, which starts as a copy; or a module (..., d) -> (...,) on the policy's trunk.
        head_kind: shape of a critic's head made here.
        lora: train low-rank adapters only: True, keyword arguments of ``peft.LoraConfig``, or a peft config.
        train_layers: train only so many top blocks and what follows them.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        autocast: number format of matrix products in teacher-forced passes; weights keep their own.
        dtype: of the weights where they are loaded here.
        device: where to put the model; None leaves it.
        legality: which tokens are legal, for episodes whose ``sampling`` does not say.
        max_tokens: padded tokens of one pass of ``evaluate``.
        seed: of random weights.
        cached: False acts without a key-value cache.
        trust_remote_code: whether code that comes with a hub id or folder may run.

    Raises:
        TypeError: if ``model`` is none of these.
        ValueError: for an argument out of its range, or ``lora`` together with ``train_layers``.
        ImportError: for ``lora`` without peft.

    Example:
        >>> from transformers import GPT2Config
        >>> policy = LanguagePolicy(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11), value_head=True)
        >>> episodes = EpisodeBatch.from_ids([[5, 6]], [[7, 8, 9]])
        >>> out = policy(episodes, values=True)
        >>> tuple(out.log_probs.shape), out.values.tolist()
        ((1, 5), [[0.0, 0.0, 0.0, 0.0, 0.0]])
    """

    model: nn.Module
    """The causal LM (with adapter layers inside it, if there are adapters)."""
    peft: PeftModel | None
    """The adapters' view of the model, if there are adapters."""
    value_head: nn.Module | None
    """(..., d) -> (...,) on the policy's trunk."""
    critic: SeparateCritic | None
    """The critic with a trunk of its own."""

    def __init__(
        self,
        model: str | os.PathLike[str] | PretrainedConfig | nn.Module,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        greedy: bool = False,
        value_head: bool | CriticKind | nn.Module = False,
        head_kind: HeadKind = "linear",
        lora: bool | Mapping[str, Any] | Any = False,
        train_layers: int | None = None,
        gradient_checkpointing: bool = False,
        autocast: Autocast = "float32",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        legality: Legality | None = None,
        max_tokens: int = 16384,
        seed: int = 0,
        cached: bool = True,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if lora and train_layers is not None:
            raise ValueError("lora and train_layers are two ways to freeze the model, give one; got both")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {max_tokens}")
        loaded = load_causal_lm(model, dtype=dtype, seed=seed, trust_remote_code=trust_remote_code)
        adapted = add_lora(loaded, lora, seed=seed) if lora else as_peft(loaded)
        # Registered as a plain attribute: its parameters are those of ``model``.
        object.__setattr__(self, "peft", adapted)
        self.model = loaded if adapted is None else adapted.get_base_model()
        if train_layers is not None:
            train_top_layers(self.model, train_layers)
        if device is not None:
            self.model.to(device)
        self.dropout = disable_dropout(self.model)
        fuse_activations(self.model)
        if gradient_checkpointing:
            checkpoint_activations(self.model)
        self.gradient_checkpointing = gradient_checkpointing
        self.tokenizer = tokenizer
        self.train_layers = train_layers
        self.legality = legality
        self.max_tokens = max_tokens
        self.seed = seed
        self.autocast = autocast
        self.decoding = DecodingPolicy(
            self.model, temperature=temperature, top_k=top_k, top_p=top_p, greedy=greedy, cached=cached
        )
        self.head_kind: HeadKind = head_kind
        self.value_head = self.critic = None
        if isinstance(value_head, nn.Module):
            self.value_head = self.decoding.value_head = checked_head(
                value_head.to(self.device), self.hidden_size
            )
        elif value_head is not False:
            self.add_critic("shared" if value_head is True else value_head)
        self._reference: Reference | None = None
        self._memo = Memo()
        self._warned = False

    @property
    def _hf(self) -> Any:
        """The model, as transformers sees it."""
        return self.model

    # -- facts -----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def hidden_size(self) -> int:
        """d, width of the LM head's input."""
        width = getattr(output_head(self.model), "in_features", None)
        return int(self._hf.config.get_text_config().hidden_size if width is None else width)

    @property
    def vocab_size(self) -> int:
        """V: the tokenizer's vocabulary, or without a tokenizer the model's."""
        if self.tokenizer is not None:
            return vocabulary_size(self.tokenizer)
        return int(self._hf.config.get_text_config().vocab_size)

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
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

    def add_critic(self, kind: CriticKind = "shared") -> None:
        """Take on a critic, unless there is one of this kind.

        Raises:
            ValueError: on an unknown kind, or if there is a critic of the other kind.
        """
        if kind not in get_args(CriticKind):
            raise ValueError(f"critic must be one of {list(get_args(CriticKind))}, got {kind!r}")
        present = "separate" if self.critic is not None else "shared" if self.value_head is not None else None
        if present == kind:
            return
        if present is not None:
            raise ValueError(f"the policy has a {present} critic, expected a {kind} one")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if kind == "shared":
                head = ValueHead(self.hidden_size, kind=self.head_kind).to(
                    self.device, head_dtype(self.model)
                )
                self.value_head = self.decoding.value_head = head
            else:
                self.critic = SeparateCritic(self.model, self.hidden_size, kind=self.head_kind)

    # -- acting ----------------------------------------------------------------------------------------------

    def attach(self, env: Any) -> None:
        """Learn an environment's size and legality (``collect`` does it)."""
        self.decoding.attach(env)

    def act(
        self, obs: Mapping[str, Any], key: Any = None, *, active: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """Choose a token for every row, as a function of weights, observation and key.

        Args:
            obs: ``input_ids`` (N, L), ``attention_mask`` (N, L), ``prompt_length`` (N,), tensors or numpy
                arrays.
            key: (N,) int64 noise keys; None draws from torch's global generator.
            active: (N,) bool, rows that act; None = all.

        Returns:
            actions (N,) and ``{"log_prob": (N,)}``, with ``"value": (N,)`` if a critic is on the policy's
            trunk.
        """
        return self.decoding.act(obs, key, active=active)

    def sampling(self) -> dict[str, Any]:
        """How actions are sampled, as kept in ``EpisodeBatch.sampling``."""
        return self.decoding.sampling()

    def set_logits_processor(self, processor: LogitsProcessor | None) -> None:
        """Let ``processor`` change the legal logits before temperature and filters, everywhere."""
        self.decoding.logits_processor = processor

    @property
    def weights_version(self) -> int:
        """Moves whenever weights may have changed."""
        return self.decoding.weights_version

    def invalidate(self) -> None:
        """Forget all that was computed: weights changed in a way that cannot be seen (``.data`` edits)."""
        self.decoding.invalidate()
        self._memo.forget()

    # -- teacher-forced passes -------------------------------------------------------------------------------

    def forward(
        self, episodes: EpisodeBatch, *, values: bool = False, entropy: bool = False, hidden: bool = False
    ) -> Evaluation:
        """Differentiable pass over a minibatch: one backbone forward for all that is asked for.

        Args:
            episodes: B episodes.
            values: also V of the state before each action.
            entropy: also entropies.
            hidden: also the LM head's inputs.

        Raises:
            ValueError: if values are asked of a policy without a critic.
        """
        if torch.is_grad_enabled():
            self.warn_of_filters(episodes.sampling)
        return self._pass(episodes, values=values, entropy=entropy, hidden=hidden)

    def evaluate(
        self,
        episodes: EpisodeBatch,
        *,
        values: bool | None = None,
        entropy: bool = False,
        final_values: bool = False,
        reference: bool = False,
    ) -> Evaluation:
        """One pass without gradient, in length-sorted parts of at most ``max_tokens`` padded tokens.

        The last evaluation is remembered: asked again about the same episodes before any weight has moved, it
        is given again. Do not change it in place.

        Args:
            episodes: B episodes.
            values: also V of the state before each action; None = if there is a critic.
            entropy: also entropies.
            final_values: also V after the last token.
            reference: also the reference's log-probs.

        Raises:
            ValueError: if values are asked of a policy without a critic.
        """
        values = self._has_critic if values is None else values
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
        other = self.reference() if reference else None
        shared = other is not None and other.mode == "shared-trunk"

        def run(part: EpisodeBatch) -> Evaluation:
            if other is None or not shared:
                return self._pass(part, values=values, entropy=entropy, final_values=final_values)
            with other.sharing():
                ours = self._pass(part, values=values, entropy=entropy, final_values=final_values)
                return ours._replace(ref_log_probs=other.score(part).log_probs)

        with torch.no_grad():
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

    def score(
        self, model: nn.Module, episodes: EpisodeBatch, *, entropy: bool = False, **options: Any
    ) -> TokenLogProbs:
        """Teacher-forced pass of any causal LM under this policy's temperature, legality and precision."""
        legality = Legality.from_sampling(episodes.sampling) or self.legality
        with self._precision():
            return token_log_probs(
                model,
                episodes,
                temperature=self.temperature,
                legality=legality,
                with_entropy=entropy,
                **options,
            )

    def warn_of_filters(self, sampling: Mapping[str, Any] | None = None) -> bool:
        """Warn, once, if actions come from a filtered distribution (log-probs are those of the whole one).

        Args:
            sampling: of the episodes; None = how this policy acts.

        Returns:
            Whether filters are on.
        """
        sampling = self.sampling() if sampling is None else sampling
        on = filters(sampling)
        if on and not self._warned:
            self._warned = True
            warnings.warn(
                f"training on actions drawn with {on}, but log-probs are those of all tokens, so KL "
                " estimates and probability ratios are wrong; train with top_k=0, top_p=1.0, greedy=False",
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
    ) -> Evaluation:
        """A teacher-forced pass; ``processed``: under the distribution that the logits processor makes."""
        if (values or final_values) and not self._has_critic:
            raise ValueError("values need a critic: make the policy with value_head=True, got none")
        head = self.value_head
        states = hidden or (final_values and head is not None)
        found = self.score(
            self.model,
            episodes,
            entropy=entropy,
            with_hidden=states,
            value_head=head if values else None,
            logits_processor=self.decoding.logits_processor if processed else None,
        )
        state_values, final = found.values, None
        if head is not None and final_values:
            assert found.hidden is not None
            final = head(final_states(found.hidden, episodes))
        if self.critic is not None and (values or final_values):
            with self._precision():
                state_values, final = self.critic(episodes)
        return Evaluation(
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
        if self._autocast == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self._autocast))

    def _state(self) -> Hashable:
        """Equal as long as no pass can give anything else."""
        edits = sum(parameter._version for parameter in self.parameters())
        return self.weights_version, edits, self.temperature, self._autocast, self.decoding.logits_processor

    # -- reference -------------------------------------------------------------------------------------------

    def reference(self, mode: ReferenceMode | None = None) -> Reference:
        """The frozen policy to measure KL against: the weights at the first call, and the same ever after.

        Args:
            mode: see ``Reference``; None = the lightest that is exact: without the adapters while they change
                nothing, else on the shared trunk if the bottom layers are frozen, else a copy.

        Raises:
            ValueError: if the reference was taken in another mode, or the mode does not fit.
        """
        if self._reference is None:
            self._reference = Reference(self, mode or lightest_mode(self))
        elif mode not in (None, self._reference.mode):
            raise ValueError(
                f"the reference was taken in mode {self._reference.mode!r}, got {mode!r}; "
                "reset_reference() takes another"
            )
        return self._reference

    def reset_reference(self, mode: ReferenceMode | None = None) -> Reference:
        """Take the weights as they are now for the reference."""
        self._reference = None
        self._memo.forget()
        return self.reference(mode)

    # -- files -----------------------------------------------------------------------------------------------

    def extra_settings(self) -> dict[str, Any]:
        """JSON values of the constructor arguments that a subclass adds; ``save`` keeps them."""
        return {}

    def save(self, path: str | os.PathLike[str], *, reference: bool = False) -> None:
        """Write a folder that plain ``AutoModelForCausalLM.from_pretrained`` loads.

        Args:
            path: folder.
            reference: also the reference's own weights, so that training can go on.
        """
        from textenv.agents.policy_files import save_policy

        save_policy(self, path, reference=reference)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Rebuild a policy from ``save``'s folder; ``options`` come before what was saved."""
        from textenv.agents.policy_files import load_policy

        return load_policy(cls, path, **options)
