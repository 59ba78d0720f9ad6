"""The state of N episodes in progress, one row each, as device tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textenv.episodes import EpisodeBatch

if TYPE_CHECKING:
    from textenv.prompts import PromptSet


@dataclass
class Rows:
    """N rows of at most L tokens; everything is updated in place."""

    tokens: Tensor
    """(N, L) int64: prompt, response so far, padding."""
    attention_mask: Tensor
    """(N, L) int8: 1 on tokens."""
    lengths: Tensor
    """(N,) int64: tokens in the row."""
    prompt_lengths: Tensor
    """(N,) int64."""
    steps: Tensor
    """(N,) int64: tokens chosen so far, t."""
    active: Tensor
    """(N,) bool: the row waits for an action. False for parked and for finished rows."""
    tickets: Tensor
    """(N,) int64: episode number."""
    prompt_index: Tensor
    """(N,) int64: index into the prompt set."""
    noise: Tensor
    """(N,) int64: the part of the noise key that belongs to the episode."""

    @classmethod
    def empty(cls, num_rows: int, max_length: int, pad_token_id: int, device: torch.device) -> Rows:
        """N rows without an episode."""

        def zeros() -> Tensor:
            return torch.zeros(num_rows, dtype=torch.int64, device=device)

        return cls(
            tokens=torch.full((num_rows, max_length), pad_token_id, dtype=torch.int64, device=device),
            attention_mask=torch.zeros(num_rows, max_length, dtype=torch.int8, device=device),
            lengths=zeros(),
            prompt_lengths=zeros(),
            steps=zeros(),
            active=torch.zeros(num_rows, dtype=torch.bool, device=device),
            tickets=torch.full((num_rows,), -1, dtype=torch.int64, device=device),
            prompt_index=torch.full((num_rows,), -1, dtype=torch.int64, device=device),
            noise=zeros(),
        )

    def append(self, tokens: Tensor, acting: Tensor, row_index: Tensor) -> None:
        """Append tokens (N,) to the rows where ``acting`` (N,) is True; ``row_index`` is arange(N)."""
        at = self.lengths.clamp_max(self.tokens.shape[1] - 1)
        old = self.tokens[row_index, at]
        self.tokens[row_index, at] = torch.where(acting, tokens, old)
        self.attention_mask[row_index, at] |= acting
        self.lengths += acting
        self.steps += acting

    def place(
        self, rows: Tensor, ids: Tensor, lengths: Tensor, *, pad_token_id: int, **state: Tensor
    ) -> None:
        """Put new prompts into ``rows`` (n,): ids (n, width), lengths (n,), and tickets, prompt_index,
        noise (n,).
        """
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        inside = columns < lengths.unsqueeze(-1)
        fresh = torch.full_like(inside, pad_token_id, dtype=torch.int64)
        fresh[:, : ids.shape[1]] = ids
        self.tokens[rows] = fresh.masked_fill_(~inside, pad_token_id)
        self.attention_mask[rows] = inside.to(torch.int8)
        self.lengths[rows] = lengths
        self.prompt_lengths[rows] = lengths
        self.steps[rows] = 0
        self.active[rows] = True
        for name, value in state.items():
            getattr(self, name)[rows] = value

    def take(self, rows: Tensor) -> Rows:
        """A copy of some rows: (n,) int64 -> n rows."""
        return Rows(**{spec.name: getattr(self, spec.name)[rows] for spec in fields(self)})

    def clone(self) -> Rows:
        """A copy of all rows."""
        return Rows(**{spec.name: getattr(self, spec.name).clone() for spec in fields(self)})

    def action_mask(self) -> Tensor:
        """(N, L) bool: the response so far."""
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (columns >= self.prompt_lengths.unsqueeze(-1)) & (columns < self.lengths.unsqueeze(-1))

    def to_columns(self, by_step: Tensor) -> Tensor:
        """Move numbers kept by response step to token columns: (N, T) -> (N, L), 0 where there is no
        action.
        """
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        step = (columns - self.prompt_lengths.unsqueeze(-1)).clamp(0, by_step.shape[1] - 1)
        return by_step.gather(1, step).masked_fill_(~self.action_mask(), 0)

    def to_batch(self, prompts: PromptSet, sampling: dict[str, Any], **fields_: Any) -> EpisodeBatch:
        """The rows as episodes, trimmed to the longest; ``fields_`` are further fields of the batch."""
        batch = EpisodeBatch(
            input_ids=self.tokens * self.attention_mask,  # padding is 0 in every batch, however it was put together
            attention_mask=self.attention_mask.bool(),
            prompt_lengths=self.prompt_lengths,
            action_mask=self.action_mask(),
            episode_id=self.tickets,
            prompt_index=self.prompt_index,
            extras=prompts.extras(self.prompt_index.tolist()),
            sampling=sampling,
            **fields_,
        )
        return batch.select(slice(None))
