"""What happened in the last step, for those who pay for it: reward terms and rollouts.

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
from textenv.envs.step_buffer import Finished, Ledger, counts, to_episodes
from textenv.episodes.batch import EpisodeBatch

if TYPE_CHECKING:
    from textenv.prompts.prompt_set import PromptSet


@dataclass
class LastStep:
    """One step of all rows, until the next one takes its place. Batches are built for those who ask."""

    prompts: PromptSet
    sampling: dict[str, Any]
    """How actions are drawn, for ``EpisodeBatch.sampling``."""
    acting: Tensor
    """(N,) bool: rows that wrote a token."""
    terminated: Tensor
    """(N,) bool."""
    truncated: Tensor
    """(N,) bool."""
    recorded: Mapping[str, Tensor] = field(default_factory=dict)
    """name -> (N,): what the policy knew about its tokens."""
    finished: Finished | None = None
    """The rows whose episode ended."""
    replaced: Tensor | None = None
    """(R,) int64: those of them that hold a new episode already."""
    shown_returns: np.ndarray | None = None
    """(N,) the copy of ``finished.returns`` in ``info["episode"]``, where that can't be the tensor itself."""
    _paid: Tensor | None = None
    _finished_batch: EpisodeBatch | None = None
    _stepped_batch: EpisodeBatch | None = None

    @property
    def acting_rows(self) -> Tensor:
        """(S,) int64: rows that wrote a token."""
        return self.acting.nonzero().squeeze(-1)

    @property
    def finished_rows(self) -> Tensor:
        """(F,) int64: rows whose episode ended."""
        if self.finished is None:
            return torch.zeros(0, dtype=torch.int64, device=self.acting.device)
        return self.finished.rows

    @property
    def paid(self) -> Tensor:
        """(N,) float: everything that was counted in this step."""
        return torch.zeros(len(self.acting), device=self.acting.device) if self._paid is None else self._paid

    def finished_batch(self) -> EpisodeBatch | None:
        """The F episodes that ended, in row order, without rewards."""
        if self._finished_batch is None and self.finished is not None:
            self._finished_batch = to_episodes(
                [self.finished], self.prompts, self.sampling, with_rewards=False
            )
        return self._finished_batch

    def finished_batch_with_rewards(self) -> EpisodeBatch | None:
        """The same with everything that was paid so far."""
        if self.finished is None:
            return None
        return to_episodes([self.finished], self.prompts, self.sampling)

    def stepped_batch(self, rows: Rows) -> EpisodeBatch:
        """The S episodes that moved, finished or not, up to the token just written."""
        if self._stepped_batch is None:
            index = self.acting_rows
            texts = rows.take(index)
            if self.finished is not None:
                texts.replace(torch.searchsorted(index, self.finished.rows), self.finished.texts)
            self._stepped_batch = texts.to_batch(
                self.prompts,
                self.sampling,
                terminated=self.terminated[index],
                truncated=self.truncated[index],
            )
        return self._stepped_batch

    def pay(self, name: str, values: Tensor, rows: Rows, ledger: Ledger) -> None:
        """Book what term ``name`` pays: (N,) float, of which the acting rows' part counts."""
        values = values * self.acting
        if counts(name):
            self._paid = self.paid + values
        if self.finished is not None:
            self.finished.pay(name, values)
            if self.shown_returns is not None:
                self.shown_returns[...] = self.finished.returns.cpu().numpy()
        if self.replaced is not None:
            values = values.index_fill(0, self.replaced, 0.0)
        ledger.pay(name, values, (rows.steps - 1).clamp_min(0))
