"""A warning if all episodes of the first iterations have the same return: nothing can be learned."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from textenv.agents.distributed import process_group
from textenv.agents.evaluation.task_returns import task_returns

if TYPE_CHECKING:
    from textenv.episodes.batch import EpisodeBatch

ITERATIONS = 3
"""Number of first iterations that are checked; all iterations of a shorter run."""


class EqualReturns:
    """Checks the task returns (returns without KL penalties) of the first iterations of a run."""

    def __init__(self) -> None:
        self.value: float | None = None
        self.episodes = 0
        self.differ = False

    def check(self, episodes: EpisodeBatch, envs: Any, iteration: int, planned: int) -> None:
        """Check the scored episodes of an iteration, counted from 1.

        Warns:
            UserWarning: once, if all episodes of the first iterations have the same return.
        """
        last = min(ITERATIONS, planned)
        if self.differ or iteration > last:
            return
        if iteration > 1 and self.value is None:  # a resumed run: the first iterations were checked before
            self.differ = True
            return
        returns = task_returns(episodes, envs)
        first = float(returns[0]) if self.value is None else self.value
        self.value, self.episodes = first, self.episodes + len(episodes)
        self.differ = bool((returns != first).any())
        if self.differ or iteration < last or not process_group.is_main():
            return
        warnings.warn(
            f"all {self.episodes} episodes of the first {iteration} iterations returned {first:g}, so there "
            "is nothing to learn from. Likely causes: the model never writes what the reward pays for "
            "(random weights, another chat template or format), texts are cut before it (max_new_tokens), "
            "the reward is constant or looks at a column that is always empty, or sampling always takes the "
            "same tokens (temperature, top_k, greedy)",
            stacklevel=2,
        )
