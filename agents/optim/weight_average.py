"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from textenv.agents.optim.master_weights import HALF, wider
from textenv.agents.policies.language_policy import LanguagePolicy


class WeightAverage:
    """Exponential moving average of the trainable parameters of a policy, updated after each optimizer step.

    The average of 16-bit weights is kept in float32, because its updates are smaller than a 16-bit step.

    Args:
        policy: the policy in training.
        decay: weight of the old average in each update.
    """

    def __init__(self, policy: LanguagePolicy, decay: float) -> None:
        self.policy = policy
        self._names, self._trained = [], []
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                self._names.append(name)
                self._trained.append(parameter)
        self._average = self._copies()
        self._move: Any = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average toward the current weights."""
        self._move(self._average, [wider(parameter) for parameter in self._trained], 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the policy has the averaged weights; its own are restored afterwards."""
        kept = [parameter.detach().clone() for parameter in self._trained]
        self._put(self._average)
        try:
            yield
        finally:
            self._put(kept)

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint whose policy files contain the average.

        Returns:
            The weights in training, and the float32 averages of 16-bit weights, because the policy files
            contain them rounded.
        """
        tensors = {
            f"training/{name}": tensor.detach()
            for name, tensor in zip(self._names, self._trained, strict=True)
        }
        for name, tensor, average in zip(self._names, self._trained, self._average, strict=True):
            if tensor.dtype in HALF:
                tensors[f"average/{name}"] = average
        return tensors

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore: the loaded policy is the average, ``tensors`` hold the weights in training."""
        self._average = self._copies()
        for name, average in zip(self._names, self._average, strict=True):
            if f"average/{name}" in tensors:
                average.copy_(tensors[f"average/{name}"])
        self._put([tensors[f"training/{name}"] for name in self._names])

    def _copies(self) -> list[Tensor]:
        return [wider(parameter).clone() for parameter in self._trained]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._trained, values, strict=True):
            parameter.copy_(value)
        self.policy.invalidate()
