"""REINFORCE leave-one-out (RLOO): the other episodes on a prompt are the baseline.

Ahmadian et al. 2024, "Back to basics: revisiting REINFORCE style optimization for learning from human
feedback in LLMs".
"""

from __future__ import annotations

from dataclasses import dataclass

from textenv.agents.group_baseline import GroupBaselineAgent, GroupBaselineConfig
from textenv.agents.registry import register_agent


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


@register_agent("rloo")
class RLOO(GroupBaselineAgent):
    """RLOO: each episode's return, KL penalty included, minus the mean of the others on its prompt."""

    config_class = RLOOConfig
    config: RLOOConfig
