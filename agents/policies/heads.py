"""Heads on the language model's trunk: the value head, and ILQL's Q, target-Q and V heads.

A head reads the hidden state that the LM head reads (after the final norm), casts it to the head's own dtype,
and answers in that dtype, so a bf16 trunk can carry float32 heads. Shape letters: A action tokens, d width, V
vocabulary.
"""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HeadKind = Literal["linear", "mlp"]
LINEAR_SPREAD = 0.01
"""Standard deviation of the output of new linear Q heads for a state of unit variance."""


class Projection(nn.Module):
    """Linear(d, out), or trlX's Linear(d, 2d) - ReLU - Linear(2d, out): (..., d) -> (..., out).

    The last layer starts at zero. Computes in its own dtype.

    Raises:
        ValueError: on an unknown kind.
    """

    def __init__(self, hidden_size: int, out_features: int, *, kind: HeadKind = "linear") -> None:
        super().__init__()
        if kind not in get_args(HeadKind):
            raise ValueError(f"head kind must be one of {list(get_args(HeadKind))}, got {kind!r}")
        wide = kind == "mlp"
        self.first = nn.Linear(hidden_size, 2 * hidden_size) if wide else None
        self.last = nn.Linear(2 * hidden_size if wide else hidden_size, out_features)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def inner(self, hidden: Tensor) -> Tensor:
        """Input of the last layer: (..., d) -> (..., d) or (..., 2d)."""
        hidden = hidden.to(self.last.weight.dtype)
        return hidden if self.first is None else torch.relu(self.first(hidden))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (..., out) in the head's dtype."""
        return self.last(self.inner(hidden))

    def at(self, hidden: Tensor, index: Tensor) -> Tensor:
        """One output per row: (A, d), (A,) int64 -> (A,). Only the chosen rows of the last layer are read."""
        return (self.inner(hidden) * self.last.weight[index]).sum(-1) + self.last.bias[index]


class ValueHead(nn.Module):
    """V(s): (..., d) -> (...,). The last layer starts at zero: V = 0 before training.

    Example:
        >>> ValueHead(8)(torch.randn(2, 3, 8)).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, hidden_size: int, *, kind: HeadKind = "linear") -> None:
        super().__init__()
        self.hidden_size, self.kind = hidden_size, kind
        self.projection = Projection(hidden_size, 1, kind=kind)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (...,) in the head's dtype, also under autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.projection(hidden).squeeze(-1)

    @property
    def is_zero(self) -> bool:
        """Whether the head is untrained: V = 0 everywhere."""
        last = self.projection.last
        return not bool(last.weight.any()) and not bool(last.bias.any())

    def config(self) -> dict[str, int | str]:
        """Constructor arguments as JSON values."""
        return {"hidden_size": self.hidden_size, "kind": self.kind}


def head_dtype(model: nn.Module) -> torch.dtype:
    """Dtype of a head on this model: float32, or float64 for a float64 model."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)


def checked_head(head: nn.Module, hidden_size: int) -> nn.Module:
    """The head itself, if it returns one number per state.

    Raises:
        ValueError: if it does not map (..., d) to (...,).
    """
    with torch.no_grad():
        shape = tuple(head(torch.zeros(2, 3, hidden_size, device=next(head.parameters()).device)).shape)
    if shape != (2, 3):
        raise ValueError(f"value_head must map (2, 3, {hidden_size}) to (2, 3), got {shape}")
    return head


class QAtActions(NamedTuple):
    """What ILQL's losses need of the heads at A action tokens."""

    q: tuple[Tensor, ...]
    """Per Q head (A,): Q_i(s, a)."""
    q_log_probs: tuple[Tensor, ...]
    """Per Q head (A,): Q_i(s, a) - logsumexp over v of Q_i(s, v)."""
    target_q: Tensor
    """(A,): minimum of the target heads' Q(s, a), no gradient."""
    state_values: Tensor
    """(A,): V(s)."""


