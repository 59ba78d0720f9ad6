"""What policies record and reward terms pay, by row and step, for running and just finished episodes.

Shape letters: N rows, F rows that finished in a step, T response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textenv.envs.rows import Rows, Texts
from textenv.episodes.batch import EpisodeBatch

if TYPE_CHECKING:
    from textenv.prompts.prompt_set import PromptSet

RAW = "raw/"
"""Begins the name of what a shaping term was computed from: noted, but no part of the reward."""
_FIELDS = {"log_prob": "log_probs", "value": "values"}


def counts(name: str) -> bool:
    """Whether what is paid under this name is part of the reward; "raw/..." is only noted."""
    return not name.startswith(RAW)


class Ledger:
    """Numbers by row and step of the episodes in progress.

    Args:
        num_rows: N.
        max_steps: T.
        device: where the tensors live.
    """

    def __init__(self, num_rows: int, max_steps: int, device: torch.device) -> None:
        # One column more than an episode has steps, for what rows that do not act are told.
        self._shape = (num_rows, max_steps + 1)
        self.max_steps = max_steps
        self._device = device
        self.recorded: dict[str, Tensor] = {}
        """name -> (N, T + 1): what the policy recorded."""
        self.paid: dict[str, Tensor] = {}
        """term -> (N, T + 1): what reward terms paid."""
        self.returns = torch.zeros(num_rows, device=device)
        """(N,): sum of everything counted in the running episode."""

    def _table(self, tables: dict[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
        if name not in tables:
            tables[name] = torch.zeros(self._shape, dtype=dtype, device=self._device)
        return tables[name]

    def record(self, values: Mapping[str, Tensor], steps: Tensor) -> None:
        """Note (N,) values for the coming step of each row; ``steps`` (N,) is t."""
        at = steps.unsqueeze(-1)
        for name, value in values.items():
            table = self._table(self.recorded, name, value.dtype)
            table.scatter_(1, at, value.to(table).unsqueeze(-1))

    def pay(self, name: str, values: Tensor, steps: Tensor) -> None:
        """Book (N,) ``values``, 0 for rows that did not act, for the token chosen at ``steps`` (N,)."""
        table = self._table(self.paid, name, values.dtype)
        table.scatter_add_(1, steps.unsqueeze(-1), values.to(table).unsqueeze(-1))
        if counts(name):
            self.returns += values.to(self.returns)

    def forget(self, rows: Tensor) -> None:
        """Forget the episodes of ``rows`` (n,)."""
        for tables in (self.recorded, self.paid):
            for table in tables.values():
                table.index_fill_(0, rows, 0)
        self.returns.index_fill_(0, rows, 0)

    def clear(self) -> None:
        """Forget everything, and under which names it was."""
        self.recorded.clear()
        self.paid.clear()
        self.returns.zero_()

    def totals(self, row: int) -> dict[str, float]:
        """What each term has paid in the running episode of one row."""
        return {name: float(table[row].sum()) for name, table in self.paid.items()}


@dataclass
class Finished:
    """A copy of the F rows that ended in one step, made before they are reset."""

    rows: Tensor
    """(F,) int64: which rows they were."""
    texts: Texts
    """What they wrote."""
    terminated: Tensor
    """(F,) bool."""
    truncated: Tensor
    """(F,) bool."""
    recorded: dict[str, Tensor]
    """name -> (F, T + 1)."""
    paid: dict[str, Tensor]
    """term -> (F, T + 1)."""
    returns: Tensor
    """(N,): return of the finished rows, 0 elsewhere; the tensor that ``info["episode"]["r"]`` shows."""
    max_steps: int
    """T."""

    @classmethod
    def take(
        cls, index: Tensor, rows: Rows, terminated: Tensor, truncated: Tensor, ledger: Ledger
    ) -> Finished:
        """Copy the rows ``index`` (F,) out of the running state; the flags are (N,)."""
        returns = torch.zeros_like(ledger.returns)
        returns.index_copy_(0, index, ledger.returns.index_select(0, index))
        return cls(
            rows=index,
            texts=rows.take(index),
            terminated=terminated.index_select(0, index),
            truncated=truncated.index_select(0, index),
            recorded={name: table.index_select(0, index) for name, table in ledger.recorded.items()},
            paid={name: table.index_select(0, index) for name, table in ledger.paid.items()},
            returns=returns,
            max_steps=ledger.max_steps,
        )

    def pay(self, name: str, values: Tensor) -> None:
        """Book the part of (N,) ``values`` that belongs to these rows, for their last token."""
        amounts = values.index_select(0, self.rows)
        if name not in self.paid:
            self.paid[name] = amounts.new_zeros(len(amounts), self.max_steps + 1)
        table, last = self.paid[name], (self.texts.steps - 1).unsqueeze(-1)
        table.scatter_add_(1, last, amounts.to(table).unsqueeze(-1))
        if counts(name):
            self.returns.index_add_(0, self.rows, amounts.to(self.returns))


def to_episodes(
    parts: Sequence[Finished], prompts: PromptSet, sampling: dict[str, Any], *, with_rewards: bool = True
) -> EpisodeBatch:
    """Finished rows of any number of steps as one batch, in the order in which they finished.

    Args:
        parts: at least one.
        prompts: where the columns for ``extras`` come from.
        sampling: for ``EpisodeBatch.sampling``.
        with_rewards: fill ``reward_terms`` and their sum, ``rewards``.
    """
    recorded = _join_tables([part.recorded for part in parts], parts)
    paid = _join_tables([part.paid for part in parts], parts) if with_rewards else {}
    batch = Texts.join([part.texts for part in parts]).to_batch(
        prompts,
        sampling,
        by_step={_FIELDS[name]: table for name, table in recorded.items() if name in _FIELDS},
        terms_by_step=paid,
        terminated=torch.cat([part.terminated for part in parts]),
        truncated=torch.cat([part.truncated for part in parts]),
    )
    counted = [values for name, values in batch.reward_terms.items() if counts(name)]
    if counted:
        batch.rewards = torch.stack(counted).sum(0)
    return batch


def _join_tables(tables: Sequence[Mapping[str, Tensor]], parts: Sequence[Finished]) -> dict[str, Tensor]:
    """Tables below each other; one that a part lacks (nothing was paid there yet) counts as zeros."""
    kinds = {name: value for table in tables for name, value in table.items()}

    def of(name: str, table: Mapping[str, Tensor], rows: int) -> Tensor:
        return table[name] if name in table else kinds[name].new_zeros(rows, kinds[name].shape[1])

    return {
        name: torch.cat([of(name, t, len(p.rows)) for t, p in zip(tables, parts, strict=True)])
        for name in kinds
    }
