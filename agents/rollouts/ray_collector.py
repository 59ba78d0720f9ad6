"""Rollouts by Ray actors: other processes, on this machine or others, generate an online agent's episodes.

The learner sends each version of its weights once. The episode ids of an iteration are divided among the
actors, and the episodes are returned in the order of their ids. An episode depends only on weights, seed and
id, so it does not matter which actor generates it, or whether it is generated again after an actor died.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from textenv import scoring as scorer
from textenv.agents.distributed import process_group
from textenv.agents.rollouts.collector import RolloutRequest
from textenv.agents.settings.ray_rollouts import RayRollouts
from textenv.episodes.batch import EpisodeBatch
from textenv.utils.ray_session import connect, gather, start_actors, stop_actors

if TYPE_CHECKING:
    from textenv.agents.rollouts.ray_actors import ActorResult


@dataclass
class _Round:
    """The calls that generate the episodes of one iteration."""

    first_ticket: int
    iteration: int
    """The agent's iteration when the calls were sent."""
    calls: list[Any]


class RayCollector:
    """Generates an online agent's episodes in Ray actors.

    In mode async the calls of the next ``max_staleness`` iterations are always pending, each with the weights
    at the time it was sent. The result depends on the seed and not on timing, as in mode sync.

    Args:
        settings: see ``RayRollouts``.
        actors: actors to use, started by ``start_rollout_actors``; they outlive this object. None starts
            actors at the first ``collect`` and stops them in ``close``.
    """

    def __init__(self, settings: RayRollouts, actors: Sequence[Any] | None = None) -> None:
        self.settings = settings
        self.metrics: dict[str, float] = {}
        """Metrics of the last ``collect``: staleness in iterations, seconds waited, seconds of the slowest
        actor, actors replaced so far."""
        self.pids: dict[int, int] = {}
        """Rank of an actor -> id of the process that last answered for it."""
        self._given = None if actors is None else list(actors)
        self._ray: Any = None
        self._actors: list[Any] = []
        self._recipe: tuple[Any, ...] = ()
        self._weights: tuple[Any, ...] = ()
        self._version: int | None = None
        self._rounds: deque[_Round] = deque()
        self._replaced = 0

    @property
    def ahead(self) -> int:
        """Iterations whose episodes are generated in advance: 0 in mode sync."""
        return self.settings.ahead

    def collect(self, request: RolloutRequest) -> EpisodeBatch:
        """The requested episodes, with rewards if the actors compute them.

        Raises:
            ImportError: without ray.
            ValueError: if environment, policy or rewards can't be copied.
            TypeError: if they can't be sent.
            TimeoutError: if the cluster has no room for the actors.
            textenv.utils.ray_session.ActorsLostError: if an actor died too often.
        """
        started = time.perf_counter()
        if not self._actors:
            self._start(request)
        first_ticket, size = request.first_ticket, request.episodes
        if self._rounds and self._rounds[0].first_ticket != first_ticket:
            self._rounds.clear()  # the agent was moved to another place in the stream
        ahead = min(self.settings.ahead, max(0, request.planned_iterations - request.iteration))
        while len(self._rounds) <= ahead:
            self._rounds.append(self._send(request, first_ticket + len(self._rounds) * size))
        current = self._rounds.popleft()
        results: list[ActorResult] = gather(self._ray, current.calls)
        for rank, result in enumerate(results):
            self._replaced += self.pids.setdefault(rank, result.pid) != result.pid
            self.pids[rank] = result.pid
        episodes = EpisodeBatch.concat([result.episodes for result in results]).sorted_by_id()
        if not torch.equal(episodes.episode_id, torch.arange(first_ticket, first_ticket + size)):
            raise RuntimeError(
                f"actors must generate the episodes {first_ticket} to {first_ticket + size - 1}, each once, "
                f"got {episodes.episode_id.tolist()}"
            )
        self.metrics = {
            "rollout/staleness": float(request.iteration - current.iteration),
            "rollout/wait": time.perf_counter() - started,
            "rollout/slowest_actor": max(result.seconds for result in results),
            "rollout/actors_replaced": float(self._replaced),
        }
        return episodes

    @property
    def under_way(self) -> list[int]:
        """First episode ids of the iterations that are generated in advance."""
        return [ahead.first_ticket for ahead in self._rounds]

    def close(self) -> None:
        """Drop the running calls, and stop actors that were started here."""
        self._rounds.clear()
        if self._given is None and self._actors:
            stop_actors(self._ray, self._actors)
        self._actors, self._recipe, self._weights, self._version = [], (), (), None
        self.pids.clear()

    def _send(self, request: RolloutRequest, first_ticket: int) -> _Round:
        """Send the calls of one iteration with the current weights."""
        from textenv.agents.rollouts.ray_actors import SAMPLING, Work, pack

        policy = request.policy
        if policy.weights_version != self._version:
            self._weights, self._version = (self._ray.put(pack(policy)),), policy.weights_version
        state = None
        if self.settings.score_in_actors:
            state = scorer.state_dict(scorer.reward_wrappers(request.envs))
        work: dict[str, Any] = {
            "recipe": self._recipe,
            "weights": self._weights,
            "version": self._version,
            "sampling": {name: getattr(policy.decoding, name) for name in SAMPLING},
            "seed": request.seed,
            "first_ticket": first_ticket,
            "episodes": request.episodes,
            "world_size": len(self._actors),
            "device": "cuda" if self.settings.num_gpus else "cpu",
            "reward_state": state,
        }
        calls = [actor.generate.remote(Work(rank=rank, **work)) for rank, actor in enumerate(self._actors)]
        return _Round(first_ticket, request.iteration, calls)

    def _start(self, request: RolloutRequest) -> None:
        """Start the actors, and put the recipes of environment and policy into the object store."""
        settings, size = self.settings, request.episodes
        count = len(self._given) if self._given is not None else settings.num_actors
        if process_group.world_size() > 1:
            raise ValueError(
                f"rollouts by actors need one learning process, got {process_group.world_size()}"
            )
        if count > size:
            raise ValueError(f"num_actors must be <= episodes_per_iteration ({size}), got {count}")
        if settings.mode == "async" and request.importance_correction in (None, "none"):
            warnings.warn(
                "asynchronous rollouts learn from episodes of older weights, which nothing makes up for; "
                "set importance_correction='token' or 'sequence'",
                stacklevel=4,
            )
        self._ray = ray = connect(settings.address)
        from textenv.agents.rollouts.ray_actors import env_recipe, policy_recipe

        terms = [wrapper.term for wrapper in scorer.reward_wrappers(request.envs)]
        recipes = {
            "environment": env_recipe(
                request.envs, num_envs=settings.num_envs, env=settings.env, env_kwargs=settings.env_kwargs
            ),
            "policy": policy_recipe(request.policy, terms if settings.score_in_actors else None),
        }
        self._recipe = tuple(_put(ray, recipe, what) for what, recipe in recipes.items())
        self._actors = start_rollout_actors(settings) if self._given is None else self._given


def start_rollout_actors(settings: RayRollouts) -> list[Any]:
    """Start actors for ``RayCollector``; they can serve several agents, one after the other.

    Raises:
        ImportError: without ray.
        TimeoutError: if the cluster has no room for them.
    """
    ray = connect(settings.address)
    from textenv.agents.rollouts.ray_actors import RolloutActor

    return start_actors(
        ray,
        RolloutActor,
        settings.num_actors,
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus,
        max_restarts=settings.max_restarts,
        timeout=settings.start_timeout,
    )


def _put(ray: Any, recipe: Any, what: str) -> Any:
    try:
        return ray.put(recipe)
    except Exception as error:
        from textenv.agents.rollouts.ray_actors import HINT

        # Ray's message quotes the whole object; the reason is in the cause.
        reason, hint = error.__cause__ or error, f"; {HINT}" if what == "environment" else ""
        raise TypeError(f"the {what} can't be sent to actors ({reason}){hint}") from error
