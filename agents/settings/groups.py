"""Settings of the agents that compare the samples of a prompt with each other: GRPO and RLOO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textenv.agents.settings.effects import Idle, unused_by
from textenv.agents.settings.policy_gradient import PolicyGradientConfig


def check_whole_groups(episodes: int, size: int) -> None:
    """Refuse iterations of ``episodes`` that hold no whole groups of ``size``.

    Raises:
        ValueError: naming the setting.
    """
    if episodes % size:
        raise ValueError(
            f"episodes_per_iteration must be a multiple of samples_per_prompt ({size}), got {episodes}"
        )


@dataclass(frozen=True, kw_only=True)
class GroupBaselineConfig(PolicyGradientConfig):
    """Settings of agents whose baseline is the group."""

    advantage: str | None = None
    """Name of the registered advantage estimator; None is the agent's own."""
    samples_per_prompt: int | None = None
    """Episodes on each prompt, which are compared with each other; None is as many as the environment deals
    (8 where ``textenv.train`` makes it)."""

    def validate(self) -> None:
        """Check the estimator's name, and that an iteration holds whole groups."""
        super().validate()
        self.check(samples_per_prompt=">= 2")
        if self.changed("advantage", because="named"):  # a default is known without torch
            from textenv.agents.losses.advantages import get_advantage

            get_advantage(self.estimator)
        if self.samples_per_prompt is not None:
            check_whole_groups(self.episodes_per_iteration, self.samples_per_prompt)

    def idle(self) -> Idle:
        """Settings without effect."""
        return super().idle() | unused_by(self.estimator, self)

    @property
    def estimator(self) -> str:
        """Name of the advantage estimator."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(GroupBaselineConfig):
    """Settings of GRPO."""

    advantage: str | None = None
    """Name of the registered advantage estimator. None is "grpo", or "dr_grpo" with the aggregation of that
    name: without the division by the group's standard deviation."""
    aggregation: str = "grpo"
    """Name of the registered aggregation: "grpo" is the mean of the episodes' means, "dapo" the mean over
    tokens, "dr_grpo" the sum over tokens by the most that there can be."""
    clip_range: float | None = 0.2
    """The probability ratio has no gradient beyond 1 - clip_range (and 1 + clip_range). None has no ratio."""
    kl_coef: float = 0.04
    """Weight of the KL divergence from the reference; 0 keeps none (and no reference)."""
    kl_placement: Literal["reward", "loss"] = "loss"
    """Pay the KL as a per-token reward (k1), or add it to the loss (k3)."""
    max_rollouts: int = 1
    """With more than 1, groups whose scores, the returns without a KL penalty, are all equal
    make way for those of up to so many rollouts an iteration (DAPO's dynamic sampling). What adapts (reward
    terms, the scale of scores, the KL coefficient) learns from all groups played."""

    def validate(self) -> None:
        """Check the ranges, and how the run's length is said."""
        super().validate()
        self.check(max_rollouts=">= 1")
        if self.max_rollouts > 1 and self.total_episodes is not None:
            raise ValueError(
                f"with max_rollouts={self.max_rollouts} nobody knows how many episodes an iteration takes: "
                f"give iterations, got total_episodes={self.total_episodes}"
            )

    @property
    def estimator(self) -> str:
        """Name of the advantage estimator."""
        return self.advantage or ("dr_grpo" if self.aggregation == "dr_grpo" else "grpo")


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(GroupBaselineConfig):
    """Settings of RLOO."""

    epochs: int = 1
    """Passes over the collected episodes in each round of learning."""
    minibatches: int = 1
    """Optimizer steps in each pass."""

    @property
    def estimator(self) -> str:
        """Name of the advantage estimator."""
        return self.advantage or "rloo"
