"""Aggregations of per-token losses to a scalar, and their registry.

An aggregation is ``fn(values, mask, totals) -> scalar``. ``totals`` holds the denominators of the whole
optimizer step, so the results of its micro-batches add up. Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from textenv.agents.data.batch import Totals
from textenv.agents.losses.masked import masked_sum, zero_unmasked
from textenv.utils.names import nearest, registrar


class AggregationFunction(Protocol):
    """Signature of an aggregation."""

    def __call__(self, values: Tensor, mask: Tensor, totals: Totals) -> Tensor:
        """A scalar from (B, L) losses, the (B, L) bool mask, and the denominators of the optimizer step."""


AGGREGATIONS: dict[str, AggregationFunction] = {}
"""Name -> fn(values (B, L), mask (B, L) bool, totals) -> scalar."""


def register_aggregation(name: str) -> Callable[[AggregationFunction], AggregationFunction]:
    """Decorator: register an aggregation under ``name``.

    Raises:
        ValueError: if the name is malformed or taken.

    Example:
        >>> import torch
        >>> @register_aggregation("square-root-of-length")
        ... def by_root(values, mask, totals):
        ...     lengths = mask.sum(-1).clamp_min(1)
        ...     return (zero_unmasked(values, mask).sum(-1) / lengths.sqrt()).sum() / totals.episodes
        >>> values, mask = torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool)
        >>> float(aggregate(values, mask, "square-root-of-length"))
        2.0
        >>> del AGGREGATIONS["square-root-of-length"]
    """
    return registrar("aggregation", name, AGGREGATIONS)


def get_aggregation(name: str) -> AggregationFunction:
    """The aggregation registered under ``name``.

    Raises:
        ValueError: if there is none; the error lists the registered names, the most similar first.
    """
    if name not in AGGREGATIONS:
        raise ValueError(f"unknown aggregation {name!r}; {nearest(name, AGGREGATIONS)}")
    return AGGREGATIONS[name]


def aggregate(values: Tensor, mask: Tensor, how: str = "token-mean", totals: Totals | None = None) -> Tensor:
    """Reduce per-token losses to a scalar by the aggregation named ``how``: (B, L) -> scalar.

    Args:
        values: (B, L) per-token losses.
        mask: (B, L) bool, action tokens.
        how: name of the aggregation.
        totals: denominators of the whole optimizer step; None = computed from ``mask``.

    Raises:
        ValueError: if the name is unknown, or ``totals`` lacks a number that the aggregation needs.
    """
    if totals is None:
        totals = Totals(tokens=max(1.0, float(mask.sum())), episodes=max(1.0, float(mask.any(-1).sum())))
    return get_aggregation(how)(values, mask, totals)


@register_aggregation("dapo")
@register_aggregation("token-mean")
def token_mean(values: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """Mean over the action tokens of the optimizer step (DAPO, Yu et al. 2025, section 3.3)."""
    return masked_sum(values, mask) / totals.tokens


@register_aggregation("grpo")
@register_aggregation("sequence-mean")
def sequence_mean(values: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """Mean over episodes of the mean over action tokens (GRPO, Shao et al. 2024, eq. 3)."""
    lengths = mask.sum(-1).clamp_min(1)
    return (zero_unmasked(values, mask).sum(-1) / lengths).sum() / totals.episodes


@register_aggregation("dr_grpo")
@register_aggregation("constant")
def constant(values: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """Sum over action tokens / (episodes x ``max_new_tokens``) (Dr. GRPO, Liu et al. 2025).

    Raises:
        ValueError: if ``totals.longest`` (``max_new_tokens``) is None.
    """
    if totals.longest is None:
        raise ValueError(
            "aggregation 'constant' needs totals.longest, the most tokens of a response; got None"
        )
    return masked_sum(values, mask) / (totals.episodes * totals.longest)
