"""Input of an optimizer step: episodes with tensors aligned to them, and denominators of the step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch


@dataclass
class TrainingBatch:
    """B episodes with further tensors aligned to them: (B, L) by token or (B,) by episode.

    Example:
        >>> episodes = EpisodeBatch.from_ids([[1], [1, 2]], [[3, 4], [5]])
        >>> batch = TrainingBatch(episodes, {"advantages": torch.ones(2, 3)})
        >>> batch.select(torch.tensor([1]))["advantages"].shape
        torch.Size([1, 3])
    """

    episodes: EpisodeBatch
    """The B episodes."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """name -> (B, L) or (B,): advantages, returns, old and reference log-probs, ..."""

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.shape[0] != len(self.episodes):
                raise ValueError(f"{name} must have {len(self.episodes)} rows, got {tensor.shape[0]}")

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def mask(self) -> Tensor:
        """(B, L) bool: action tokens."""
        return self.episodes.action_mask

    @property
    def row_lengths(self) -> Tensor:
        """(len,) int64: tokens of each row, prompts included."""
        return self.episodes.lengths

    def to(self, device: torch.device | str) -> TrainingBatch:
        """The same on another device."""
        if self.episodes.device == torch.device(device):
            return self
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return TrainingBatch(self.episodes.to(device), tensors)

    def select(self, index: Tensor) -> TrainingBatch:
        """Rows by index (b,) int64, trimmed to their longest episode."""
        episodes = self.episodes.select(index)
        width = episodes.input_ids.shape[1]
        index = index.to(self.episodes.device)
        tensors = {
            name: tensor[index, :width] if tensor.dim() == 2 else tensor[index]
            for name, tensor in self.tensors.items()
        }
        return TrainingBatch(episodes, tensors)

    def microbatches(self, max_tokens: int) -> Iterator[TrainingBatch]:
        """Length-sorted parts of at most ``max_tokens`` padded tokens (at least one row each)."""
        if len(self) * self.episodes.input_ids.shape[1] <= max_tokens:
            yield self
            return
        for index, _ in self.episodes.token_budget_batches(max_tokens):
            yield self.select(index)


@dataclass
class Totals:
    """Denominators of one optimizer step, over all its micro-batches: losses divided by them add up."""

    tokens: float
    """Action tokens."""
    episodes: float
    """Episodes."""
    longest: float | None = None
    """Largest number of action tokens per episode (``max_new_tokens``), if the agent knows it."""
    extra: dict[str, float] = field(default_factory=dict)
    """Further denominators of individual agents."""

    @classmethod
    def of(cls, batch: TrainingBatch) -> Totals:
        """Of all rows of an optimizer step."""
        return cls(tokens=max(1.0, float(batch.mask.sum())), episodes=max(1.0, float(len(batch))))


def epoch_order(rows: int, *, seed: int, epoch: int) -> Tensor:
    """Order in which epoch ``epoch`` visits the rows: (rows,) int64, a function of its arguments alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(rows, generator=generator)


def rows_of_step(rows: int, step: int, *, size: int, seed: int) -> Tensor:
    """Rows of optimizer step 0, 1, ... of passes over a data set by ``size``: (at most size,) int64."""
    epoch, position = divmod(step, -(-rows // size))
    return epoch_order(rows, seed=seed, epoch=epoch)[position * size : (position + 1) * size]
