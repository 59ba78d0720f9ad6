"""Exponentials of log-ratios that cannot overflow, for losses, KL estimates and importance weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Nats up to which a log-ratio is exponentiated as it is (verl clamps its log-ratios there, too)."""
_SLOPE = math.exp(MAX_LOG_RATIO)


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """exp(x), continued above ``MAX_LOG_RATIO`` by its tangent at that point: any shape -> the same shape.

    float32 and bfloat16 overflow at x = 88.7, and then infinity times 0 makes gradients NaN. The tangent is
    finite and increasing with slope exp(20), so the gradient keeps its sign. Up to the bound, values and
    gradients are those of ``torch.exp`` bit for bit.

    Example:
        >>> x = torch.tensor([1.0, 21.0, 1e4]).requires_grad_()
        >>> values = bounded_exp(x)
        >>> (values / math.exp(20)).tolist()[1:]
        [2.0, 9981.0]
        >>> values.sum().backward()
        >>> (x.grad / math.exp(20)).tolist()[1:]
        [1.0, 1.0]
    """
    inner = log_ratio.clamp_max(MAX_LOG_RATIO).exp()
    return torch.where(log_ratio > MAX_LOG_RATIO, _SLOPE * (1.0 - MAX_LOG_RATIO + log_ratio), inner)


def bounded_expm1(log_ratio: Tensor) -> Tensor:
    """exp(x) - 1, accurate near 0; above ``MAX_LOG_RATIO`` its tangent there, see ``bounded_exp``."""
    inner = torch.expm1(log_ratio.clamp_max(MAX_LOG_RATIO))
    return torch.where(log_ratio > MAX_LOG_RATIO, _SLOPE * (1.0 - MAX_LOG_RATIO + log_ratio) - 1.0, inner)
