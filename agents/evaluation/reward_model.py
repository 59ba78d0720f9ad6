"""Evaluation of reward models: accuracy on pairs, calibration, and rank correlation with ratings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from textenv.agents.evaluation.correlation import pearson, spearman
from textenv.utils.json_files import json_values
from textenv.utils.terminal import text_table

BINS = 10
Z = 1.959963984540054
"""Quantile of the normal distribution for 95 % on both sides together."""


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Predictions of about the same confidence, and how often they were right."""

    low: float
    """Lower edge; the upper edge is that of the next bin, or 1."""
    count: int
    """Pairs in it."""
    confidence: float
    """Mean confidence; NaN if the bin is empty."""
    accuracy: float
    """Fraction of correct pairs (with soft labels: their mean probability); NaN if the bin is empty."""


@dataclass(kw_only=True)
class RewardEvaluation:
    """Results of an evaluation of a reward model."""

    metrics: dict[str, float]
    """Name -> number.

    For pairs ``accuracy`` (a tie of scores counts half; pairs with label 1/2 are left out) with its 95 %
    interval ``accuracy/low`` and ``accuracy/high`` (Wilson 1927, over the pairs as independent),
    ``accuracy/ties``, ``agreement`` (mean probability that a labeller agrees with the model) and
    ``agreement/ceiling`` (if it always sided with the likelier one), ``log_loss`` (nats per pair),
    ``ece``, ``margin/mean`` and ``pairs``. For rated texts ``spearman``, ``pearson``, ``rmse`` and
    ``rated``. For both ``score/mean`` and ``score/std``; with several heads ``score/disagreement`` (their
    mean standard deviation).
    """
    reliability: list[ReliabilityBin] = field(default_factory=list)
    """Calibration by confidence."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Some texts with their scores."""
    seconds: float = 0.0
    """Wall time."""

    def table(self) -> Table:
        """Accuracy by how far the scores of a pair lie apart, for ``rich.print``."""
        rows = [
            [f"{row.low:.2f} and more", row.count, row.confidence, row.accuracy]
            for row in self.reliability
            if row.count
        ]
        columns = ["sigma(|margin|)", "pairs", "mean of it", "accuracy"]
        return text_table(columns, rows, title="accuracy by margin of the scores")

    def sample_table(self) -> tuple[list[str], list[list[Any]]]:
        """The samples as columns and rows, for ``Logger.log_table``."""
        columns = list(self.samples[0]) if self.samples else []
        return columns, [[sample[name] for name in columns] for sample in self.samples]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; numbers that are not finite are None."""
        bins = [json_values(vars(row)) for row in self.reliability]
        metrics = json_values(self.metrics)
        return {"metrics": metrics, "reliability": bins, "samples": self.samples, "seconds": self.seconds}


def pair_metrics(difference: Tensor, label: Tensor | None = None, *, bins: int = BINS) -> dict[str, float]:
    """Accuracy and calibration on pairs, see ``RewardEvaluation.metrics``.

    Args:
        difference: (P,) score of chosen minus score of rejected.
        label: (P,) probability that chosen is really better; None is 1.
        bins: number of bins of the calibration error.
    """
    difference = difference.double()
    label = torch.ones_like(difference) if label is None else label.to(difference)
    right = torch.where(difference == 0, 0.5, (difference > 0).double())
    decided = label != 0.5
    # A label below 1/2 says that "rejected" is the better one.
    hits = torch.where(label > 0.5, right, 1 - right)[decided]
    accuracy = float(hits.mean()) if len(hits) else math.nan
    low, high = wilson_interval(accuracy, len(hits))
    logs = label * torch.nn.functional.logsigmoid(difference)
    logs = logs + (1 - label) * torch.nn.functional.logsigmoid(-difference)
    table = reliability(difference, label, bins=bins)
    filled = [row for row in table if row.count]
    return {
        "accuracy": accuracy,
        "accuracy/low": low,
        "accuracy/high": high,
        "accuracy/ties": float((difference == 0).double().mean()),
        "agreement": float((right * label + (1 - right) * (1 - label)).mean()),
        "agreement/ceiling": float(torch.maximum(label, 1 - label).mean()),
        "log_loss": -float(logs.mean()),
        "ece": sum(row.count * abs(row.confidence - row.accuracy) for row in filled) / len(difference),
        "margin/mean": float(difference.mean()),
        "pairs": float(len(difference)),
    }


def wilson_interval(fraction: float, count: int) -> tuple[float, float]:
    """95 % interval of a proportion in ``count`` independent trials (Wilson 1927); NaN if there are none.

    With proportion p, count n and z = 1.96: (p + z^2/2n +- z sqrt(p(1 - p)/n + z^2/4n^2)) / (1 + z^2/n).

    >>> [round(bound, 4) for bound in wilson_interval(0.8, 10)]
    [0.4902, 0.9433]
    """
    if not count:
        return math.nan, math.nan
    square = Z * Z / count
    middle = fraction + square / 2
    half_width = Z * math.sqrt(fraction * (1 - fraction) / count + square / (4 * count))
    low, high = (middle - half_width) / (1 + square), (middle + half_width) / (1 + square)
    return (0.0 if fraction == 0 else low), (
        1.0 if fraction == 1 else high
    )  # the formula gives exactly this, up to rounding


def reliability(difference: Tensor, label: Tensor | None = None, *, bins: int = BINS) -> list[ReliabilityBin]:
    """Reliability table of P(chosen wins) = sigma(difference) (Guo et al. 2017, section 2).

    The side that the model prefers has confidence sigma(|difference|) in [1/2, 1], cut into equal bins; its
    outcome is the label's probability of that side. The mean gap, weighted by counts, is the expected
    calibration error.

    Args:
        difference: (P,) score of chosen minus score of rejected.
        label: (P,) probability that chosen is really better; None is 1.
        bins: number of bins of equal width.

    Raises:
        ValueError: if ``bins`` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins}")
    difference = difference.double()
    label = torch.ones_like(difference) if label is None else label.to(difference)
    confidence = difference.abs().sigmoid()
    outcome = torch.where(difference > 0, label, 1 - label)
    outcome = torch.where(difference == 0, 0.5, outcome)
    place = ((confidence - 0.5) * 2 * bins).long().clamp(0, bins - 1)
    rows = []
    for i in range(bins):
        inside = place == i
        rows.append(
            ReliabilityBin(
                low=0.5 + 0.5 * i / bins,
                count=int(inside.sum()),
                confidence=float(confidence[inside].mean()),
                accuracy=float(outcome[inside].mean()),
            )
        )
    return rows


def rating_metrics(scores: Tensor, ratings: Tensor) -> dict[str, float]:
    """Correlation of scores with human ratings, see ``RewardEvaluation.metrics``; NaN for constant values.

    Args:
        scores: (R,).
        ratings: (R,).
    """
    x, y = scores.double().numpy(), ratings.double().numpy()
    varies = len(x) > 1 and bool((x != x[0]).any()) and bool((y != y[0]).any())
    return {
        "spearman": spearman(x, y) if varies else math.nan,
        "pearson": pearson(x, y) if varies else math.nan,
        "rmse": float(((x - y) ** 2).mean() ** 0.5),
        "rated": float(len(x)),
    }
