"""Settings of the agent around Stable-Baselines3's PPO."""

from __future__ import annotations

from dataclasses import dataclass

from textenv.agents.settings.base import AgentConfig
from textenv.agents.settings.effects import Idle


@dataclass(frozen=True, kw_only=True)
class SB3Config(AgentConfig):
    """Settings of Stable-Baselines3's PPO; a rollout is counted in tokens, not in episodes."""

    iterations: int = 100
    """Rollouts, each with a round of learning."""
    n_steps: int = 64
    """Tokens of a rollout in each row of the environment; an episode may go on in the next rollout."""
    epochs: int = 4
    """Passes over a rollout in each round of learning."""
    minibatches: int = 4
    """Parts of a rollout, one optimizer step each; episodes stay whole, so a pass may take a few more."""
    gamma: float = 1.0
    """Discount per own token."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip_range: float = 0.2
    """The probability ratio has no gradient beyond 1 - clip_range and 1 + clip_range."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of each minibatch to mean 0 and variance 1."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    kl_coef: float = 0.05
    """Weight of the KL divergence from the start, paid per token (k1); 0 keeps none (and no reference)."""
    stop_at_kl: float | None = None
    """End the passes of a rollout once a step's approximate KL exceeds 1.5 times this."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(
            iterations=">= 1",
            n_steps=">= 2",
            epochs=">= 1",
            minibatches=">= 1",
            gamma="[0, 1]",
            gae_lambda="[0, 1]",
            clip_range="(0, inf)",
            entropy_coef="[0, inf)",
            value_coef="[0, inf)",
            kl_coef="[0, inf)",
            stop_at_kl="(0, inf)",
        )

    @property
    def num_iterations(self) -> int:
        """Rollouts of the whole run."""
        return self.iterations

    def idle(self) -> Idle:
        """Settings without effect."""
        because = "with Stable-Baselines3, whose loss takes a minibatch in one pass"
        return super().idle() | self.changed("max_tokens_per_microbatch", because=because)
