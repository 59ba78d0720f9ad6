"""Who generates an online agent's episodes: the protocol, and the collector of the agent's own process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from textenv.agents.distributed import process_group
from textenv.agents.distributed.data_parallel import gather_episodes
from textenv.episodes.batch import EpisodeBatch
from textenv.rollout import collect


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """The episodes that an agent asks for in one iteration, and how to generate them."""

    policy: Any
    """The ``LanguagePolicy`` that acts."""
    envs: Any
    """The training environment, with its reward wrappers."""
    episodes: int
    """Number of episodes."""
    first_ticket: int
    """``episode_id`` of the first of them."""
    seed: int
    """Seed of prompts and sampling noise."""
    iteration: int
    """Iteration of the agent, counted from 1."""
    planned_iterations: int
    """Iterations of the whole run."""
    importance_correction: str | None = None
    """The agent's setting of this name, None if it has none."""


@runtime_checkable
class Collector(Protocol):
    """Generates episodes for online agents, one agent at a time."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last ``collect``."""

    @property
    def ahead(self) -> int:
        """Iterations whose episodes are generated in advance, with older weights."""

    def collect(self, request: RolloutRequest) -> EpisodeBatch:
        """The requested episodes in the order of ``episode_id``, without rewards or with all of them."""

    def close(self) -> None:
        """Release what ``collect`` started; called at the end of the training loop."""


class LocalCollector:
    """Generates episodes in the agent's own process.

    With several processes each generates a part, and all of them get all episodes.
    """

    ahead = 0

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def collect(self, request: RolloutRequest) -> EpisodeBatch:
        """The requested episodes, without rewards and without values."""
        policy, times = request.policy, request.envs.unwrapped.turn_times
        if times is not None:
            times.take()
        with process_group.collective("a rollout"), policy.decoding.without_values():
            own = collect(
                request.envs,
                policy,
                request.episodes,
                seed=request.seed,
                first_ticket=request.first_ticket,
                score=False,
                **process_group.place(),
            )
        if times is not None:
            found = times.take()
            places = max(1, found.steps * request.envs.num_envs)
            self.metrics = {"time/waiting": found.waiting, "rollout/active": found.acted / places}
        return gather_episodes(own, policy.device)

    def close(self) -> None:
        """Nothing to release."""
