"""The most recent step of all rows: which rows acted, which episodes ended, and the rewards added so far.

Shape letters: N rows, F rows that finished in the step, S rows that acted in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from textenv.envs.rows import Rows
from textenv.envs.step_buffer import FinishedEpisodes, StepBuffer, counts, to_episodes
from textenv.episodes.batch import EpisodeBatch

if TYPE_CHECKING:
    from textenv.prompts.prompt_set import PromptSet


@dataclass
class Transition:
    """One step of all rows, valid until the next step. Batches are built when they are asked for."""

    prompts: PromptSet
    sampling: dict[str, Any]
    """For ``EpisodeBatch.sampling``."""
    acting: Tensor
    """(N,) bool: rows that got a token. A row whose token ended a turn counts when the reply is there."""
    terminated: Tensor
    """(N,) bool."""
    truncated: Tensor
    """(N,) bool."""
    recorded: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> (N,): values that the policy recorded for its tokens."""
    finished: FinishedEpisodes | None = None
    """The rows whose episode ended."""
    replaced: Tensor | None = None
    """(R,) int64: those of them in which a new episode has started."""
    info_returns: np.ndarray | None = None
    """(N,) numpy copy of ``finished.returns`` in ``info["episode"]``, if info cannot hold the tensor
    itself."""
    _reward: Tensor | None = None
    _finished_batch: EpisodeBatch | None = None
    _stepped_batch: EpisodeBatch | None = None

    @property
    def acting_rows(self) -> Tensor:
        """(S,) int64: rows that got a token."""
        return self.acting.nonzero().squeeze(-1)

    @property
    def finished_rows(self) -> Tensor:
        """(F,) int64: rows whose episode ended."""
        if self.finished is None:
            return torch.zeros(0, dtype=torch.int64, device=self.acting.device)
        return self.finished.rows

    @property
    def reward(self) -> Tensor:
        """(N,) float: sum of the terms that were added for this step."""
        if self._reward is None:
            return torch.zeros(len(self.acting), device=self.acting.device)
        return self._reward

    def finished_batch(self) -> EpisodeBatch | None:
        """The F episodes that ended, in row order, without rewards."""
        if self._finished_batch is None and self.finished is not None:
            self._finished_batch = to_episodes(
                [self.finished], self.prompts, self.sampling, with_rewards=False
            )
        return self._finished_batch

    def finished_batch_with_rewards(self) -> EpisodeBatch | None:
        """The F episodes that ended, with the rewards that were added so far."""
        if self.finished is None:
            return None
        return to_episodes([self.finished], self.prompts, self.sampling)

    def stepped_batch(self, rows: Rows) -> EpisodeBatch:
        """The S episodes that got a token, finished or not, up to this token."""
        if self._stepped_batch is None:
            index = self.acting_rows
            snapshot = rows.take(index)
            if self.finished is not None:
                snapshot.overwrite(torch.searchsorted(index, self.finished.rows), self.finished.snapshot)
            self._stepped_batch = snapshot.until_last_action().to_batch(
                self.prompts,
                self.sampling,
                terminated=self.terminated[index],
                truncated=self.truncated[index],
            )
        return self._stepped_batch

    def add_reward(self, name: str, values: Tensor, rows: Rows, buffer: StepBuffer) -> None:
        """Add (N,) float ``values`` to term ``name`` for this step; only rows that acted count."""
        values = values * self.acting
        if counts(name):
            self._reward = self.reward + values
        if self.finished is not None:
            self.finished.add_reward(name, values)
            if self.info_returns is not None:
                self.info_returns[...] = self.finished.returns.cpu().numpy()
        if self.replaced is not None:
            values = values.index_fill(0, self.replaced, 0.0)
        buffer.add_reward(name, values, (rows.steps - 1).clamp_min(0))
