"""Choose the next token of every environment row: decode, apply token constraints and filters, sample.

``DecodingPolicy.act`` is a function of (weights, observation, key). The KV cache changes only the speed: a
row's cache is used if its tokens are a prefix of the observation and the weights have not changed; otherwise
the row is prefilled again. Shape letters: N environment rows, n rows that act, L columns, V vocabulary, W
logits, d hidden width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from textenv.envs.host_mirror import HostMirror
from textenv.envs.observation_source import source_of
from textenv.envs.token_constraints import TokenConstraints
from textenv.generation.prefill_cache import UpcomingPrompts
from textenv.generation.row_decoder import RowDecoder
from textenv.generation.sampling import filter_top_k_top_p, greedy_with_log_prob, sample_with_log_prob
from textenv.generation.uncached import uncached_logits
from textenv.modeling.attention_masks import UnsupportedModelError
from textenv.modeling.model_checks import check_causal_lm, usable_positions
from textenv.modeling.nucleus import RestrictLogits, TokenRestriction
from textenv.modeling.weight_version import note_weight_change, watch_of
from textenv.utils.checks import check_flag, check_positive
from textenv.utils.devices import to_device

LogitsProcessor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (n, V), hidden (n, d), t (n,)) -> logits (n, V); may work in place."""


class DecodingPolicy:
    """Samples tokens from a causal LM for the rows of a text environment.

    Changes of the weights are detected (see ``ModelWatch``): optimizer steps, loading, edits in place,
    replaced or moved parameters and modules, adapters that are switched, scaled or merged. Call
    ``invalidate`` after in-place edits through ``.data``. Several threads may act; they take turns.

    Args:
        model: a transformers causal LM; it decodes in eval mode, and its training mode is restored.
        temperature: logits are divided by it.
        top_k: sample among the k most likely tokens, 0 for all.
        top_p: sample from the nucleus of this probability mass.
        greedy: take the most likely token instead of sampling.
        logits_processor: changes the legal logits before temperature and filters.
        value_head: hidden (n, d) -> values (n,), evaluated at every step.
        restriction: excludes further tokens in each state (see ``textenv.generation.nucleus``).
        cached: False recomputes every step from scratch (slow; the reference for tests of the cache).
        cuda_graphs: see ``Decoder``.

    Raises:
        ValueError: for a setting out of range, or a model that is not a causal LM with finite weights.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16))
        >>> policy = DecodingPolicy(model)
        >>> obs = {"input_ids": torch.tensor([[3, 4, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> actions, info = policy.act(obs, key=torch.tensor([7]))
        >>> tuple(actions.shape), tuple(info["log_prob"].shape)
        ((1,), (1,))
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        greedy: bool = False,
        logits_processor: LogitsProcessor | None = None,
        value_head: Callable[[Tensor], Tensor] | None = None,
        restriction: TokenRestriction | None = None,
        cached: bool = True,
        cuda_graphs: bool | None = None,
    ) -> None:
        check_positive("temperature", temperature, "; use greedy=True for the likeliest token")
        check_flag("greedy", greedy)
        check_flag("cached", cached)
        filter_top_k_top_p(torch.zeros(1, 1), top_k, top_p)
        check_causal_lm(model)
        self.model = model
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.greedy = greedy
        self.logits_processor = logits_processor
        self.value_head = value_head
        self.restriction = restriction
        self.cached = cached
        self.cuda_graphs = cuda_graphs
        self.legality: TokenConstraints | None = None
        self._upcoming: UpcomingPrompts | None = None
        self._host_mirror: HostMirror | None = None
        self._decoder: RowDecoder | None = None
        self._warned = False
        self._shape: tuple[int, int] | None = None
        self._base, self._layout = watch_of(model).state()
        self._version = 0
        self._seen: tuple[int, int] | None = None
        register = getattr(model, "register_load_state_dict_post_hook", None)
        if register is not None:
            register(note_weight_change)

    # -- set-up ----------------------------------------------------------------------------------------------

    def attach(self, env: Any) -> None:
        """Use an environment's size and token constraints; another size than before drops the cache.

        ``act`` calls it for observations of environments in this process.

        Args:
            env: the unwrapped environment with ``legality``, ``max_length`` and, unless it is a single one,
                ``num_envs``. Optional: ``upcoming_prompts(count) -> (ids (m, P), lengths (m,))`` allows
                prefill ahead of need, and ``host_mirror`` avoids reading from the device at every token.

        Raises:
            ValueError: if the model has fewer logits than the tokenizer has tokens, or fewer positions than
                ``max_length``.
        """
        with watch_of(self.model).lock:
            legality: TokenConstraints = env.legality
            head = getattr(self.model, "get_output_embeddings", lambda: None)()
            width = getattr(getattr(head, "weight", None), "shape", (None,))[0]
            if isinstance(head, nn.Linear) and width is not None and width < legality.vocab_size:
                legality.apply(torch.empty(0, width), torch.empty(0))
            self.legality = legality
            self._upcoming = getattr(env, "upcoming_prompts", None)
            self._host_mirror = getattr(env, "host_mirror", None)
            self._prepare(int(getattr(env, "num_envs", 1)), int(env.max_length))
            if self.restriction is not None:
                self.restriction.attach(env)

    def _prepare(self, rows: int, length: int) -> None:
        if self._shape == (rows, length):
            return
        positions = usable_positions(self.model)
        if positions is not None and positions < length:
            raise ValueError(
                f"the model has {positions} positions, expected at least the max_length of {length}, "
                "which is the longest prompt plus max_new_tokens"
            )
        self._decoder = None
        if self.cached:
            try:
                self._decoder = RowDecoder(self.model, rows, length, cuda_graphs=self.cuda_graphs)
            except UnsupportedModelError as error:
                warnings.warn(
                    f"{type(self.model).__name__} cannot be decoded with a slot cache, so every token "
                    f"recomputes its whole episode (correct, but slow): {error}",
                    stacklevel=4,
                )
                self.cached = False
        self._shape = (rows, length)

    @property
    def weights_version(self) -> int:
        """A number that changes whenever the weights may have changed; equal versions mean equal weights."""
        return self._version + watch_of(self.model).state()[0] - self._base

    def invalidate(self) -> None:
        """Drop the cache after a change of weights that is not detected (edits through ``.data``)."""
        self._version += 1
        if self.restriction is not None:
            self.restriction.invalidate()

    def sampling(self) -> dict[str, Any]:
        """The sampling settings, as stored in ``EpisodeBatch.sampling``."""
        rules = {} if self.restriction is None else self.restriction.sampling()
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "greedy": self.greedy,
            "weights_version": self.weights_version,
            **rules,
        }

    def _forget_if_changed(self) -> None:
        version, layout = watch_of(self.model).state()
        if layout != self._layout:  # the decoder's buffers, masks and graphs no longer fit
            self.free()
            self._layout = layout
        if (version, self._version) != self._seen:
            self._seen = version, self._version
            self._forget()

    def _forget(self) -> None:
        if self._decoder is not None:
            self._decoder.forget()

    def free(self) -> None:
        """Free the cache's memory; the next ``act`` allocates it again."""
        self._decoder, self._shape = None, None

    @contextmanager
    def without_values(self) -> Iterator[None]:
        """Within the block ``act`` returns no values, for callers that evaluate whole episodes afterwards."""
        head, self.value_head = self.value_head, None
        try:
            yield
        finally:
            self.value_head = head

    # -- acting ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], key: Any = None, *, active: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """Choose a token for every row.

        Args:
            obs: ``input_ids`` (N, L), ``attention_mask`` (N, L) and, if token constraints or a processor need
                t, ``prompt_length`` (N,), the start of the current turn; tensors or numpy arrays. (L,) of a
                single environment is accepted, too.
            key: (N,) int64 noise keys; None uses torch's global generator.
            active: (N,) bool, rows that act; None = all. Other rows leave the cache, cost nothing and get
                token 0.

        Returns:
            actions (N,) int64 and ``{"log_prob": (N,)}``, with ``"value": (N,)`` if there is a value head; 0
            in rows that do not act. Numpy arrays give numpy arrays. Log-probs are those of the filtered
            logits.
        """
        with watch_of(self.model).lock:
            return self._act(obs, key, active)

    def _act(self, obs: Mapping[str, Any], key: Any, active: Any) -> tuple[Any, dict[str, Any]]:
        """``act`` while the lock is held."""
        env = source_of(obs)
        if env is not None and env.host_mirror is not self._host_mirror:
            self.attach(env)
        if env is None and self.legality is None and "prompt_length" in obs and not self._warned:
            self._warned = True
            warnings.warn(
                "the observation does not come from an environment of this process, so all tokens are legal; "
                "call attach(env) before acting",
                stacklevel=3,
            )
        as_numpy = not isinstance(obs["input_ids"], Tensor)
        single = len(obs["input_ids"].shape) == 1

        def read(value: Any) -> Tensor:
            tensor = torch.as_tensor(value)
            return tensor.unsqueeze(0) if single else tensor

        ids, lengths = read(obs["input_ids"]), read(obs["attention_mask"]).sum(-1, dtype=torch.int64)
        acting = None if active is None else read(active).to(ids.device, torch.bool)
        host = self._host_mirror
        known = host if host is not None and host.is_current(obs, active) else None
        rows, logits, hidden = self.next_logits(ids, lengths, acting, known)
        restrict: RestrictLogits | None = None
        if self.restriction is not None:
            rule: Any = {"legality": self.legality, "temperature": self.temperature}
            restrict = self.restriction.at_step(rows, ids, lengths, acting, **rule)
        if len(logits) == 0:
            return self._nothing(ids, as_numpy)
        index = None if rows is None else to_device(rows, logits.device)

        def pick(tensor: Tensor) -> Tensor:
            tensor = tensor.to(logits.device)
            return tensor if index is None else tensor[index]

        t = pick(lengths - read(obs["prompt_length"])) if "prompt_length" in obs else None
        noise = None if key is None else pick(read(key).to(torch.int64))
        tokens, log_prob = self._choose(logits, hidden, t, noise, restrict)
        chosen = {"action": tokens, "log_prob": log_prob}
        if self.value_head is not None:
            chosen["value"] = self.value_head(self._exposed(hidden)).reshape(len(tokens))
        result: dict[str, Any] = {}
        for name, value in chosen.items():
            if index is not None:
                value = value.new_zeros(len(ids)).index_copy_(0, index, value)
            value = value.to(ids.device)
            value = value[0] if single else value
            result[name] = value.numpy() if as_numpy else value
        return result.pop("action"), result

    def next_logits(
        self, ids: Tensor, lengths: Tensor, acting: Tensor | None, known: HostMirror | None = None
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Next-token logits of the rows that act.

        Args:
            ids: (N, L) int64, right-padded.
            lengths: (N,) int64.
            acting: (N,) bool, None = all.
            known: the CPU mirror of this observation, if there is one.

        Returns:
            Rows in the order of the logits (None = 0..N-1), logits (n, W), and the LM head's input (n, d).
        """
        self._forget_if_changed()
        self._prepare(*ids.shape)
        if self._decoder is None:
            return uncached_logits(self.model, ids, lengths, acting)
        try:
            return self._decoder.next_logits(ids, lengths, acting, known, self._upcoming)
        except BaseException:
            self._forget()
            raise

    def _nothing(self, ids: Tensor, as_numpy: bool) -> tuple[Any, dict[str, Any]]:
        """The result of ``act`` if no row acts."""
        names = ("log_prob",) if self.value_head is None else ("log_prob", "value")
        actions, zeros = ids.new_zeros(len(ids)), torch.zeros(len(ids), device=ids.device)
        if as_numpy:
            return actions.numpy(), {name: zeros.numpy() for name in names}
        return actions, dict.fromkeys(names, zeros)

    def _exposed(self, hidden: Tensor | None) -> Tensor:
        """The LM head's input, which value heads and processors read."""
        if hidden is None:
            raise ValueError(f"{type(self.model).__name__} does not expose its LM head's input")
        return hidden

    def _choose(
        self,
        logits: Tensor,
        hidden: Tensor | None,
        t: Tensor | None,
        key: Tensor | None,
        restrict: RestrictLogits | None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (n,) and their log-probs (n,) from the model's logits (n, W)."""
        if t is None:
            if self.logits_processor is not None or (self.legality and self.legality.min_new_tokens):
                raise ValueError("obs must have prompt_length, from which the step t is computed")
            t = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        if self.legality is not None:
            logits = self.legality.apply(logits, t)
        if self.logits_processor is not None:
            logits = self.logits_processor(logits, self._exposed(hidden), t)
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if restrict is not None:
            logits = restrict(logits, t)
        if self.greedy:
            return greedy_with_log_prob(logits)
        if self.top_k or self.top_p < 1.0:
            logits = filter_top_k_top_p(logits, self.top_k, self.top_p)
        return sample_with_log_prob(logits, key)
