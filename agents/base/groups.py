"""Groups: episodes on the same prompt, dealt one after the other (``samples_per_prompt`` of the environment).

Shape letters: B episodes, P groups, n episodes of a group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textenv.agents.base.online import OnlineAgent
from textenv.agents.settings.effects import FROM_EPISODES, refuse_dataset
from textenv.episodes.batch import EpisodeBatch


def check_groups(envs: Any, size: int, *, who: str) -> None:
    """Refuse an environment whose prompts do not come in whole groups of ``size`` tickets.

    Raises:
        ValueError: naming what the environment should have been made with.
    """
    dealt = envs.unwrapped.samples_per_prompt
    if dealt % size:
        raise ValueError(
            f"{who} needs {size} episodes of each prompt, one after the other: make the environment with "
            f"samples_per_prompt={size} (or a multiple), got {dealt}"
        )


class SampleChooser(OnlineAgent):
    """Base of agents that choose among ``samples_per_prompt`` samples of each prompt."""

    @classmethod
    def group_size(cls, config: Any, *, evaluation: bool = False) -> int:
        """Episodes on each prompt: ``samples_per_prompt``, but one in evaluation."""
        return 1 if evaluation else config.samples_per_prompt

    def setup(self) -> None:
        """See that the environment deals the samples, and bind the policy to it.

        Raises:
            ValueError: if the environment deals too few episodes on each prompt, or there is a data set.
        """
        refuse_dataset(self, FROM_EPISODES)
        size = self.group_size(self.config)
        check_groups(self.envs, size, who=f"{type(self).__name__} with samples_per_prompt={size}")
        self.envs.unwrapped.bind(self.policy)


def group_rows(episodes: EpisodeBatch, size: int) -> Tensor:
    """Rows of each group, in ticket order: (P, n) int64, n = ``size``.

    Raises:
        ValueError: if a group is not whole, or holds more than one prompt.

    Example:
        >>> episodes = EpisodeBatch.from_ids([[1], [2], [1], [2]], [[5], [6], [7], [8]])
        >>> episodes.episode_id = torch.tensor([0, 2, 1, 3])
        >>> group_rows(episodes, 2).tolist()
        [[0, 2], [1, 3]]
    """
    tickets = episodes.episode_id.cpu()
    order = torch.argsort(tickets, stable=True)
    if len(order) % size:
        raise ValueError(f"episodes must come in groups of {size}, got {len(order)} episodes")
    rows = order.view(-1, size)
    whole = tickets[rows] == tickets[rows[:, :1]] + torch.arange(size)
    first = tickets[rows[:, 0]] % size == 0
    prompts = episodes.prompt_index.cpu()[rows]
    if not bool((whole & first.unsqueeze(-1) & (prompts == prompts[:, :1])).all()):
        raise ValueError(f"episodes must come in whole groups of {size} on one prompt each")
    return rows.to(episodes.device)
