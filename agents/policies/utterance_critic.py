"""Critics of whole turns (utterances): twin Q and twin V on a transformer of their own.

One causal pass over an episode values all its turns. V(s_k) is read from the state before the first token of
turn k, Q(s_k, a_k) from the state after its last token. Shape letters: B episodes, L tokens, A read
positions, d width.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from textenv.agents.losses.turns import at_turns, turn_sums
from textenv.agents.policies.critics import trunk_copy
from textenv.agents.policies.heads import LINEAR_SPREAD, HeadKind, ValueHead, head_dtype
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.turns import turn_ends, turn_starts
from textenv.modeling.log_probs import length_groups
from textenv.modeling.split_model import split_model

TWINS = 2
"""Number of Q heads and of V heads."""


class TurnValues(NamedTuple):
    """Values of the turns of B episodes, at all action tokens of the turn, 0 elsewhere."""

    q: tuple[Tensor, ...]
    """Per Q head (B, L): Q_i(s_k, a_k)."""
    v: tuple[Tensor, ...]
    """Per V head (B, L): V_i(s_k)."""

    @property
    def advantages(self) -> Tensor:
        """(B, L): min_i Q_i - min_i V_i."""
        return torch.stack(self.q).amin(0) - torch.stack(self.v).amin(0)


class UtteranceCritic(nn.Module):
    """Twin Q and V of turns, on a copy of the policy's backbone.

    Args:
        model: the policy's causal LM; its LM head is not copied, its frozen parameters are shared.
        hidden_size: d, width of the LM head's input.
        kind: shape of the heads. Twins must differ: "mlp" heads do by their first layers, "linear" ones by
            small random weights.

    Raises:
        ValueError: if the model names no LM head.
    """

    _GROUP_TOKENS = 256
    """Padded tokens that are cheaper than one more forward pass."""

    def __init__(self, model: nn.Module, hidden_size: int, *, kind: HeadKind = "mlp") -> None:
        super().__init__()
        self.kind = kind
        self.trunk = trunk_copy(model, hidden_size)
        device, dtype = next(model.parameters()).device, head_dtype(model)
        self.q_heads, self.v_heads = (
            nn.ModuleList(ValueHead(hidden_size, kind=kind) for _ in range(TWINS)).to(device, dtype)
            for _ in range(2)
        )
        if kind == "linear":
            for head in (*self.q_heads, *self.v_heads):
                nn.init.normal_(
                    cast(ValueHead, head).projection.last.weight, std=LINEAR_SPREAD / hidden_size**0.5
                )

    def frozen_copy(self) -> UtteranceCritic:
        """A copy without gradient, as target network; parameters that are frozen here are shared."""
        shared = {id(p): p for p in self.parameters() if not p.requires_grad}
        return copy.deepcopy(self, shared).requires_grad_(False)

    @torch.no_grad()
    def follow(self, critic: UtteranceCritic, alpha: float) -> None:
        """Polyak averaging: move this target network, target <- alpha critic + (1 - alpha) target."""
        pairs = zip(self.parameters(), critic.parameters(), strict=True)
        moving = [(own, other) for own, other in pairs if own is not other]
        torch._foreach_lerp_([own for own, _ in moving], [other for _, other in moving], alpha)

    def forward(self, episodes: EpisodeBatch) -> TurnValues:
        """Values of all turns, with gradient."""
        split = split_model(self.trunk)
        episodes = episodes.to(next(self.parameters()).device)
        mask = episodes.action_mask
        before, after = pad(turn_starts(mask)[:, 1:], (0, 1)), turn_ends(mask)
        read = before | after
        rows, columns, states = [], [], []
        for index, width in length_groups(episodes.lengths, self._GROUP_TOKENS):
            ids = episodes.input_ids[index, :width]
            row, column = read[index].nonzero(as_tuple=True)
            # Causal attention never looks at the padding on the right, so no mask has to hide it.
            hidden = split.backbone(ids, torch.ones_like(ids), read=row * width + column)
            rows.append(index[row])
            columns.append(column)
            states.append(hidden[row, column])
        place, hidden = (torch.cat(rows), torch.cat(columns)), torch.cat(states)

        def at(heads: nn.ModuleList, wanted: Tensor) -> tuple[Tensor, ...]:
            chosen = wanted[place]
            where = (place[0][chosen], place[1][chosen])
            found = []
            for head in heads:
                values = cast(ValueHead, head)(hidden[chosen])
                found.append(values.new_zeros(mask.shape).index_put(where, values))
            return tuple(found)

        # Values of V are in the column before the turn; shifted by one they are at its first token.
        v = [pad(values[:, :-1], (1, 0)) for values in at(self.v_heads, before)]
        q = at(self.q_heads, after)
        return TurnValues(
            tuple(at_turns(turn_sums(values, mask), mask) for values in q),
            tuple(at_turns(turn_sums(values, mask), mask) for values in v),
        )

    @torch.no_grad()
    def evaluate(self, episodes: EpisodeBatch, max_tokens: int) -> TurnValues:
        """Values of all turns without gradient, in passes of at most ``max_tokens`` padded tokens."""
        device = next(self.parameters()).device
        parts = [
            (index.to(device), part, self(part)) for index, part in episodes.token_budget_batches(max_tokens)
        ]

        def whole(kind: int, head: int) -> Tensor:
            first = parts[0][2][kind][head]
            table = first.new_zeros(episodes.input_ids.shape)
            for index, part, found in parts:
                table[index, : part.input_ids.shape[1]] = found[kind][head]
            return table

        q, v = (tuple(whole(kind, head) for head in range(TWINS)) for kind in range(2))
        return TurnValues(q, v)
