"""Rollouts by a generation engine, which returns whole responses.

An engine (vLLM, or any object with its few methods) generates a response to each prompt of an iteration. The
environment then reads the responses token by token, so termination, episode ids and rewards are those of any
other policy. The engine's log-probs become the behaviour log-probs of the episodes. The policy computes its
own, and ``importance_correction`` corrects for the difference.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from textenv import scoring as scorer
from textenv.agents.distributed import process_group
from textenv.agents.rollouts.collector import RolloutRequest
from textenv.agents.rollouts.engine_turns import EngineTurns, engine_seeds
from textenv.agents.rollouts.vllm_engine import EngineSampling, GenerationEngine, Response, VLLMEngine
from textenv.agents.settings.engine_rollouts import EngineRollouts
from textenv.envs.scheduler import noise_base, prompt_index
from textenv.envs.vector_env import TextVectorEnv
from textenv.generation.replay import Replay
from textenv.modeling.split_model import model_vocab_size
from textenv.rollout import collect

if TYPE_CHECKING:
    from textenv.agents.policies.language_policy import LanguagePolicy
    from textenv.episodes.batch import EpisodeBatch


class EngineCollector:
    """Generates an online agent's episodes by an engine.

    Args:
        settings: see ``EngineRollouts``.
        engine: an engine to use, which outlives this object. None starts the one that the settings name at
            the first ``collect`` and stops it in ``close``.
    """

    def __init__(
        self, settings: EngineRollouts | None = None, engine: GenerationEngine | None = None
    ) -> None:
        self.settings = EngineRollouts() if settings is None else settings
        self.metrics: dict[str, float] = {}
        """Of the last ``collect``: seconds of generation and of handing over weights, tokens that came after
        the environment had ended a text."""
        self._given = engine
        self._engine: GenerationEngine | None = None
        self._version: int | None = None

    @property
    def ahead(self) -> int:
        """0: an engine generates with the weights as they are now."""
        return 0

    def collect(self, request: RolloutRequest) -> EpisodeBatch:
        """The requested episodes, without rewards.

        Raises:
            ImportError: without the engine's package.
            ValueError: if the environment does more than to have a prompt answered, or the policy acts in a
                way that no engine knows; if the engine's responses do not fit the environment.
        """
        envs, policy, seed = request.envs, request.policy, request.seed
        first_ticket, size = request.first_ticket, request.episodes
        base = envs.unwrapped
        if self._engine is None:
            check_playable(request)
        started = time.perf_counter()
        engine = self._ready(policy, base.max_length)
        loaded = time.perf_counter()
        if base.has_partner:
            episodes, written = self._collect_turns(engine, request)
            self.metrics = self._timings(started, loaded, time.perf_counter(), written, episodes)
            return episodes
        tickets = np.arange(first_ticket, first_ticket + size)
        seeds = np.full_like(tickets, seed)
        index = prompt_index(
            seeds,
            tickets,
            len(base.prompts),
            samples_per_prompt=base.samples_per_prompt,
            shuffle=base.shuffle,
        )
        ids, _, lengths = base.prompts.rows(index)
        prompts = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        noise = engine_seeds(noise_base(seeds, tickets))
        responses = engine.generate(prompts, engine_sampling(policy, base, noise))
        generated = time.perf_counter()
        if self.settings.sleep:
            engine.sleep()
        replay = Replay(
            seed=seed,
            episode_ids=tickets,
            responses=[response.tokens for response in responses],
            log_probs=[response.log_probs for response in responses],
            max_new_tokens=base.max_new_tokens,
            sampling={**policy.sampling(), "engine": type(engine).__name__},
        )
        episodes = collect(envs, replay, size, seed=seed, first_ticket=first_ticket, score=False)
        self.metrics = self._timings(started, loaded, generated, _tokens(responses), episodes)
        return episodes

    def _collect_turns(self, engine: GenerationEngine, request: RolloutRequest) -> tuple[EpisodeBatch, int]:
        """Episodes of several turns, and the number of tokens that the engine wrote."""
        base, policy = request.envs.unwrapped, request.policy
        settings = {**policy.sampling(), "engine": type(engine).__name__}
        sampling = engine_sampling(policy, base, ())
        turns = EngineTurns(engine, sampling, base.max_length, settings)
        size, first = request.episodes, request.first_ticket
        # Rows that end their turn together are written together, so all replies are awaited.
        episodes = collect(
            request.envs, turns, size, seed=request.seed, first_ticket=first, score=False, waiting="block"
        )
        if self.settings.sleep:
            engine.sleep()
        return episodes, turns.written

    @staticmethod
    def _timings(
        started: float, loaded: float, generated: float, written: int, episodes: EpisodeBatch
    ) -> dict[str, float]:
        return {
            "rollout/generate": generated - loaded,
            "rollout/load_weights": loaded - started,
            "rollout/tokens_dropped": float(written - int(episodes.response_lengths.sum())),
        }

    def close(self) -> None:
        """Stop an engine that was started here."""
        if self._given is None and self._engine is not None:
            self._engine.close()
        self._engine, self._version = None, None

    def _ready(self, policy: LanguagePolicy, max_length: int) -> GenerationEngine:
        """The engine with the policy's weights as they are now."""
        if self._engine is not None and self.settings.sleep:
            self._engine.wake()
        if self._engine is not None and policy.weights_version == self._version:
            return self._engine
        with _checkpoint(policy, self.settings.weights_dir) as folder:
            if self._engine is None and self._given is None:
                options = {"sleep": self.settings.sleep, **(self.settings.engine_kwargs or {})}
                self._engine = VLLMEngine(folder, max_length=max_length, **options)
            else:
                self._engine = self._given if self._engine is None else self._engine
                assert self._engine is not None
                self._engine.load_weights(folder)
        self._version = policy.weights_version
        return self._engine


