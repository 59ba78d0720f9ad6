"""What is audited: arguments of an environment, from which the checks make as many as they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from textenv.envs.vector_env import TextVectorEnv
from textenv.episodes.batch import EpisodeBatch
from textenv.partners.registry import PartnerSpec
from textenv.rollout import collect
from textenv.tasks.audit.token_policies import TokenPolicy
from textenv.tasks.make import make_vec_env
from textenv.tasks.players import Player


class Subject:
    """An environment under audit, and the episodes that the checks share.

    Args:
        arguments: of ``make_vec_env``.
        episodes: number of episodes of a check.
        num_envs: rows.
        seed: of the streams of episodes.
        player: a scripted player that does the task well; None is the task's.
    """

    def __init__(
        self, arguments: Mapping[str, Any], *, episodes: int, num_envs: int, seed: int, player: Player | None
    ) -> None:
        self.arguments = dict(arguments)
        self.count = episodes
        self.num_envs = num_envs
        self.seed = seed
        self.given_player = player
        self.played: dict[str, EpisodeBatch] = {}
        """Who played ("random", "player", ...) -> the episodes."""
        self.figures: dict[str, Any] = {}
        """Measured values by name."""

    @contextmanager
    def envs(self, num_envs: int | None = None, samples_per_prompt: int = 1) -> Iterator[Any]:
        """A new environment, which is closed at the end."""
        rows = self.num_envs if num_envs is None else num_envs
        envs = make_vec_env(rows, **{**self.arguments, "samples_per_prompt": samples_per_prompt})
        try:
            yield envs
        finally:
            envs.close()

    def collect(self, envs: Any, policy: Any, episodes: int | None = None, **options: Any) -> EpisodeBatch:
        """Episodes of the stream with the seed of the audit, with rewards; adaptive rewards do not adapt."""
        count = self.count if episodes is None else episodes
        return collect(envs, policy, count, seed=self.seed, update_terms=False, waiting="block", **options)

    def play(self, kind: str, num_envs: int | None = None) -> EpisodeBatch:
        """Episodes of a ``TokenPolicy`` in a new environment.

        Raises:
            ValueError: if no token is of this kind.
        """
        with self.envs(num_envs) as envs:
            return self.collect(envs, TokenPolicy(envs.unwrapped, kind))

    @cached_property
    def episodes(self) -> EpisodeBatch:
        """Random episodes, with which others are compared."""
        self.played["random"] = self.play("random")
        return self.played["random"]

    @cached_property
    def idle(self) -> Any:
        """An environment that nobody plays, for checks that read its settings or use its rewards."""
        return make_vec_env(1, **self.arguments)

    @property
    def partner(self) -> PartnerSpec | None:
        """The checked spec of the partner."""
        base: TextVectorEnv = self.idle.unwrapped
        spec: PartnerSpec | None = base.turn_arguments()["partner"]
        return spec

    def close(self) -> None:
        """Close the idle environment."""
        if "idle" in self.__dict__:
            self.idle.close()
