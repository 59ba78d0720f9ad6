"""Settings and start that a task has for an agent, combined with the user's settings.

They are in ``textenv.tasks.task.Task.settings``. The command line, ``textenv.train``, studies and benchmarks
use this module, so a setting has the same value in all of them. The user's values take precedence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from textenv.agents.base.registry import get_config_class, name_of
from textenv.agents.settings.base import AgentConfig, given_settings

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent
    from textenv.tasks.task import Task

NUM_ENVS = 16
"""Default number of texts generated in parallel."""
RIVALS = {
    "iterations": "total_episodes",
    "total_episodes": "iterations",
    "steps": "epochs",
    "epochs": "steps",
}
"""Setting -> the other setting of a run's length. (Online agents have epochs, but no steps.)"""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Settings and start that a task has for an agent."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the agent's settings."""
    start: dict[str, Any] | None = None
    """Fields of ``SFTConfig``: fine-tuning of the task's own model before the agent begins; None is none."""
    num_envs: int = NUM_ENVS
    """Texts generated in parallel."""
    cannot: str | None = None
    """Why the agent can't learn the task, as the end of a sentence; None if it can or if unknown."""
    source: str = ""
    """The task and the agent, for messages."""

    @property
    def known(self) -> bool:
        """Whether the task has anything for the agent."""
        return self != TaskSettings(source=self.source)

    def fill(
        self, agent: str | type[Agent], config: Any = None, changes: Mapping[str, Any] | None = None
    ) -> AgentConfig:
        """Complete the user's settings: the rest from the task, then from the class's defaults.

        Args:
            agent: whose settings.
            config: settings that were given, as an object or by name; None are none. Saved ones are complete.
            changes: further ones, which come before those.

        Raises:
            TypeError: if a value does not have its field's type.
            ValueError: if a name is no setting, a value is out of range, or a setting that was given has no
                effect; a note says which of the settings in the message are the task's.
        """
        cls = get_config_class(agent) if isinstance(agent, str) else agent.config_class
        if isinstance(config, AgentConfig) and config.saved:
            return config.replace(**(changes or {}))
        given = {**given_settings(config), **(changes or {})}
        own = unsaid(self.settings, given)
        with self._noted(own):
            return cls.with_defaults(given, own)

    @contextmanager
    def _noted(self, own: Mapping[str, Any]) -> Iterator[None]:
        """Note on errors within the block which of the settings that they name are the task's.

        Args:
            own: the settings that come from the task.
        """
        try:
            yield
        except (TypeError, ValueError) as error:
            named = [name for name in own if re.search(rf"\b{name}\b", str(error))]
            if named:
                values = ", ".join(f"{name}={own[name]!r}" for name in named)
                error.add_note(f"{values} comes from the task settings of {self.source}; give your own value")
            raise

    def line(self, config: AgentConfig, num_envs: int, start: str | Mapping[str, Any]) -> str:
        """The settings that apply in a run, in one line.

        Args:
            config: the run's settings.
            num_envs: the run's.
            start: settings of the fine-tuning that comes before, or in words what the agent begins with.
        """
        own = unsaid(self.settings, config.given())
        text = ", ".join(f"{name}={value}" for name, value in (own | {"num_envs": num_envs}).items())
        if not isinstance(start, str):
            how = ", ".join(f"{name}={value}" for name, value in start.items())
            start = f"fine-tuning on the task's demonstrations ({how})"
        return f"task settings of {self.source}: {text}; start: {start}"


def task_settings(task: str | Task | None, agent: str | type[Agent]) -> TaskSettings:
    """Settings of a task for an agent; empty without a task or for an unregistered agent.

    Raises:
        ValueError: if there is no such task.
    """
    name = agent if isinstance(agent, str) else _registered(agent)
    if task is None or name is None:
        return TaskSettings()
    from textenv.tasks.registry import make_task

    found = make_task(task)
    return TaskSettings(**found.settings(name), source=f"{found.name} for {name}")


def unsaid(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of settings that were not given, also not by a setting with the same meaning.

    >>> unsaid({"iterations": 20, "gamma": 0.9, "epochs": 4}, {"total_episodes": 280, "epochs": 1})
    {'gamma': 0.9}
    """
    said = {RIVALS.get(name) for name, value in given.items() if value is not None}
    return {name: value for name, value in defaults.items() if name not in given and name not in said}


def _registered(agent: type[Agent]) -> str | None:
    try:
        return name_of(agent)
    except ValueError:
        return None
