"""Settings of agents whose baseline is the group (the samples of a prompt): GRPO and RLOO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textenv.agents.settings.effects import Idle, unused_by
from textenv.agents.settings.policy_gradient import PolicyGradientConfig


def check_whole_groups(episodes: int, size: int) -> None:
    """Refuse a number of episodes per iteration that is no multiple of the group size.

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
    """Name of the registered advantage estimator; None uses the one of the agent."""
    samples_per_prompt: int | None = None
    """Episodes per prompt (group size); None uses that of the environment (``textenv.train`` makes it with
    8)."""

    def validate(self) -> None:
        """Check the name of the estimator, and that an iteration has whole groups."""
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
    """Name of the registered advantage estimator. None is "grpo", or with aggregation="dr_grpo" "dr_grpo",
    which does not divide by the standard deviation of the group."""
    aggregation: str = "grpo"
    """Name of the registered aggregation: "grpo" is the mean over episodes of their mean over tokens, "dapo"
    the mean over tokens, "dr_grpo" the sum over tokens / (episodes x max_new_tokens)."""
    clip_range: float | None = 0.2
    """The probability ratio is clipped to [1 - clip_range, 1 + clip_range]; None uses no ratio."""
    kl_coef: float = 0.04
    """Weight of the KL to the reference policy; 0 turns it off, and no reference policy is made."""
    kl_placement: Literal["reward", "loss"] = "loss"
    """Where the KL is: a penalty in the reward of each token (k1), or a term of the loss (k3)."""
    max_rollouts: int = 1
    """Largest number of rollouts per iteration (dynamic sampling of DAPO). With more than 1, groups with
    equal task returns (returns without KL penalties) are replaced by groups of further rollouts. Adaptive
    terms (reward terms, ``score_scale``, the KL coefficient) learn from all generated groups."""

    def validate(self) -> None:
        """Check the ranges, and that dynamic sampling has ``iterations`` instead of ``total_episodes``."""
        super().validate()
        self.check(max_rollouts=">= 1")
        if self.max_rollouts > 1 and self.total_episodes is not None:
            raise ValueError(
                "total_episodes cannot be used with max_rollouts > 1 (the number of episodes per iteration "
                f"varies); set iterations instead, got total_episodes={self.total_episodes}, "
                f"max_rollouts={self.max_rollouts}"
            )

    @property
    def estimator(self) -> str:
        """Name of the advantage estimator."""
        return self.advantage or ("dr_grpo" if self.aggregation == "dr_grpo" else "grpo")


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(GroupBaselineConfig):
    """Settings of RLOO."""

    epochs: int = 1
    """Passes over the episodes of an iteration."""
    minibatches: int = 1
    """Optimizer steps per pass."""

    @property
    def estimator(self) -> str:
        """Name of the advantage estimator."""
        return self.advantage or "rloo"
