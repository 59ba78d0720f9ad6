"""What a training hands back, and the clock of its iterations."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from textenv.modeling.saved_runs import model_folder

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent
    from textenv.agents.evaluation.evaluator import Evaluation


@dataclass
class TrainResult:
    """What ``learn`` returns."""

    agent: Agent
    """The trained agent."""
    history: list[dict[str, float]]
    """The logged metrics, one row an iteration (online) or logged optimizer step (offline)."""
    evaluation: Evaluation | None
    """The last evaluation; ``textenv.train`` always makes one, ``agent.learn`` if there are ``eval_envs``."""
    episodes: int
    """Episodes generated (online) or visited (offline)."""
    optimizer_steps: int
    """Optimizer steps made."""
    seconds: float
    """Wall time of this call."""
    run_dir: Path | None = None
    """Where metrics and checkpoints are, if a folder was given."""
    evaluated_on: str | None = None
    """What ``evaluation`` was made on, in words; None after ``agent.learn``, where ``eval_envs`` say it."""

    @property
    def model_dir(self) -> Path | None:
        """Folder of the model: the best by held-out evaluations if they were made, else the last.

        It loads with plain transformers, and everything here takes it (or ``run_dir``) as a model. None
        without ``run_dir``: then nothing was written, and ``agent.save(folder)`` writes it.
        """
        return None if self.run_dir is None else model_folder(self.run_dir)


class Clock:
    """Seconds of the parts of an iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a part."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now

    def metrics(self, played: int, trained: int) -> dict[str, float]:
        """Times, and tokens a second: the responses of the rollout, whole episodes of the update."""
        row = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        row["throughput/rollout_tokens_s"] = played / max(self.seconds["rollout"], 1e-9)
        row["throughput/train_tokens_s"] = trained / max(self.seconds["update"], 1e-9)
        return row


def kl_row(total: float, *, episodes: int, tokens: int) -> dict[str, float]:
    """KL from the reference in nats, by episode and by token, of its sum over all response tokens.

    >>> kl_row(6.0, episodes=2, tokens=12)
    {'objective/kl': 3.0, 'objective/kl_per_token': 0.5}
    """
    return {"objective/kl": total / episodes, "objective/kl_per_token": total / max(1, tokens)}


def mean_row(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over optimizer steps.

    >>> mean_row([{"loss": 1.0}, {"loss": 2.0}])
    {'loss': 1.5}
    """
    rows = list(rows)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
