"""Settings of policy-gradient agents with a critic: PPO, A2C and NLPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textenv.agents.settings.effects import Idle, unused_by
from textenv.agents.settings.policy_gradient import PolicyGradientConfig


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(PolicyGradientConfig):
    """Settings of policy-gradient agents with a critic."""

    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation."""
    advantage: str = "gae"
    """Name of the registered advantage estimator."""
    center_by_prompt: bool = False
    """Shift the advantages of each prompt to mean 0: a baseline that helps while the critic is inaccurate."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of an iteration to mean 0 and variance 1 over action tokens."""
    scale_rewards: bool = False
    """Divide the rewards of an iteration by their standard deviation over action tokens."""
    value_clip_range: float | None = 0.2
    """Clip of the value function around its old values; None does not clip."""
    value_coef: float = 0.1
    """Weight of the value loss."""
    value_model: Literal["shared", "separate"] = "shared"
    """The critic: a head on the hidden states of the policy, or a separate copy of the model with a head."""
    value_head: Literal["linear", "mlp"] = "linear"
    """Shape of the value head."""
    bootstrap_truncated: bool = False
    """Use V after the last token of episodes truncated by the token budget (bootstrapping), instead of 0."""

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
    """The probability ratio is clipped to [1 - clip_range, 1 + clip_range]."""


@dataclass(frozen=True, kw_only=True)
class A2CConfig(ActorCriticConfig):
    """Settings of A2C."""

    gae_lambda: float = 1.0
    """Lambda of generalized advantage estimation; 1 is the return to go minus V."""
    whiten_advantages: bool = False
    """Shift and scale the advantages of an iteration to mean 0 and variance 1 over action tokens."""
    value_clip_range: float | None = None
    """Clip of the value function around its old values; None does not clip."""
    epochs: int = 1
    """Passes over the episodes of an iteration."""
    minibatches: int = 1
    """Optimizer steps per pass."""


@dataclass(frozen=True, kw_only=True)
class NLPOConfig(PPOConfig):
    """Settings of NLPO."""

    mask_top_p: float = 0.9
    """Probability mass of the mask policy's nucleus; tokens outside are not sampled."""
    mask_min_tokens: int = 100
    """Smallest number of tokens in the nucleus."""
    mask_update_iterations: int | None = 5
    """Iterations between updates of the mask policy with the weights of the policy; None never updates."""

    def validate(self) -> None:
        """Check the ranges, and that the KL is in the reward."""
        super().validate()
        self.check(mask_top_p="(0, 1]", mask_min_tokens=">= 1", mask_update_iterations=">= 1")
        if self.kl_coef and self.kl_placement != "reward":
            raise ValueError(
                "kl_placement must be 'reward': NLPO's loss uses masked distributions, its KL the unmasked "
                f"ones; got {self.kl_placement!r}"
            )

    def idle(self) -> Idle:
        """Settings without effect."""
        found = super().idle()
        if self.mask_top_p == 1:
            names = ("mask_min_tokens", "mask_update_iterations")
            found |= self.changed(*names, because="with mask_top_p=1, which masks nothing")
        return found
