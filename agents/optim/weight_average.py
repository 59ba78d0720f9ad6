"""What an agent keeps running beside its weights: the spread of scores, and the average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from textenv.agents.optim.master_weights import HALF, wider
from textenv.agents.policies.language_policy import LanguagePolicy


class RunningStd:
    """Standard deviation of everything seen so far (Chan et al. 1983, parallel variance).

    Example:
        >>> spread = RunningStd()
        >>> spread.std
        1.0
        >>> spread.update(torch.tensor([1.0, 2.0]))
        >>> spread.update(torch.tensor([3.0]))
        >>> spread.std
        1.0
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def update(self, values: Tensor) -> None:
        """Take in (B,) values."""
        values = values.double()
        count, mean = len(values), float(values.mean())
        squares = float((values - mean).square().sum())
        delta, total = mean - self.mean, self.count + count
        self.squares += squares + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The sample standard deviation; 1 before there is any spread."""
        spread = (self.squares / max(1, self.count - 1)) ** 0.5
        return spread if spread > 0 else 1.0

    def state_dict(self) -> dict[str, float]:
        """JSON values."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore ``state_dict``."""
        self.count, self.mean, self.squares = int(state["count"]), state["mean"], state["squares"]


class WeightAverage:
    """Exponential average of a policy's trainable parameters, moved after each optimizer step.

    Of 16-bit weights it is kept in float32, in which it moves by less than the weights can.

    Args:
        policy: whose parameters.
        decay: the average keeps this share of itself in each update.
    """

    def __init__(self, policy: LanguagePolicy, decay: float) -> None:
        self.policy = policy
        self._names, self._own = [], []
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                self._names.append(name)
                self._own.append(parameter)
        self._average = self._copies()
        self._move: Any = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self._move(self._average, [wider(parameter) for parameter in self._own], 0)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the policy has the averaged weights, afterwards its own again."""
        kept = [parameter.detach().clone() for parameter in self._own]
        self._put(self._average)
        try:
            yield
        finally:
            self._put(kept)

    def state_tensors(self) -> dict[str, Tensor]:
        """For a checkpoint whose policy files hold the average.

        Returns:
            The weights in training, by name, and the float32 averages of 16-bit weights, which those files
            hold rounded.
        """
        tensors = {f"training/{name}": own.detach() for name, own in zip(self._names, self._own, strict=True)}
        for name, own, average in zip(self._names, self._own, self._average, strict=True):
            if own.dtype in HALF:
                tensors[f"average/{name}"] = average
        return tensors

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint: the policy as loaded is the average, ``tensors`` are its own weights."""
        self._average = self._copies()
        for name, average in zip(self._names, self._average, strict=True):
            if f"average/{name}" in tensors:
                average.copy_(tensors[f"average/{name}"])
        self._put([tensors[f"training/{name}"] for name in self._names])

    def _copies(self) -> list[Tensor]:
        return [wider(parameter).clone() for parameter in self._own]

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._own, values, strict=True):
            parameter.copy_(value)
        self.policy.invalidate()
