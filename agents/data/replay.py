"""A replay buffer of episodes for off-policy agents. Shape letters: B episodes, n drawn rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from textenv.agents.data.preferences import tokens_and_rule
from textenv.episodes.batch import EpisodeBatch

FIELDS = ("input_ids", "attention_mask", "prompt_lengths", "action_mask", "rewards")
"""Fields of episodes that the buffer keeps."""


class EpisodeBuffer:
    """The newest episodes with their rewards, on the CPU.

    Args:
        capacity: number of episodes; the oldest are dropped.

    Example:
        >>> buffer = EpisodeBuffer(3)
        >>> for i in range(2):
        ...     buffer.add(EpisodeBatch.from_ids([[1], [1]], [[2 * i], [2 * i + 1]], rewards=[0.0, 1.0]))
        >>> buffer.episodes.input_ids.tolist(), buffer.draw(4, seed=0, number=1).shape
        ([[1, 1], [1, 2], [1, 3]], torch.Size([4]))
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._episodes: EpisodeBatch | None = None

    def __len__(self) -> int:
        return 0 if self._episodes is None else len(self._episodes)

    @property
    def episodes(self) -> EpisodeBatch:
        """The B episodes, oldest first.

        Raises:
            RuntimeError: if there is none yet.
        """
        if self._episodes is None:
            raise RuntimeError("the replay buffer must hold an episode, got none")
        return self._episodes

    def add(self, episodes: EpisodeBatch) -> None:
        """Put scored episodes in."""
        kept = tokens_and_rule(episodes)
        kept.rewards = episodes.rewards
        kept = kept.to("cpu")
        if self._episodes is not None:
            kept = EpisodeBatch.concat([self._episodes, kept])
        self._episodes = kept.select(slice(max(0, len(kept) - self.capacity), None))

    def draw(self, count: int, *, seed: int, number: int) -> Tensor:
        """Rows of the buffer, drawn with replacement: (n,) int64, a function of the arguments and of B.

        Args:
            count: n.
            seed: of the run.
            number: of the draw.
        """
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        return torch.randint(len(self.episodes), (count,), generator=generator)

    def state(self) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        """The rule of legal tokens (None of an empty buffer), and the tensors by field."""
        if self._episodes is None:
            return None, {}
        return self._episodes.sampling, {name: getattr(self._episodes, name) for name in FIELDS}

    def load(self, sampling: dict[str, Any] | None, tensors: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` gave."""
        self._episodes = None
        if sampling is not None:
            fields: dict[str, Any] = {name: tensors[name] for name in FIELDS}
            self._episodes = EpisodeBatch(**fields, sampling=sampling)
