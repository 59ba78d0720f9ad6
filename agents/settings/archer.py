"""Settings of ArCHer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textenv.agents.settings.base import OnlineConfig
from textenv.agents.settings.effects import Idle


@dataclass(frozen=True, kw_only=True)
class ArcherConfig(OnlineConfig):
    """Settings of ArCHer."""

    gamma: float = 0.95
    """Discount per turn."""
    buffer_episodes: int = 4096
    """Episodes that the replay buffer holds; the oldest are dropped."""
    critic_steps: int = 32
    """Optimizer steps of the critics per iteration."""
    critic_batch_size: int = 32
    """Episodes per step of the critics, drawn from the replay buffer with replacement."""
    critic_learning_rate: float | None = None
    """Peak learning rate of the critics; None uses ``learning_rate``. Critics usually need a larger one."""
    critic_head: Literal["linear", "mlp"] = "mlp"
    """Shape of the Q and V heads on the critics' trunk."""
    target_alpha: float = 0.1
    """Weight of the critics in each update of their target network (Polyak averaging), once per step."""
    critic_warmup: int = 0
    """First iterations in which the critics are trained and the policy is not."""
    actor_turns: int = 128
    """Turns that the policy samples per iteration to learn from, in states of the replay buffer."""
    epochs: int = 1
    """Passes of the policy over these turns."""
    minibatches: int = 1
    """Optimizer steps of the policy per pass."""
    token_baseline: bool = False
    """Subtract a baseline per token from the advantage of the turn: a head on the policy's hidden states."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(
            gamma="[0, 1]",
            buffer_episodes=">= 1",
            critic_steps=">= 1",
            critic_batch_size=">= 1",
            critic_learning_rate="[0, inf)",
            target_alpha="(0, 1]",
            critic_warmup=">= 0",
            actor_turns=">= 1",
            entropy_coef=">= 0",
        )
        if self.minibatches > self.actor_turns:
            raise ValueError(
                f"minibatches must be <= actor_turns ({self.actor_turns}), got {self.minibatches}"
            )

    def idle(self) -> Idle:
        """Settings without effect."""
        found = super().idle()
        if self.critic_learning_rate == self.learning_rate:
            found |= {"critic_learning_rate": "where it equals learning_rate"}
        return found
