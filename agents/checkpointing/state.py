"""The state of an agent that an exact resume needs, without the files of its policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from textenv.agents.settings.base import AgentConfig


@dataclass(kw_only=True)
class TrainingState:
    """All that an exact resume needs beside the policy's own files and the global random states.

    ``Agent.training_state`` makes it, ``Agent.load_training_state`` takes it, and
    ``textenv.agents.checkpointing.checkpoint`` writes and reads it. An agent with additional state adds to
    ``values`` and ``tensors``.
    """

    agent: str
    """Name that the agent is registered under."""
    config: dict[str, Any]
    """Settings of the agent, as JSON values."""
    counters: dict[str, int]
    """Counters: ``iteration``, ``optimizer_steps``, ..."""
    optimizer: dict[str, Any]
    """The optimizer's ``state_dict``; of 16-bit weights with their float32 copies, ``"master"``."""
    schedule: dict[str, Any]
    """State of the learning-rate schedule."""
    scaler: dict[str, Any] | None = None
    """State of the loss scaler; None in the oldest checkpoints."""
    reward_terms: Any = field(default_factory=dict)
    """State of adaptive reward terms."""
    callbacks: Any = field(default_factory=list)
    """States of the callbacks."""
    values: dict[str, Any] = field(default_factory=dict)
    """Further JSON values, by agents that need them."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Further tensors, by agents that need them."""
    stopped: bool = False
    """Whether a callback ended the run."""
    data: dict[str, int] = field(default_factory=dict)
    """Size of the agent's data, to detect a resume with other data."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """The properties that a resumed run must share with the run that it continues."""

    agent: str
    """Name that the agent is registered under."""
    online: bool
    """Whether the agent generates its episodes."""
    config: AgentConfig
    """Its settings."""
    data: dict[str, int]
    """Size of its data: name -> number."""
