"""Settings of the policy-gradient agents with a critic: PPO, A2C and NLPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textenv.agents.settings.effects import Idle, unused_by
from textenv.agents.settings.policy_gradient import PolicyGradientConfig


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(PolicyGradientConfig):
    """Settings of policy-gradient agents with a critic."""

    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    advantage: str = "gae"
    """Name of the registered advantage estimator."""
    center_by_prompt: bool = False
    """Shift the advantages of each prompt's episodes to mean 0: a baseline while the critic is still poor."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of an iteration to mean 0 and variance 1 over own tokens."""
    scale_rewards: bool = False
    """Divide the rewards of an iteration by their standard deviation over own tokens."""
    value_clip_range: float | None = 0.2
    """Clip of the value function around its old values; None does not clip."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    value_model: Literal["shared", "separate"] = "shared"
    """The critic: a head on the policy's trunk, or a model of its own that starts as a copy of the trunk."""
    value_head: Literal["linear", "mlp"] = "linear"
    """Shape of the critic's head."""
    bootstrap_truncated: bool = False
    """Take V after the last token of an episode cut by the token budget as the value of what would follow."""

    def validate(self) -> None:
        """Check the ranges and the estimator's name."""
        super().validate()
        self.check(gae_lambda="[0, 1]", value_clip_range="> 0", value_coef=">= 0")
        if self.changed("advantage", because="named"):  # a default is known without torch
            from textenv.agents.losses.advantages import get_advantage

            get_advantage(self.advantage)

    def idle(self) -> Idle:
        """Settings without effect."""
        found = super().idle() | unused_by(self.advantage, self)
        if not self.value_coef:
            names = ("value_clip_range", "value_model", "value_head")
            found |= self.changed(*names, because="with value_coef=0, which trains no critic")
        if not self.gamma:
            because = "with gamma=0, where no value of a later state counts"
            found |= self.changed("gae_lambda", "bootstrap_truncated", because=because)
        if self.epochs * self.minibatches == 1 and self.value_clip_range is not None:
            because = "with one optimizer step an iteration (epochs=1, minibatches=1)"
            found |= self.changed("value_clip_range", because=because)
        return found


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ActorCriticConfig):
    """Settings of PPO."""

    clip_range: float = 0.2
    """The probability ratio has no gradient beyond 1 - clip_range (and 1 + clip_range)."""


@dataclass(frozen=True, kw_only=True)
class A2CConfig(ActorCriticConfig):
    """Settings of A2C."""

    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation; 1 is the whole return that followed, minus V."""
    whiten_advantages: bool = False
    """Shift and scale the advantages of an iteration to mean 0 and variance 1 over own tokens."""
    value_clip_range: float | None = None
    """Clip of the value function around its old values; None does not clip."""
    epochs: int = 1
    """Passes over the collected episodes in each round of learning."""
    minibatches: int = 1
    """Optimizer steps in each pass."""


@dataclass(frozen=True, kw_only=True)
class NLPOConfig(PPOConfig):
    """Settings of NLPO."""

    mask_top_p: float = 0.9
    """Mass of the mask policy's nucleus, outside of which no token is sampled."""
    mask_min_tokens: int = 100
    """Tokens that stay possible at least, where the vocabulary has so many."""
    mask_update_iterations: int | None = 5
    """The mask policy becomes a copy of the policy after every so many iterations; None keeps the first."""

    def validate(self) -> None:
        """Check the ranges, and that the KL is paid as a reward."""
        super().validate()
        self.check(mask_top_p="(0, 1]", mask_min_tokens=">= 1", mask_update_iterations=">= 1")
        if self.kl_coef and self.kl_placement != "reward":
            raise ValueError(
                "kl_placement must be 'reward': NLPO's loss sees the masked distributions, the KL is of the "
                f"whole ones; got {self.kl_placement!r}"
            )

    def idle(self) -> Idle:
        """Settings without effect."""
        found = super().idle()
        if self.mask_top_p == 1:
            names = ("mask_min_tokens", "mask_update_iterations")
            found |= self.changed(*names, because="with mask_top_p=1, which masks nothing")
        return found
