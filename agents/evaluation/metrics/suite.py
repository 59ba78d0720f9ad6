"""The text metrics that an evaluation can be asked for by name: ``agent.evaluate(metrics=["rouge"])``.

Overlap with reference texts, diversity, length and perplexity, as in RL4LMs (Ramamurthy et al. 2023).
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from textenv.agents.evaluation.metrics import diversity, reference  # noqa: F401 - they register their metrics
from textenv.agents.evaluation.metrics.registry import METRICS, Generated
from textenv.utils.names import nearest

MetricSpec = str | Sequence[Any]
"""A name, or [name, {option: value}]."""


def check_metrics(metrics: Sequence[MetricSpec]) -> list[tuple[str, dict[str, Any]]]:
    """Names and options of metrics, checked before anything is generated.

    Raises:
        TypeError: if a spec is neither a name nor [name, {option: value}].
        ValueError: if a name or option is unknown; the error names the nearest.
    """
    if isinstance(metrics, str):
        raise TypeError(f"metrics must be a list of names, got the string {metrics!r}")
    checked = []
    for spec in metrics:
        written = spec if isinstance(spec, list | tuple) and len(spec) in (1, 2) else (spec,)
        name, options = (*written, {})[:2]
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise TypeError(f"a metric must be a name or [name, {{option: value}}], got {spec!r}")
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; {nearest(name, METRICS)}")
        known = list(inspect.signature(METRICS[name]).parameters)[1:]
        for option in options:
            if option not in known:
                raise ValueError(f"metric {name!r} has no option {option!r}; {nearest(option, known)}")
        checked.append((name, dict(options)))
    return checked


def measure(
    metrics: Sequence[MetricSpec], generated: Generated
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Compute metrics.

    Returns:
        Name -> number (means of those with one value per episode), and name -> B values of the latter.

    Raises:
        ValueError: see ``check_metrics``; or if a metric lacks what it is measured against.
    """
    numbers: dict[str, float] = {}
    by_episode: dict[str, list[float]] = {}
    for name, options in check_metrics(metrics):
        try:
            found = METRICS[name](generated, **options)
        except Exception as error:
            error.add_note(f"in the metric {name!r}")
            raise
        for key, value in found.items():
            if isinstance(value, list):
                by_episode[key] = value
                value = statistics.fmean(value)
            numbers[key] = value
    return numbers, by_episode
