"""The result of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from textenv.agents.evaluation.evaluator import Evaluation
from textenv.modeling.saved_runs import model_folder

AgentT = TypeVar("AgentT")


@dataclass
class TrainResult(Generic[AgentT]):
    """What ``learn`` returns."""

    agent: AgentT
    """The trained agent."""
    history: list[dict[str, float]]
    """The logged metrics, one row per iteration (online) or logged optimizer step (offline)."""
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
    """Description of the evaluation data; None after ``agent.learn``, which evaluates on ``eval_envs``."""

    @property
    def model_dir(self) -> Path | None:
        """Folder of the model: the best by held-out evaluations if they were made, else the last.

        It loads with plain transformers, and everything here takes it (or ``run_dir``) as a model. None
        without ``run_dir``: then nothing was written, and ``agent.save(folder)`` writes it.
        """
        return None if self.run_dir is None else model_folder(self.run_dir)
