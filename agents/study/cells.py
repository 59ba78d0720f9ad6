"""The task's settings and start, filled in where a study's file gives none."""

from __future__ import annotations

from typing import Any

from textenv.agents.settings.offline import SFTConfig
from textenv.agents.study.config import AgentSetup, StudyConfig, TaskSetup
from textenv.agents.train_setup.task_settings import task_settings, unsaid
from textenv.agents.train_setup.task_start import start_config


def task_setup(config: StudyConfig, label: str) -> TaskSetup:
    """A task of a study with its start: the study's, with the task's own settings of it for the rest.

    Raises:
        ValueError: if the study gives no start and the task has different ones for the study's agents.
    """
    setup, source = config.tasks[label], config.source(label)
    if source is None or setup.model is not None:
        return setup
    starts: list[Any] = []
    for agent in config.agents.values():
        found = task_settings(source, agent.agent or "").start
        if found is not None and agent.model is None and agent.start is not False and found not in starts:
            starts.append(found)
    if len(starts) > 1 and setup.start is None:
        raise ValueError(f"tasks.{label}.start must be given: the agents' starts on {source!r} differ")
    own = starts[0] if len(starts) == 1 else {}
    if setup.start is not None:
        given = setup.start.given()
        return setup.replace(start=SFTConfig.with_defaults(given, unsaid(own, given)))
    return setup.replace(start=start_config(own or None, True))


def agent_setup(config: StudyConfig, label: str, task: str) -> AgentSetup:
    """An agent of a study on one of its tasks: whether it begins with the start, and all settings by name."""
    setup, source = config.agents[label], config.source(task)
    if source is None:
        return setup if setup.start is not None else setup.replace(start=True)
    of_task = task_settings(source, setup.agent or "")
    start = setup.start
    if start is None:
        # The start of a task that only some agents have is not for the others; one that the study gives is.
        of_others = config.tasks[task].start is None and task_setup(config, task).start is not None
        start = setup.model is not None or not (of_others and of_task.known and of_task.start is None)
    own = unsaid(of_task.settings, setup.settings)
    return setup.replace(start=start, settings={**own, **setup.settings})
