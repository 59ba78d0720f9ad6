"""A separate critic model, and bootstrap values. Shape letters: B episodes, L tokens, d width."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from textenv.agents.policies.heads import HeadKind, ValueHead, head_dtype
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.log_probs import length_groups
from textenv.modeling.packing import packed_states
from textenv.modeling.split_model import output_head, split_model


class StateValues(NamedTuple):
    """Values of a critic for B episodes."""

    values: Tensor
    """(B, L) V of the state before each action, 0 elsewhere."""
    final_values: Tensor
    """(B,) V after the last token."""


def final_states(hidden: Tensor, episodes: EpisodeBatch) -> Tensor:
    """State after the last token of each episode: (B, L, d) -> (B, d)."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, (episodes.lengths.to(hidden.device) - 1).clamp_min(0)]


def bootstrap_values(final_values: Tensor | None, truncated: Tensor) -> Tensor | None:
    """V after the last token of truncated episodes, 0 for episodes that ended: (B,), (B,) bool -> (B,)."""
    return None if final_values is None else torch.where(truncated, final_values, 0.0)


def trunk_copy(model: nn.Module, hidden_size: int) -> nn.Module:
    """A copy of a causal LM without its LM head; frozen parameters are shared with it.

    Raises:
        ValueError: if the model names no LM head.
    """
    head = output_head(model)
    if head is None:
        raise ValueError(f"{type(model).__name__} names no LM head, so its trunk cannot carry a critic")
    reference = next(model.parameters())
    # The trunk's forward passes through this stand-in for the LM head, whose input is what is read.
    stub = nn.Linear(hidden_size, 1, bias=False).to(reference).requires_grad_(False)
    replaced: dict[int, Any] = {id(head): stub}
    replaced |= {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, replaced)


class SeparateCritic(nn.Module):
    """V on a separate copy of the policy's backbone; frozen parameters are shared with the policy.

    Args:
        model: the policy's causal LM; its LM head is not copied.
        hidden_size: d, width of the LM head's input.
        kind: shape of the value head.

    Raises:
        ValueError: if the model names no LM head.
    """

    _GROUP_TOKENS = 256
    """Padded tokens that are cheaper than one more forward pass."""

    def __init__(self, model: nn.Module, hidden_size: int, *, kind: HeadKind = "linear") -> None:
        super().__init__()
        self.trunk = trunk_copy(model, hidden_size)
        device = next(model.parameters()).device
        self.value_head = ValueHead(hidden_size, kind=kind).to(device, head_dtype(model))

    def forward(self, episodes: EpisodeBatch, *, packing: bool = False) -> StateValues:
        """Values of B episodes, with gradient; ``packing``: several episodes in one row."""
        split = split_model(self.trunk)
        episodes = episodes.to(next(self.parameters()).device)
        parts, order = [], []
        length = episodes.input_ids.shape[1]
        last = torch.arange(length, device=episodes.device) == episodes.lengths.unsqueeze(-1) - 1
        read = nn.functional.pad(episodes.action_mask[:, 1:], (0, 1)) | last
        if packing:
            row, column = read.nonzero(as_tuple=True)
            hidden, layout = packed_states(
                split, episodes.input_ids, episodes.attention_mask, read=(row, column)
            )
            after = self.value_head(hidden[layout.place(row, column)])
            states = after.new_zeros(len(episodes), length + 1).index_put((row, column + 1), after)
            return self._state_values(states, episodes)
        for index, width in length_groups(episodes.lengths, self._GROUP_TOKENS):
            ids = episodes.input_ids[index, :width]
            row, column = read[index].nonzero(as_tuple=True)
            # Causal attention never looks at the padding on the right, so no mask has to hide it.
            hidden = split.backbone(ids, torch.ones_like(ids), read=row * width + column)
            after = self.value_head(hidden[row, column])
            states = after.new_zeros(len(index), length + 1).index_put((row, column + 1), after)
            parts.append(states)
            order.append(index)
        return self._state_values(torch.cat(parts)[torch.cat(order).argsort()], episodes)

    @staticmethod
    def _state_values(states: Tensor, episodes: EpisodeBatch) -> StateValues:
        """From (B, L + 1), column p V before token p and column L V after a token in the last column."""
        final = states.gather(1, episodes.lengths.unsqueeze(-1)).squeeze(-1)
        return StateValues(torch.where(episodes.action_mask, states[:, :-1], 0.0), final)
