"""LanguagePolicy: a causal LM with an optional critic; it acts in text environments and agents train it.

Acting, old, new and reference log-probs use the same temperature and token constraints; all but
acting also share one teacher-forced forward (``textenv.modeling.log_probs``). Shape letters: B episodes, L
tokens, N environment rows, V vocabulary, d hidden width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import nn

from textenv.agents.policies.adapters import add_lora, as_peft, check_adapters, unwrapped
from textenv.agents.policies.critics import SeparateCritic
from textenv.agents.policies.files import head_tensors, load_policy, save_policy
from textenv.agents.policies.heads import HeadKind, ValueHead, checked_head, head_dtype
from textenv.agents.policies.model_setup import (
    checkpoint_activations,
    disable_dropout,
    fuse_activations,
    load_causal_lm,
    train_top_layers,
)
from textenv.agents.policies.outputs import Memo, ReferenceMode
from textenv.agents.policies.references import Reference, lightest_mode
from textenv.agents.policies.teacher_forced import Autocast, TeacherForced
from textenv.agents.policies.tied_adapters import tie_adapters
from textenv.envs.token_constraints import TokenConstraints, tokenizer_vocab_size
from textenv.generation.policy import DecodingPolicy, LogitsProcessor
from textenv.modeling.compile import compile_trunk
from textenv.modeling.model_checks import check_causal_lm
from textenv.modeling.split_model import output_head
from textenv.utils.checks import check_at_least, check_device, check_flag, check_seed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

CriticKind = Literal["shared", "separate"]


class LanguagePolicy(TeacherForced):
    """A causal LM as a policy over tokens.

    The model is prepared in place: every dropout probability is set to 0, so train mode is deterministic,
    and activations that transformers writes out in many operations are replaced by fused ones.
    ``policy(episodes)`` runs with gradient; ``evaluate``, ``log_prob`` and similar methods without.

    Args:
        model: a transformers causal LM: hub id, folder, config (random weights), module, or peft model. A
            module is not copied.
        tokenizer: the task's; saved with the model.
        temperature: logits are divided by it, when acting and in every log-prob.
        top_k: sample from the k most likely tokens; 0 is all. Log-probs ignore it: leave it off in training.
        top_p: sample from the nucleus of this mass. Log-probs ignore it: leave it off in training.
        greedy: take the most likely token.
        value_head: False = no critic; True or "shared" = a head on the policy's trunk; "separate" = a trunk
            of its own, which starts as a copy; or a module (..., d) -> (...,) on the policy's trunk.
        head_kind: shape of a critic's head made here.
        lora: train low-rank adapters only: True, keyword arguments of ``peft.LoraConfig``, or a peft config.
        train_layers: train only this number of top blocks, and the layers after them.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        compile: use ``torch.compile`` for the trunks in teacher-forced passes: True, or a backend's name.
        autocast: number format of matrix products in teacher-forced passes; weights keep their own.
        dtype: of the weights where they are loaded here.
        device: where to put the model; None leaves it.
        legality: which tokens are legal, for episodes whose ``sampling`` does not contain it.
        max_tokens: padded tokens of one pass of ``evaluate``.
        seed: seed of random weights.
        cached: False acts without a key-value cache.
        trust_remote_code: whether code that comes with a hub id or folder may run.

    Raises:
        TypeError: if ``model`` is none of these.
        ValueError: for an argument out of its range, ``lora`` together with ``train_layers``, or a model
            whose trunk can't be compiled, with ``compile``.
        ImportError: for ``lora`` without peft.

    Example:
        >>> from transformers import GPT2Config
        >>> from textenv.episodes.batch import EpisodeBatch
        >>> policy = LanguagePolicy(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11), value_head=True)
        >>> episodes = EpisodeBatch.from_ids([[5, 6]], [[7, 8, 9]])
        >>> out = policy(episodes, values=True)
        >>> tuple(out.log_probs.shape), out.values.tolist()
        ((1, 5), [[0.0, 0.0, 0.0, 0.0, 0.0]])
    """

    peft: PeftModel | None
    """The adapters' view of the model, if there are adapters."""
    _reference: Reference | None

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
        compile: bool | str = False,
        autocast: Autocast = "float32",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        legality: TokenConstraints | None = None,
        max_tokens: int = 16384,
        seed: int = 0,
        cached: bool = True,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if lora and train_layers is not None:
            raise ValueError("lora and train_layers are two ways to freeze the model, give one; got both")
        check_at_least("max_tokens", max_tokens, 1)
        check_seed("seed", seed)
        check_flag("gradient_checkpointing", gradient_checkpointing)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a torch dtype of floats, such as torch.bfloat16, got {dtype!r}")
        if device is not None:
            check_device("device", device)
        if isinstance(lora, str):
            raise TypeError(f"lora must be True, False, a dict or a peft config, got {lora!r}")
        if legality is not None and not isinstance(legality, TokenConstraints):
            raise TypeError(f"legality must be a TokenConstraints, got {legality!r}")
        loaded = load_causal_lm(model, dtype=dtype, seed=seed, trust_remote_code=trust_remote_code)
        if as_peft(loaded) is None:
            check_causal_lm(loaded)
        adapted = add_lora(loaded, lora, seed=seed) if lora else as_peft(loaded)
        check_adapters(loaded if adapted is None else adapted)
        # Registered as a plain attribute: its parameters are those of ``model``.
        object.__setattr__(self, "peft", adapted)
        self.model = loaded if adapted is None else adapted.get_base_model()
        if adapted is not None:
            tie_adapters(adapted)
        if train_layers is not None:
            train_top_layers(self.model, train_layers)
        if device is not None:
            self.model.to(device)
        self.dropout = disable_dropout(self.model)
        fuse_activations(self.model)
        if gradient_checkpointing:
            checkpoint_activations(self.model)
        self.gradient_checkpointing = gradient_checkpointing
        self.compile_backend: str | None = "inductor" if compile is True else compile or None
        if self.compile_backend is not None:
            compile_trunk(self.model, backend=self.compile_backend)
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
        self._reference = None
        self._memo = Memo()
        self._warned = False

    @property
    def _hf(self) -> Any:
        """The model, as transformers sees it."""
        return self.model

    @property
    def hidden_size(self) -> int:
        """d, width of the LM head's input."""
        head = output_head(self.model)
        width = None if head is None else getattr(unwrapped(head), "in_features", None)
        return int(self._hf.config.get_text_config().hidden_size if width is None else width)

    @property
    def vocab_size(self) -> int:
        """V: the tokenizer's vocabulary, or without a tokenizer the model's."""
        if self.tokenizer is not None:
            return tokenizer_vocab_size(self.tokenizer)
        return int(self._hf.config.get_text_config().vocab_size)

    def add_critic(self, kind: CriticKind = "shared") -> None:
        """Add a critic, unless there is one of this kind.

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
                if self.compile_backend is not None:
                    compile_trunk(self.critic.trunk, backend=self.compile_backend)

    def attach(self, env: Any) -> None:
        """Take vocabulary size and token constraints from an environment (``collect`` calls it)."""
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
        """Apply ``processor`` to the legal logits before temperature and filters, in acting and in passes."""
        self.decoding.logits_processor = processor

    @property
    def weights_version(self) -> int:
        """A number that changes whenever weights may have changed."""
        return self.decoding.weights_version

    def reference(self, mode: ReferenceMode | None = None) -> Reference:
        """The frozen policy that the KL is measured from: the weights at the first call.

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
        """Use the current weights as the reference."""
        self._reference = None
        self._memo.forget()
        return self.reference(mode)

    def extra_settings(self) -> dict[str, Any]:
        """JSON values of the constructor arguments that a subclass adds; ``save`` keeps them."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values, without the model and a value head given as a module."""
        shared = "shared" if isinstance(self.value_head, ValueHead) else False
        decoding = self.decoding
        return {
            "temperature": decoding.temperature,
            "top_k": decoding.top_k,
            "top_p": decoding.top_p,
            "greedy": decoding.greedy,
            "value_head": "separate" if self.critic is not None else shared,
            "head_kind": self.head_kind,
            "train_layers": self.train_layers,
            "gradient_checkpointing": self.gradient_checkpointing,
            "autocast": self.autocast,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            **self.extra_settings(),
        }

    def save(self, path: str | os.PathLike[str], *, reference: bool = False) -> None:
        """Write a folder that plain ``AutoModelForCausalLM.from_pretrained`` loads.

        Args:
            path: folder.
            reference: also the reference's own weights, so that training can go on.
        """
        save_policy(
            path,
            kind=type(self).__name__,
            model=self.model,
            peft=self.peft,
            tokenizer=self.tokenizer,
            settings=self.settings(),
            heads=head_tensors(self),
            dropout=self.dropout,
            reference=self.reference() if reference else None,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Rebuild a policy from ``save``'s folder; ``options`` override the saved ones."""
        return load_policy(cls, path, **options)
