"""The N rows of a running environment as device tensors, and snapshots of some of them.

Shape letters: N rows, n of them, L tokens of a row, T response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.utils.devices import to_device

if TYPE_CHECKING:
    from textenv.prompts.prompt_set import PromptSet


@dataclass
class RowSnapshot:
    """A copy of the tokens of n rows; later steps do not change it."""

    tokens: Tensor
    """(n, L) int64: prompt, response so far, padding."""
    prompt_lengths: Tensor
    """(n,) int64."""
    steps: Tensor
    """(n,) int64: response tokens so far, t."""
    episode_ids: Tensor
    """(n,) int64."""
    prompt_index: Tensor
    """(n,) int64: index into the prompt set."""
    lengths: Tensor
    """(n,) int64: tokens of prompt and response."""
    actions: Tensor
    """(n, L) bool: tokens that the policy chose, in episodes of several turns; (n, 0) in others."""

    @staticmethod
    def join(parts: Sequence[RowSnapshot]) -> RowSnapshot:
        """Concatenate snapshots."""
        return RowSnapshot(
            **{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(RowSnapshot)}
        )

    def overwrite(self, at: Tensor, snapshot: RowSnapshot) -> None:
        """Overwrite the entries ``at`` (m,) with those of a snapshot of m rows."""
        for f in fields(self):
            getattr(self, f.name).index_copy_(0, at, getattr(snapshot, f.name))

    def until_last_action(self) -> RowSnapshot:
        """The rows without the reply that follows the last action."""
        if not self.actions.shape[1]:
            return self
        columns = torch.arange(1, self.actions.shape[1] + 1, device=self.tokens.device)
        return replace(self, lengths=torch.where(self.actions, columns, 0).amax(-1))

    def action_mask(self, width: int) -> Tensor:
        """Which of the first ``width`` columns hold tokens that the policy chose: (n, width) bool."""
        if self.actions.shape[1]:
            return self.actions[:, :width].clone()
        columns = torch.arange(width, device=self.tokens.device)
        return (columns >= self.prompt_lengths.unsqueeze(-1)) & (columns < self.lengths.unsqueeze(-1))

    def to_columns(self, by_step: Tensor, width: int) -> Tensor:
        """Move values by step to token columns: (n, T) -> (n, width), 0 where there is no action."""
        actions = self.action_mask(width)
        if self.actions.shape[1]:
            step = actions.cumsum(-1) - 1
        else:
            step = torch.arange(width, device=self.tokens.device) - self.prompt_lengths.unsqueeze(-1)
        return by_step.gather(1, step.clamp_(0, by_step.shape[1] - 1)).masked_fill_(~actions, 0)

    def to_batch(
        self,
        prompts: PromptSet,
        sampling: dict[str, Any],
        by_step: dict[str, Tensor] | None = None,
        terms_by_step: dict[str, Tensor] | None = None,
        extras: dict[str, list[Any]] | None = None,
        **per_episode: Tensor,
    ) -> EpisodeBatch:
        """The rows as episodes, trimmed to the longest.

        Args:
            prompts: their columns become ``extras``.
            sampling: for ``EpisodeBatch.sampling``.
            by_step: field of the batch -> (n, T) values by step.
            terms_by_step: reward term -> (n, T) values by step.
            extras: further columns, n values each.
            per_episode: further fields, (n,) each.
        """
        width = int(self.lengths.max()) if len(self.lengths) else 0
        attention_mask = torch.arange(width, device=self.tokens.device) < self.lengths.unsqueeze(-1)
        return EpisodeBatch(
            # Padding is 0 in every batch, so batches do not differ by how they were put together.
            input_ids=self.tokens[:, :width] * attention_mask,
            attention_mask=attention_mask,
            prompt_lengths=self.prompt_lengths,
            action_mask=self.action_mask(width),
            episode_id=self.episode_ids,
            prompt_index=self.prompt_index,
            extras={
                **(prompts.extras(self.prompt_index.tolist()) if prompts.columns else {}),
                **(extras or {}),
            },
            sampling=dict(sampling),
            check=False,
            reward_terms={name: self.to_columns(v, width) for name, v in (terms_by_step or {}).items()},
            **{name: self.to_columns(v, width) for name, v in (by_step or {}).items()},
            **per_episode,
        )


class Rows:
    """N rows of at most L tokens, updated in place: a step allocates only the copies that it returns.

    Args:
        num_rows: N.
        max_length: L.
        max_steps: T, the largest number of response tokens.
        pad_token_id: id after the last token of a row.
        device: of the tensors.
        turns: rows have several turns, with replies between them.
    """

    def __init__(
        self,
        num_rows: int,
        max_length: int,
        max_steps: int,
        pad_token_id: int,
        device: torch.device,
        *,
        turns: bool = False,
    ) -> None:
        def full(value: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        self._length = max_length
        self._pad = pad_token_id
        # One column more than a row can have: rows that do not act write there, so one kernel serves all
        # rows.
        self._tokens = full(pad_token_id, num_rows, max_length + 1)
        self._attention_mask = full(0, num_rows, max_length + 1, dtype=torch.int8)
        self.prompt_lengths = full(0, num_rows)
        """(N,) int64."""
        self.steps = full(0, num_rows)
        """(N,) int64: tokens chosen so far in the episode."""
        self.lengths = full(0, num_rows)
        """(N,) int64: tokens of the row."""
        self.turn_starts = full(0, num_rows) if turns else self.prompt_lengths
        """(N,) int64: column where the present turn begins; in episodes of one turn the prompt's length."""
        self._actions = full(0, num_rows, max_length + 1 if turns else 0, dtype=torch.bool)
        self.active = full(0, num_rows, dtype=torch.bool)
        """(N,) bool: the row needs an action. False in finished rows and in rows without an episode."""
        self.episode_ids = full(-1, num_rows)
        """(N,) int64: -1 before the first episode."""
        self.prompt_index = full(-1, num_rows)
        """(N,) int64: index into the prompt set."""
        self.keys = full(0, num_rows, max_steps + 1)
        """(N, T + 1) int64: the noise key of every step, hashed once per episode."""

    @property
    def tokens(self) -> Tensor:
        """(N, L) int64: prompt, response so far, padding. A view."""
        return self._tokens[:, : self._length]

    @property
    def attention_mask(self) -> Tensor:
        """(N, L) int8: 1 on tokens. A view."""
        return self._attention_mask[:, : self._length]

    @property
    def actions(self) -> Tensor:
        """(N, L) bool: tokens that the policy chose; (N, 0) in rows of one turn. A view."""
        return self._actions[:, : self._length]

    @property
    def turn_steps(self) -> Tensor:
        """(N,) int64: tokens chosen so far in the present turn, t."""
        return self.lengths - self.turn_starts

    def key(self) -> Tensor:
        """(N,) int64: the noise key of each row's next draw."""
        return self.keys.gather(1, self.steps.unsqueeze(-1)).squeeze(-1)

    def append(self, chosen: Tensor, acting: Tensor) -> None:
        """Append the tokens ``chosen`` (N,) to the rows where ``acting`` (N,) is True."""
        at = torch.where(acting, self.lengths, self._length).unsqueeze(-1)
        self._tokens.scatter_(1, at, chosen.unsqueeze(-1))
        self._attention_mask.scatter_(1, at, 1)
        if self._actions.shape[1]:
            self._actions.scatter_(1, at, True)
        self.steps += acting
        self.lengths += acting

    def add(self, rows: np.ndarray, starts: np.ndarray, added: Sequence[Sequence[int]]) -> None:
        """Append tokens that the policy did not choose, and begin a new turn after them.

        Args:
            rows: (n,) int64.
            starts: (n,) int64, their lengths.
            added: n lists of token ids.
        """
        counts = np.array([len(ids) for ids in added], dtype=np.int64)
        flat = np.array([i for ids in added for i in ids], dtype=np.int64)
        row = np.repeat(rows, counts)
        offset = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
        device = self._tokens.device
        at = to_device(row, device), to_device(np.repeat(starts, counts) + offset, device)
        self._tokens.index_put_(at, to_device(flat, device))
        self._attention_mask.index_put_(at, torch.ones((), dtype=torch.int8, device=device))
        index, ends = to_device(rows, device), to_device(starts + counts, device)
        self.lengths.index_copy_(0, index, ends)
        self.turn_starts.index_copy_(0, index, ends)

    def place(self, rows: Tensor, ids: Tensor, attention_mask: Tensor, **state: Tensor) -> None:
        """Start new episodes.

        Args:
            rows: (n,) int64.
            ids: (n, width) int64 prompts, right-padded.
            attention_mask: (n, width) int8.
            state: n values each for ``prompt_lengths``, ``episode_ids``, ``prompt_index`` and ``keys``.
        """
        width = ids.shape[1]
        self._tokens[:, width:].index_fill_(0, rows, self._pad)
        self._tokens[:, :width].index_copy_(0, rows, ids)
        self._attention_mask[:, width:].index_fill_(0, rows, 0)
        self._attention_mask[:, :width].index_copy_(0, rows, attention_mask)
        self.steps.index_fill_(0, rows, 0)
        if self._actions.shape[1]:
            self._actions.index_fill_(0, rows, False)
        self.active.index_fill_(0, rows, True)
        for name, value in state.items():
            getattr(self, name).index_copy_(0, rows, value)
        for copied in (self.lengths, self.turn_starts):
            copied.index_copy_(0, rows, state["prompt_lengths"])

    def clear(self) -> None:
        """Empty all rows."""
        self._tokens.fill_(self._pad)
        counted = self.prompt_lengths, self.steps, self.lengths, self.turn_starts
        for tensor in (self._attention_mask, self._actions, self.active, self.keys, *counted):
            tensor.zero_()
        for tensor in (self.episode_ids, self.prompt_index):
            tensor.fill_(-1)

    def take(self, rows: Tensor) -> RowSnapshot:
        """A copy of ``rows`` (n,) int64."""
        return RowSnapshot(
            **{f.name: getattr(self, f.name).index_select(0, rows) for f in fields(RowSnapshot)}
        )
