"""Settings of rollouts by Ray actors (``textenv.agents.rollouts.ray_collector``); importing them is light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from textenv.agents.settings.base import Config


@dataclass(frozen=True, kw_only=True)
class RayRollouts(Config):
    """Settings of rollouts by Ray actors, an online agent's argument ``rollouts``.

        PPO(model, envs=envs, rollouts=RayRollouts(num_actors=4, mode="async"))

    Actors make copies of the agent's environment and policy by themselves. Rewards are left to the learner,
    whose terms then see the episodes exactly as they do without actors, unless ``score_in_actors``.
    """

    num_actors: int = 2
    """Processes that play; 0 plays in the learner's own process, without Ray."""
    mode: Literal["sync", "async"] = "sync"
    """Let the learner wait for its episodes, or let the actors play ahead of it while it learns."""
    max_staleness: int = 1
    """By how many iterations of learning the weights that played may be behind, in mode async."""
    num_envs: int | None = None
    """Texts that each actor writes at a time; None is as many as the agent's environment has rows."""
    score_in_actors: bool = False
    """Let the actors compute rewards (and the KL, with a reference each) instead of the learner."""
    env: str | None = None
    """Gym id by which actors make their environment; None copies the agent's."""
    env_kwargs: dict[str, Any] | None = None
    """Arguments of that gym id."""
    num_cpus: float = 1.0
    """CPUs that Ray sets aside for each actor; also its number of threads."""
    num_gpus: float = 0.0
    """GPUs that Ray sets aside for each actor, which computes on the CPU if this is 0."""
    max_restarts: int = 3
    """How often each actor may be replaced when it dies."""
    start_timeout: float = 300.0
    """Seconds within which the actors must have started."""
    address: str | None = None
    """Of a Ray cluster; None is that of RAY_ADDRESS, else one of the learner's own on this machine."""

    def validate(self) -> None:
        """Check the ranges, and that the options go together."""
        super().validate()
        self.check(
            num_actors=">= 0",
            max_staleness=">= 1",
            num_envs=">= 1",
            num_cpus="[0, inf)",
            num_gpus="[0, inf)",
            max_restarts=">= 0",
            start_timeout="(0, inf)",
        )
        if self.env_kwargs is not None and self.env is None:
            raise ValueError("env_kwargs are arguments of env, which must be given, got None")
        if self.score_in_actors and self.env is not None:
            raise ValueError(
                f"score_in_actors scores the rewards of the agent's environment, env must be None, "
                f"got {self.env!r}"
            )

    @property
    def ahead(self) -> int:
        """Iterations that actors play ahead."""
        return self.max_staleness if self.mode == "async" else 0
