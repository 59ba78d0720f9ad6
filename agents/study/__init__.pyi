"""Where the public names live; they load on first use."""

from .config import AgentSetup, Budget, StudyConfig, TaskSetup
from .outputs import write_outputs
from .runner import run_study

__all__ = [
    "AgentSetup",
    "Budget",
    "StudyConfig",
    "TaskSetup",
    "run_study",
    "write_outputs",
]
