"""What policies record and reward terms pay, step by step, for rows in progress and for those that just
finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from textenv.rows import Rows

RAW_PREFIX = "raw/"


@dataclass
class Ledger:
    """Numbers by row and response step.

    Shapes: N rows, T response tokens.
    """

    num_rows: int
    max_new_tokens: int
    device: torch.device
    recorded: dict[str, Tensor] = field(default_factory=dict)
    """name -> (N, T): what the policy recorded."""
    paid: dict[str, Tensor] = field(default_factory=dict)
    """term -> (N, T): what reward terms paid."""
    returns: Tensor = None  # type: ignore[assignment]
    """(N,): sum of everything counted in the running episode."""

    def __post_init__(self) -> None:
        self.returns = torch.zeros(self.num_rows, device=self.device)
        self._row_index = torch.arange(self.num_rows, device=self.device)

    def _buffer(self, table: dict[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
        if name not in table:
            table[name] = torch.zeros(self.num_rows, self.max_new_tokens, dtype=dtype, device=self.device)
        return table[name]

    def record(self, values: Mapping[str, Tensor], steps: Tensor) -> None:
        """Note (N,) values for the coming step of each row; ``steps`` (N,) is t."""
        at = steps.clamp_max(self.max_new_tokens - 1)
        for name, value in values.items():
            self._buffer(self.recorded, name, value.dtype)[self._row_index, at] = value.detach().to(
                self.device
            )

    def pay(
        self, name: str, values: Tensor, steps: Tensor, finished: Finished | None, *, reset: bool
    ) -> None:
        """Book (N,) ``values`` for the step just made.

        Args:
            name: the reward term; under "raw/" it is noted but not counted.
            values: (N,) float, 0 for rows that did not act.
            steps: (N,) int64, the step index of the token just chosen; unused for rows that were reset.
            finished: the rows that ended in this step.
            reset: whether those rows already hold a new episode.
        """
        live = values
        if finished is not None:
            amounts = values[finished.rows]
            finished.paid[name] = finished.paid.get(name, torch.zeros_like(amounts)) + amounts
            if not name.startswith(RAW_PREFIX):
                finished.returns[finished.rows] += amounts.to(finished.returns)
            if reset:
                live = values.index_fill(0, finished.rows, 0.0)
        self._buffer(self.paid, name, values.dtype)[self._row_index, steps] += live
        if not name.startswith(RAW_PREFIX):
            self.returns += live.to(self.returns)

    def clear(self, rows: Tensor) -> None:
        """Forget the episodes of ``rows`` (n,)."""
        for table in (self.recorded, self.paid):
            for buffer in table.values():
                buffer[rows] = 0
        self.returns[rows] = 0

    def totals(self, row: int) -> dict[str, float]:
        """What each term has paid in the running episode of one row."""
        return {name: float(buffer[row].sum()) for name, buffer in self.paid.items()}


@dataclass
class Finished:
    """A copy of the F rows that ended in one step, made before they are reset."""

    rows: Tensor
    """(F,) int64: which rows they were."""
    state: Rows
    """Their F rows."""
    terminated: Tensor
    """(F,) bool."""
    truncated: Tensor
    """(F,) bool."""
    recorded: dict[str, Tensor]
    """name -> (F, T)."""
    paid_before: dict[str, Tensor]
    """term -> (F, T): paid before this step."""
    returns: Tensor
    """(N,): return of the finished rows, 0 elsewhere; the tensor that ``info["episode"]["r"]`` shows."""
    paid: dict[str, Tensor] = field(default_factory=dict)
    """term -> (F,): paid for the last token."""

    @classmethod
    def take(
        cls, rows: Tensor, state: Rows, terminated: Tensor, truncated: Tensor, ledger: Ledger
    ) -> Finished:
        """Copy ``rows`` (F,) out of the running state; flags are (N,)."""
        returns = torch.zeros_like(ledger.returns)
        returns[rows] = ledger.returns[rows]
        return cls(
            rows=rows,
            state=state.take(rows),
            terminated=terminated[rows],
            truncated=truncated[rows],
            recorded={name: buffer[rows] for name, buffer in ledger.recorded.items()},
            paid_before={name: buffer[rows] for name, buffer in ledger.paid.items()},
            returns=returns,
        )

    def records(self) -> dict[str, Tensor]:
        """``log_probs`` and ``values`` of the episodes, (F, L) each, where the policy recorded them."""
        names = {"log_prob": "log_probs", "value": "values"}
        return {names[k]: self.state.to_columns(v) for k, v in self.recorded.items() if k in names}

    def reward_terms(self) -> dict[str, Tensor]:
        """Term -> (F, L): everything that was paid, the last step included."""
        last = (self.state.lengths - 1).unsqueeze(-1)
        terms = {}
        for name in {**self.paid_before, **self.paid}:
            if name in self.paid_before:
                columns = self.state.to_columns(self.paid_before[name])
            else:
                columns = torch.zeros(
                    self.state.tokens.shape, device=last.device, dtype=self.paid[name].dtype
                )
            if name in self.paid:
                columns = columns.scatter_add(1, last, self.paid[name].unsqueeze(-1).to(columns))
            terms[name] = columns
        return terms
