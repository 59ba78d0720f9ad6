"""Evaluations over decode settings: one policy, the same prompts and noise, every combination of settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from textenv.agents.evaluation.evaluator import Evaluation, evaluate
from textenv.generation.sampling import filter_top_k_top_p
from textenv.utils.names import nearest
from textenv.utils.terminal import number

SETTINGS = ("temperature", "top_k", "top_p", "greedy", "beta")
"""Settings that can be swept; ``beta`` is the weight of the advantage in decoding (ILQL, Monte Carlo)."""


@dataclass(kw_only=True)
class Sweep:
    """Result of a sweep."""

    settings: list[dict[str, Any]]
    """Settings of each evaluation."""
    evaluations: list[Evaluation]
    """The evaluations, in the same order."""

    def rows(self) -> list[dict[str, Any]]:
        """Settings and metrics of each evaluation, as JSON values, except for non-finite numbers."""
        pairs = zip(self.settings, self.evaluations, strict=True)
        return [{**settings, **found.metrics} for settings, found in pairs]

    def table(self, metrics: Sequence[str] | None = None) -> Table:
        """One row per evaluation: ``rich.print(sweep.table())``.

        Args:
            metrics: columns; None = return, KL, length, and what was asked for by name.
        """
        names = list(self.evaluations[0].metrics)
        usual = ("return/mean", "objective/kl", "episode/length", "text/distinct_2")
        chosen = [n for n in names if n in usual or n.startswith("metric/")] if metrics is None else metrics
        table = Table(title=f"{len(self.evaluations[0].episodes)} episodes each")
        for name in (*self.settings[0], *chosen):
            table.add_column(name.removeprefix("metric/"), justify="right")
        for row in self.rows():
            settings = [str(row[name]) for name in self.settings[0]]
            table.add_row(*settings, *(number(row[name]) for name in chosen))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Settings and evaluations as JSON values."""
        pairs = zip(self.settings, self.evaluations, strict=True)
        return {"evaluations": [{"settings": settings, **found.to_dict()} for settings, found in pairs]}


def evaluate_sweep(
    policy: Any, envs: Any, episodes: int, grid: Mapping[str, Sequence[Any]], **options: Any
) -> Sweep:
    """Evaluate under every combination of decode settings; the policy's own are restored afterwards.

    A KL is that between policy and reference both at the swept temperature; perplexities are at 1.

    Args:
        policy: a ``LanguagePolicy``.
        envs: see ``evaluate``.
        episodes: number per evaluation; all evaluations use the same episode ids.
        grid: setting (see ``SETTINGS``) -> values to try.
        options: further arguments of ``evaluate``, such as ``metrics``.

    Raises:
        ValueError: if a setting is unknown, has no values or one out of its range, or is none of this
            policy's.
    """
    _check(policy, grid)
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    found = []
    for settings in combinations:
        with _decoding(policy, settings):
            found.append(evaluate(policy, envs, episodes, **options))
    return Sweep(settings=combinations, evaluations=found)


def _check(policy: Any, grid: Mapping[str, Sequence[Any]]) -> None:
    if not grid:
        raise ValueError(f"grid must name a setting to sweep, one of {', '.join(SETTINGS)}; got none")
    for name, values in grid.items():
        if name not in SETTINGS:
            raise ValueError(f"unknown decode setting {name!r}; {nearest(name, SETTINGS)}")
        if not hasattr(_holder(policy, name), name):
            raise ValueError(f"{name} is no decode setting of a {type(policy).__name__}")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"{name} must have a list of values, got {values!r}")
        for value in values:
            if name == "temperature" and not value > 0:
                raise ValueError(f"temperature must be > 0, got {value}")
            if name in ("top_k", "top_p"):
                filter_top_k_top_p(torch.zeros(1, 1), **{"top_k": 0, "top_p": 1.0, name: value})


def _holder(policy: Any, name: str) -> Any:
    """The object that has the setting."""
    return policy if name == "beta" else policy.decoding


@contextmanager
def _decoding(policy: Any, settings: Mapping[str, Any]) -> Iterator[None]:
    """Decode under these settings within the block."""
    before = {name: getattr(_holder(policy, name), name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(_holder(policy, name), name, value)
        policy.invalidate()
        yield
    finally:
        for name, value in before.items():
            setattr(_holder(policy, name), name, value)
        policy.invalidate()
