"""A warning where the first episodes that an agent generates all return the same: nothing can be learned."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from textenv.agents.distributed import process_group
from textenv.agents.evaluation.task_scores import task_scores

if TYPE_CHECKING:
    from textenv.episodes.batch import EpisodeBatch

ITERATIONS = 3
"""How many of a run's first iterations are looked at, or all of a shorter run."""


class EqualReturns:
    """Looks at the returns of a run's first iterations, without what a KL penalty paid."""

    def __init__(self) -> None:
        self.value: float | None = None
        self.episodes = 0
        self.differ = False

    def see(self, episodes: EpisodeBatch, envs: Any, iteration: int, planned: int) -> None:
        """Take in the scored episodes of an iteration, counted from 1.

        Warns:
            UserWarning: once, when all episodes of the first iterations have returned the same.
        """
        last = min(ITERATIONS, planned)
        if self.differ or iteration > last:
            return
        if iteration > 1 and self.value is None:  # a resumed run: the first were seen when they were made
            self.differ = True
            return
        scores = task_scores(episodes, envs)
        first = float(scores[0]) if self.value is None else self.value
        self.value, self.episodes = first, self.episodes + len(episodes)
        self.differ = bool((scores != first).any())
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
