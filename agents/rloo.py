"""REINFORCE leave-one-out (RLOO): the other episodes on a prompt are the baseline.

Ahmadian et al. 2024, "Back to basics: revisiting REINFORCE style optimization for learning from human
feedback in LLMs".
"""

from __future__ import annotations

from textenv.agents.base.group_baseline import GroupBaselineAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.settings.groups import RLOOConfig


@register_agent("rloo")
class RLOO(GroupBaselineAgent):
    """RLOO: each episode's return, KL penalty included, minus the mean of the others on its prompt."""

    config_class = RLOOConfig
    config: RLOOConfig