def check_playable(request: RolloutRequest) -> None:
    """Make sure that an engine can generate the requested episodes.

    Raises:
        ValueError: for several learning processes; an environment of another class, or with wrappers that are
            no rewards, whose observations may be more than the tokens so far; and a
            policy with a logits processor or nucleus.
    """
    from textenv.tasks.make import MadeTextVectorEnv

    base, policy = request.envs.unwrapped, request.policy
    if process_group.world_size() > 1:
        raise ValueError(f"rollouts by an engine need one learning process, got {process_group.world_size()}")
    if type(base) not in (TextVectorEnv, MadeTextVectorEnv):
        raise ValueError(
            "an engine only continues the tokens of a row, so envs must be TextVectorEnv, "
            f"got {type(base).__name__}, which may do more"
        )
    layers = [
        layer for layer in scorer.walk(request.envs) if layer is not base and not hasattr(layer, "term")
    ]
    if layers:
        raise ValueError(
            f"an engine does not apply the wrapper {type(layers[0]).__name__} to observations and "
            "rewards; use reward terms (rewards=[...]), or leave rollouts= out"
        )
    if policy.decoding.logits_processor is not None or policy.decoding.restriction is not None:
        raise ValueError("an engine can't apply a logits processor or a nucleus; leave rollouts= out")
    if request.importance_correction == "none":
        warnings.warn(
            "an engine's log-probs differ from the policy's by its own rounding, which nothing makes up for; "
            "set importance_correction='token' or 'sequence'",
            stacklevel=4,
        )


def engine_sampling(policy: LanguagePolicy, base: TextVectorEnv, seeds: tuple[int, ...]) -> EngineSampling:
    """The policy's sampling settings and the environment's token constraints, as an engine takes them."""
    decoding, legality = policy.decoding, base.legality
    allowed = None
    if legality.suppressed_tokens or model_vocab_size(policy.model, 0) != legality.vocab_size:
        allowed = tuple(sorted(set(range(legality.vocab_size)) - set(legality.suppressed_tokens)))
    return EngineSampling(
        temperature=decoding.temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
        greedy=decoding.greedy,
        max_new_tokens=base.max_turn_tokens,
        min_new_tokens=legality.min_new_tokens,
        stop_token_ids=legality.stop_token_ids,
        allowed_token_ids=allowed,
        seeds=seeds,
    )


@contextmanager
def _checkpoint(policy: LanguagePolicy, parent: str | None) -> Iterator[Path]:
    """Within the block: a folder with the weights as a plain transformers checkpoint, adapters merged in."""
    with tempfile.TemporaryDirectory(prefix="textenv-weights-", dir=parent) as folder:
        policy.save(folder)
        yield Path(folder)


def _tokens(responses: list[Response]) -> int:
    return sum(len(response.tokens) for response in responses)