class ILQLHeads(nn.Module):
    """Twin (or n) Q heads, their Polyak-averaged target copies, and V (Snell et al. 2022, section 4).

    At GPT-2 size one "mlp" Q head costs 78 million parameters, a "linear" one 39 million.

    Several Q heads help only if they differ, and heads that start equal get equal gradients. "mlp" heads
    differ in their first layers; their last layers start at 0. "linear" heads have small random weights.
    All targets and V start at 0, so at first decoding is that of the language model.

    Args:
        hidden_size: d.
        vocab_size: V, the task's vocabulary.
        num_q: Q heads, 2 for twin Q.
        kind: "linear" (light) or "mlp" (trlX's), for Q and V.

    Raises:
        ValueError: if ``num_q`` is below 1 or the kind is unknown.
    """

    def __init__(
        self, hidden_size: int, vocab_size: int, *, num_q: int = 2, kind: HeadKind = "linear"
    ) -> None:
        super().__init__()
        if num_q < 1:
            raise ValueError(f"num_q must be >= 1, got {num_q}")
        self.hidden_size, self.vocab_size, self.num_q, self.kind = hidden_size, vocab_size, num_q, kind
        self.q_heads = nn.ModuleList(Projection(hidden_size, vocab_size, kind=kind) for _ in range(num_q))
        self.target_q_heads = copy.deepcopy(self.q_heads).requires_grad_(False)
        self.v_head = ValueHead(hidden_size, kind=kind)
        if kind == "linear" and num_q > 1:
            for head in self.q_heads:
                nn.init.normal_(cast(Projection, head).last.weight, std=LINEAR_SPREAD / hidden_size**0.5)

    def forward(self, hidden: Tensor, actions: Tensor, *, max_bytes: int = 1 << 28) -> QAtActions:
        """Outputs for the losses at A action tokens; a head's (A, V) values are computed in chunks.

        Args:
            hidden: (A, d) states that emit the actions.
            actions: (A,) int64.
            max_bytes: largest (chunk, V) tensor in bytes. If one chunk does not hold all, the chunks are
                recomputed in the backward pass, so that their activations are not kept.
        """
        rows = max(1, max_bytes // (self.vocab_size * 4))
        picked = [self._at(head, hidden, actions, rows) for head in self.q_heads]
        with torch.no_grad():
            targets = [cast(Projection, head).at(hidden, actions) for head in self.target_q_heads]
        return QAtActions(
            q=tuple(q for q, _ in picked),
            q_log_probs=tuple(log_prob for _, log_prob in picked),
            target_q=torch.stack(targets).amin(0),
            state_values=self.v_head(hidden),
        )

    def advantage(self, hidden: Tensor) -> Tensor:
        """What decoding adds to the logits: min over target heads of Q(s, .) - V(s), (..., d) -> (..., V)."""
        with torch.no_grad():
            least = self.target_q_heads[0](hidden)
            for head in list(self.target_q_heads)[1:]:
                least = torch.minimum(least, head(hidden))
            return least - self.v_head(hidden).unsqueeze(-1)

    @torch.no_grad()
    def sync(self, alpha: float) -> None:
        """Move the targets: target <- alpha Q + (1 - alpha) target. Call it after optimizer steps; 1 copies.

        Raises:
            ValueError: if ``alpha`` does not lie in [0, 1], or the targets are in 16 bits, where rounding
                would undo the small updates.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
        dtype = next(self.target_q_heads.parameters()).dtype
        if dtype in (torch.bfloat16, torch.float16):
            kind = str(dtype).removeprefix("torch.")
            raise ValueError(f"target Q heads must be in float32, got {kind}; heads are made so on any model")
        torch._foreach_lerp_(list(self.target_q_heads.parameters()), list(self.q_heads.parameters()), alpha)

    def config(self) -> dict[str, int | str]:
        """Constructor arguments as JSON values."""
        return {
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "num_q": self.num_q,
            "kind": self.kind,
        }

    @staticmethod
    def _at(head: nn.Module, hidden: Tensor, actions: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        def pick(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            q_all = head(states)
            q = q_all.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            return q, q - q_all.logsumexp(-1)

        if len(hidden) <= rows:
            return pick(hidden, actions)
        parts = [
            checkpoint(pick, states, tokens, use_reentrant=False)
            for states, tokens in zip(hidden.split(rows), actions.split(rows), strict=True)
        ]
        return torch.cat([q for q, _ in parts]), torch.cat([log_prob for _, log_prob in parts])
