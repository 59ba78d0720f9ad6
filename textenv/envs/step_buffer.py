"""Log-probs, values and reward terms by row and step, for running episodes and for those that just finished.

Shape letters: N rows, F rows that finished in a step, T response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textenv.envs.rows import Rows, RowSnapshot
from textenv.episodes.batch import EpisodeBatch

if TYPE_CHECKING:
    from textenv.prompts.prompt_set import PromptSet

RAW = "raw/"
"""Prefix of the inputs of a shaped reward: stored, but not part of the reward."""
PARTNER = "partner"
"""Name of the reward term for the rewards of a partner's replies."""
_FIELDS = {"log_prob": "log_probs", "value": "values"}


def counts(name: str) -> bool:
    """Whether a term of this name is part of the reward; "raw/..." is only stored."""
    return not name.startswith(RAW)


class StepBuffer:
    """Values by row and step of the running episodes.

    Args:
        num_rows: N.
        max_steps: T.
        device: of the tensors.
    """

    def __init__(self, num_rows: int, max_steps: int, device: torch.device) -> None:
        # One column more than an episode has steps: rows that do not act write there.
        self._shape = (num_rows, max_steps + 1)
        self.max_steps = max_steps
        self._device = device
        self.recorded: dict[str, Tensor] = {}
        """name -> (N, T + 1): values recorded by the policy."""
        self.reward_terms: dict[str, Tensor] = {}
        """term -> (N, T + 1): reward of each step."""
        self.returns = torch.zeros(num_rows, device=device)
        """(N,): return of the running episode so far."""

    def _table(self, tables: dict[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
        if name not in tables:
            tables[name] = torch.zeros(self._shape, dtype=dtype, device=self._device)
        return tables[name]

    def record(self, values: Mapping[str, Tensor], steps: Tensor) -> None:
        """Store (N,) values for the coming step of each row; ``steps`` (N,) is t."""
        at = steps.unsqueeze(-1)
        for name, value in values.items():
            table = self._table(self.recorded, name, value.dtype)
            table.scatter_(1, at, value.to(table).unsqueeze(-1))

    def add_reward(self, name: str, values: Tensor, steps: Tensor) -> None:
        """Add (N,) ``values``, 0 in rows that did not act, to term ``name`` at ``steps`` (N,)."""
        table = self._table(self.reward_terms, name, values.dtype)
        table.scatter_add_(1, steps.unsqueeze(-1), values.to(table).unsqueeze(-1))
        if counts(name):
            self.returns += values.to(self.returns)

    def reset_rows(self, rows: Tensor) -> None:
        """Set the values of ``rows`` (n,) to 0, where new episodes start."""
        for tables in (self.recorded, self.reward_terms):
            for table in tables.values():
                table.index_fill_(0, rows, 0)
        self.returns.index_fill_(0, rows, 0)

    def clear(self) -> None:
        """Drop all values and names."""
        self.recorded.clear()
        self.reward_terms.clear()
        self.returns.zero_()

    def last(self, name: str, steps: Tensor) -> Tensor:
        """What was recorded under ``name`` for the last token of each row; ``steps`` (N,) is its number."""
        return self.recorded[name].gather(1, (steps - 1).clamp_min(0).unsqueeze(-1)).squeeze(-1)

    def totals(self, row: int) -> dict[str, float]:
        """Sum of each term over the running episode of one row."""
        return {name: float(table[row].sum()) for name, table in self.reward_terms.items()}


@dataclass
class FinishedEpisodes:
    """A copy of the F rows that ended in one step, made before new episodes start in them."""

    rows: Tensor
    """(F,) int64: their row numbers."""
    snapshot: RowSnapshot
    """Their tokens."""
    terminated: Tensor
    """(F,) bool."""
    truncated: Tensor
    """(F,) bool."""
    recorded: dict[str, Tensor]
    """name -> (F, T + 1)."""
    reward_terms: dict[str, Tensor]
    """term -> (F, T + 1)."""
    returns: Tensor
    """(N,): return of the finished rows, 0 elsewhere; the tensor in ``info["episode"]["r"]``."""
    max_steps: int
    """T."""
    extras: dict[str, list[Any]]
    """Columns of these episodes beside those of their prompts, F values each."""

    @classmethod
    def take(
        cls,
        index: Tensor,
        rows: Rows,
        terminated: Tensor,
        truncated: Tensor,
        buffer: StepBuffer,
        extras: dict[str, list[Any]],
    ) -> FinishedEpisodes:
        """Copy the rows ``index`` (F,) of the running state; the flags are (N,)."""
        returns = torch.zeros_like(buffer.returns)
        returns.index_copy_(0, index, buffer.returns.index_select(0, index))
        return cls(
            rows=index,
            snapshot=rows.take(index),
            terminated=terminated.index_select(0, index),
            truncated=truncated.index_select(0, index),
            recorded={name: table.index_select(0, index) for name, table in buffer.recorded.items()},
            reward_terms={name: table.index_select(0, index) for name, table in buffer.reward_terms.items()},
            returns=returns,
            max_steps=buffer.max_steps,
            extras=extras,
        )

    def add_reward(self, name: str, values: Tensor) -> None:
        """Add the part of (N,) ``values`` in these rows to term ``name`` at their last token."""
        amounts = values.index_select(0, self.rows)
        if name not in self.reward_terms:
            self.reward_terms[name] = amounts.new_zeros(len(amounts), self.max_steps + 1)
        table, last = self.reward_terms[name], (self.snapshot.steps - 1).unsqueeze(-1)
        table.scatter_add_(1, last, amounts.to(table).unsqueeze(-1))
        if counts(name):
            self.returns.index_add_(0, self.rows, amounts.to(self.returns))


def to_episodes(
    parts: Sequence[FinishedEpisodes],
    prompts: PromptSet,
    sampling: dict[str, Any],
    *,
    with_rewards: bool = True,
) -> EpisodeBatch:
    """Episodes that finished in any number of steps as one batch, in the order in which they finished.

    Args:
        parts: at least one.
        prompts: their columns become ``extras``.
        sampling: for ``EpisodeBatch.sampling``.
        with_rewards: fill ``reward_terms`` and their sum, ``rewards``.
    """
    recorded = _join_tables([part.recorded for part in parts], parts)
    terms = _join_tables([part.reward_terms for part in parts], parts) if with_rewards else {}
    batch = RowSnapshot.join([part.snapshot for part in parts]).to_batch(
        prompts,
        sampling,
        by_step={_FIELDS[name]: table for name, table in recorded.items() if name in _FIELDS},
        terms_by_step=terms,
        extras={name: [value for part in parts for value in part.extras[name]] for name in parts[0].extras},
        terminated=torch.cat([part.terminated for part in parts]),
        truncated=torch.cat([part.truncated for part in parts]),
    )
    counted = [values for name, values in batch.reward_terms.items() if counts(name)]
    if counted:
        batch.rewards = torch.stack(counted).sum(0)
    return batch


def _join_tables(
    tables: Sequence[Mapping[str, Tensor]], parts: Sequence[FinishedEpisodes]
) -> dict[str, Tensor]:
    """Concatenate tables by name; one that a part lacks (no such reward yet) counts as zeros."""
    kinds = {name: value for table in tables for name, value in table.items()}

    def of(name: str, table: Mapping[str, Tensor], rows: int) -> Tensor:
        return table[name] if name in table else kinds[name].new_zeros(rows, kinds[name].shape[1])

    return {
        name: torch.cat([of(name, t, len(p.rows)) for t, p in zip(tables, parts, strict=True)])
        for name in kinds
    }
