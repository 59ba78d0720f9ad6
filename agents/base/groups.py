"""Groups: episodes of one prompt, generated one after the other (``samples_per_prompt`` of the environment).

Shape letters: B episodes, P groups, n episodes per group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textenv.agents.base.arguments import refuse_dataset
from textenv.agents.base.online import OnlineAgent
from textenv.agents.settings.effects import FROM_EPISODES
from textenv.agents.settings.groups import GroupBaselineConfig, check_whole_groups
from textenv.episodes.batch import EpisodeBatch

GROUP_SIZE = 8
"""Episodes per prompt where neither settings nor environment give a number."""


def check_groups(envs: Any, size: int, *, who: str) -> None:
    """Refuse an environment that does not generate whole groups of ``size`` episodes per prompt.

    Raises:
        ValueError: naming the ``samples_per_prompt`` that the environment needs.
    """
    generated = envs.unwrapped.samples_per_prompt
    if generated % size:
        raise ValueError(
            f"{who} needs {size} episodes of each prompt, one after the other: make the environment with "
            f"samples_per_prompt={size} (or a multiple), got {generated}"
        )


def checked_group_size(envs: Any, config: GroupBaselineConfig, *, who: str) -> int:
    """Group size of GRPO and RLOO: ``samples_per_prompt`` of the settings, by default the environment's.

    Raises:
        ValueError: if the environment generates no groups of this size, or an iteration no whole groups.
    """
    size = config.samples_per_prompt
    if size is not None or envs.unwrapped.samples_per_prompt == 1:
        check_groups(envs, size or GROUP_SIZE, who=who)
    size = size or envs.unwrapped.samples_per_prompt
    check_whole_groups(config.episodes_per_iteration, size)
    return size


def episodes_per_prompt(config: GroupBaselineConfig, *, evaluation: bool) -> int:
    """Episodes per prompt that GRPO and RLOO need of a new environment; 1 in evaluation."""
    return 1 if evaluation else config.samples_per_prompt or GROUP_SIZE


def world_index(episodes: EpisodeBatch, envs: Any) -> Tensor:
    """Number of the group of each episode: its prompt, or with a partner and groups its world: (B,) int64.

    A partner's world is drawn for each group of ``samples_per_prompt`` episodes, so episodes of one prompt
    may be in different worlds.
    """
    base = envs.unwrapped
    if not base.has_partner or base.samples_per_prompt == 1:
        return episodes.prompt_index
    return episodes.episode_id // base.samples_per_prompt


class SampleChooser(OnlineAgent):
    """Base of agents that choose among ``samples_per_prompt`` samples of each prompt."""

    @classmethod
    def group_size(cls, config: Any, *, evaluation: bool = False) -> int:
        """Episodes per prompt: ``samples_per_prompt``; 1 in evaluation."""
        return 1 if evaluation else config.samples_per_prompt

    def setup(self) -> None:
        """Check the groups of the environment, and bind the policy to it.

        Raises:
            ValueError: if the environment generates too few episodes per prompt, or there is a data set.
        """
        refuse_dataset(self, FROM_EPISODES)
        size = self.group_size(self.config)
        check_groups(self.envs, size, who=f"{type(self).__name__} with samples_per_prompt={size}")
        self.envs.unwrapped.bind(self.policy)


def group_rows(episodes: EpisodeBatch, size: int) -> Tensor:
    """Rows of each group, ordered by ``episode_id``: (P, n) int64, n = ``size``.

    Raises:
        ValueError: if a group is incomplete, or its episodes have different prompts.

    Example:
        >>> episodes = EpisodeBatch.from_ids([[1], [2], [1], [2]], [[5], [6], [7], [8]])
        >>> episodes.episode_id = torch.tensor([0, 2, 1, 3])
        >>> group_rows(episodes, 2).tolist()
        [[0, 2], [1, 3]]
    """
    ids = episodes.episode_id.cpu()
    order = torch.argsort(ids, stable=True)
    if len(order) % size:
        raise ValueError(f"episodes must come in groups of {size}, got {len(order)} episodes")
    rows = order.view(-1, size)
    whole = ids[rows] == ids[rows[:, :1]] + torch.arange(size)
    first = ids[rows[:, 0]] % size == 0
    prompts = episodes.prompt_index.cpu()[rows]
    if not bool((whole & first.unsqueeze(-1) & (prompts == prompts[:, :1])).all()):
        raise ValueError(f"episodes must come in whole groups of {size} on one prompt each")
    return rows.to(episodes.device)
