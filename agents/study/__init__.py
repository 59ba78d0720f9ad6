"""Comparison studies: agents on the same tasks, seeds and prompts, with statistics for few runs.

``StudyConfig`` says what is compared, ``run_study`` runs what is missing, and ``write_outputs`` draws the
conclusions; ``textenv compare STUDY.yaml`` does all three.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textenv.agents.study.config import AgentSetup, Budget, StudyConfig, TaskSetup
    from textenv.agents.study.outputs import write_outputs
    from textenv.agents.study.runner import run_study

_HOME = {
    "AgentSetup": "config",
    "Budget": "config",
    "StudyConfig": "config",
    "TaskSetup": "config",
    "run_study": "runner",
    "write_outputs": "outputs",
}
"""Public name -> the module of this package that it lives in."""

__all__ = ["AgentSetup", "Budget", "StudyConfig", "TaskSetup", "run_study", "write_outputs"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'textenv.agents.study' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    return getattr(import_module(f"textenv.agents.study.{_HOME[name]}"), name)
