"""The protocol of generation engines, and vLLM as one.

An engine gets prompts and sampling parameters; it does not depend on environments, episode ids or rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from textenv.modeling.pretrained import is_trusted


@dataclass(frozen=True, kw_only=True)
class EngineSampling:
    """Sampling parameters: the policy's temperature and filters, the environment's token constraints."""

    temperature: float
    """Logits are divided by it."""
    top_k: int
    """Choose among the k likeliest tokens, 0 for all."""
    top_p: float
    """Choose within the nucleus of this mass."""
    greedy: bool
    """Choose the likeliest token."""
    max_new_tokens: int
    """Tokens of the longest response."""
    min_new_tokens: int
    """Stop tokens are not allowed before this many tokens."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end a response, and are its last."""
    allowed_token_ids: tuple[int, ...] | None
    """The only tokens to choose; None = all that the model has."""
    seeds: tuple[int, ...]
    """One for each prompt, >= 0."""


class Response(NamedTuple):
    """An engine's response to one prompt."""

    tokens: list[int]
    """The response, with the stop token if one ended it."""
    log_probs: list[float]
    """Log-prob of each token under the distribution that it was drawn from."""


class GenerationEngine(Protocol):
    """The methods that ``EngineCollector`` calls."""

    def load_weights(self, folder: Path) -> None:
        """Load the weights of a plain transformers checkpoint, and drop caches of the older ones."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: EngineSampling) -> list[Response]:
        """One response to each prompt, in the order of the prompts."""

    def sleep(self) -> None:
        """Release memory until ``wake``."""

    def wake(self) -> None:
        """Be ready to load weights and to generate."""

    def close(self) -> None:
        """Stop."""


class VLLMEngine:
    """vLLM (Kwon et al. 2023), on its own GPU or on the learner's.

    Args:
        folder: a plain transformers checkpoint to begin with.
        max_length: tokens of the longest prompt and response together.
        sleep: make ``sleep`` possible (vLLM's sleep mode).
        options: further arguments of ``vllm.LLM``.

    Raises:
        ImportError: without vllm.
    """

    def __init__(self, folder: Path, *, max_length: int, sleep: bool = False, **options: Any) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ImportError(
                "rollouts by vLLM need vllm: pip install 'textenv[vllm]' (Linux with a GPU)"
            ) from error
        self._vllm: Any = vllm
        defaults: dict[str, Any] = {
            "skip_tokenizer_init": True,
            "max_model_len": max_length,
            "trust_remote_code": is_trusted(),
            "enable_sleep_mode": sleep,
            # Log-probs after temperature and filters: of the distribution that a token is drawn from.
            "logprobs_mode": "processed_logprobs",
        }
        self._llm: Any = vllm.LLM(model=str(folder), **{**defaults, **options})

    def load_weights(self, folder: Path) -> None:
        """Load a checkpoint in every worker; keys and values of older weights are dropped."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self._llm.reset_prefix_cache()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: EngineSampling) -> list[Response]:
        """One response to each prompt, in the order of the prompts."""
        parameters = [
            self._vllm.SamplingParams(
                temperature=0.0 if sampling.greedy else sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                seed=seed,
                max_tokens=sampling.max_new_tokens,
                min_tokens=sampling.min_new_tokens,
                # Only the environment's stop tokens end a response, not those of the model's configuration.
                ignore_eos=True,
                stop_token_ids=list(sampling.stop_token_ids),
                allowed_token_ids=sampling.allowed_token_ids and list(sampling.allowed_token_ids),
                logprobs=0,  # only that of the chosen token
                detokenize=False,
            )
            for seed in sampling.seeds
        ]
        asked = [self._vllm.TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
        outputs = [output.outputs[0] for output in self._llm.generate(asked, parameters, use_tqdm=False)]
        return [
            Response(
                list(output.token_ids),
                [
                    found[token].logprob
                    for token, found in zip(output.token_ids, output.logprobs, strict=True)
                ],
            )
            for output in outputs
        ]

    def sleep(self) -> None:
        """Move the weights to the host and drop the key-value cache."""
        self._llm.sleep(level=1)

    def wake(self) -> None:
        """Take memory again."""
        self._llm.wake_up()

    def close(self) -> None:
        """Drop the engine, which ends its workers."""
        self._llm = None
