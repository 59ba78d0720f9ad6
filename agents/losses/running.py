"""Running statistics of returns."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class RunningStd:
    """Standard deviation of all values seen so far (parallel variance, Chan et al. 1983).

    Example:
        >>> import torch
        >>> running = RunningStd()
        >>> running.std
        1.0
        >>> running.update(torch.tensor([1.0, 2.0]))
        >>> running.update(torch.tensor([3.0]))
        >>> running.std
        1.0
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def update(self, values: Tensor) -> None:
        """Add (B,) values."""
        values = values.double()
        count, mean = len(values), float(values.mean())
        squares = float((values - mean).square().sum())
        delta, total = mean - self.mean, self.count + count
        self.squares += squares + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The sample standard deviation; 1 while all values are equal."""
        std = (self.squares / max(1, self.count - 1)) ** 0.5
        return std if std > 0 else 1.0

    def state_dict(self) -> dict[str, float]:
        """JSON values."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore ``state_dict``."""
        self.count, self.mean, self.squares = int(state["count"]), state["mean"], state["squares"]
