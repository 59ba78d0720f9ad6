"""Rewards of single turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textenv.episodes.turns import turn_ends
from textenv.rewards.term import RewardTerm
from textenv.utils.names import shown

if TYPE_CHECKING:
    from textenv.episodes.batch import EpisodeBatch


class TurnRewardTerm(RewardTerm):
    """Base class of rewards per turn: implement ``score_turns``.

    Each reward goes to the last token of its turn. In episodes of one turn it is the reward of the episode.

    Example:
        >>> from textenv.episodes.batch import EpisodeBatch
        >>> class ShortTurns(TurnRewardTerm):
        ...     def score_turns(self, episodes):
        ...         return [[-float(n)] for n in episodes.response_lengths.tolist()]
        >>> ShortTurns().score(EpisodeBatch.from_ids([[1]], [[2, 3]])).tolist()
        [[0.0, 0.0, -2.0]]
    """

    per_token = True

    def score_turns(self, episodes: EpisodeBatch) -> Sequence[Sequence[float]]:
        """The rewards of all turns.

        Args:
            episodes: B >= 1 episodes, also episodes in progress. A turn is a run of ``action_mask``;
                ``turn_texts`` gives the texts.

        Returns:
            B lists with a number per turn. The reward of a turn may depend on tokens up to its end only.
        """
        raise NotImplementedError(f"{type(self).__name__} must define score_turns(episodes)")

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B, L) float: the reward of each turn at its last action.

        Raises:
            ValueError: if an episode does not get one number per turn.
        """
        ends = turn_ends(episodes.action_mask)
        counts = ends.sum(-1).tolist()
        rewards = [[float(value) for value in values] for values in self.score_turns(episodes)]
        given = [len(values) for values in rewards]
        if given != counts:
            raise ValueError(
                f"score_turns must give one number per turn, so lists of {shown(counts)} numbers, got lists "
                f"of {shown(given)}"
            )
        placed = torch.zeros(episodes.input_ids.shape, device=episodes.device)
        flat = [value for values in rewards for value in values]
        placed[ends] = torch.tensor(flat, dtype=placed.dtype, device=placed.device)
        return placed

    def step_score(self, env: Any) -> Tensor:
        """(S,) float: the reward of the turns that ended in this step, 0 in other rows."""
        episodes = env.stepped
        values = self.score(episodes).gather(1, episodes.last_action.unsqueeze(-1)).squeeze(-1)
        return torch.where(env.turn_over, values, 0.0)

    def turn_texts(self, episodes: EpisodeBatch) -> list[list[str]]:
        """The policy's turns as texts, without special tokens: B lists."""
        texts = []
        rows = zip(episodes.input_ids.tolist(), episodes.action_mask.tolist(), strict=True)
        for ids, mask in rows:
            turns: list[list[int]] = []
            for column, chosen in enumerate(mask):
                if chosen and not mask[column - 1]:
                    turns.append([])
                if chosen:
                    turns[-1].append(ids[column])
            texts.append([str(t) for t in self.tokenizer.batch_decode(turns, skip_special_tokens=True)])
        return texts
