"""Checks of everything that the runs of a study need, before the first run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from textenv.agents.base.registry import get_agent
from textenv.agents.checkpointing.needs import (
    check_model,
    check_optimizer,
    check_policy_options,
    needed_by,
    quietly,
)
from textenv.agents.data.episodes import as_demonstrations, as_episodes, text_records
from textenv.agents.data.preferences import as_pairs
from textenv.agents.study.cells import agent_setup, task_setup
from textenv.agents.study.config import StudyConfig, TaskSetup
from textenv.agents.study.plan import RunSpec
from textenv.agents.study.specs import ready, ready_list
from textenv.agents.study.start import task_data
from textenv.agents.train_setup.task_start import own_model
from textenv.rewards.registry import make_reward
from textenv.tasks.make import make_vec_env
from textenv.tasks.task import TaskData

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent


def check_cells(config: StudyConfig, specs: Iterable[RunSpec]) -> None:
    """Check what the runs need: tasks, splits, rewards, judges, models, data, extras.

    Data sets are read as the runs will read them. Nothing is written and no model is loaded, except those
    of rewards and judges.

    Args:
        config: the study's settings.
        specs: the runs that are still to be made.

    Raises:
        ValueError: (or what the run would raise) with a note on which cell needs what was found wrong.
    """
    cells: dict[str, dict[str, None]] = {}
    for spec in specs:
        cells.setdefault(spec.task, {})[spec.label] = None
    for label, wanted in cells.items():
        setup = task_setup(config, label)
        with needed_by(f"tasks.{label}; no run has begun"), quietly():
            data = _check_task(setup)
        for name in wanted:
            if name in config.agents:
                with needed_by(f"agents.{name} on tasks.{label}; no run has begun"), quietly():
                    _check_agent(config, name, label, data)


def _check_task(setup: TaskSetup) -> TaskData:
    """Task, environments, judge and start."""
    data = task_data(setup)
    check_policy_options("policy", setup.policy)
    judge = None if setup.judge is None else make_reward(ready(setup.judge))
    for split in ("train", "validation"):
        # Once with the rewards, for some of them load models.
        rewards = ready_list(setup.reward) if split == "validation" else []
        given: dict[str, Any] = {"split": split, "rewards": rewards, "tokenizer": setup.tokenizer}
        given |= {name: value for name, value in setup.env.kwargs().items() if name != "split"}
        envs = make_vec_env(setup.num_envs, task=setup.task, **given)
        if judge is not None and split == "validation":
            judge.bind(envs.unwrapped)
        envs.close()
    if judge is not None:
        judge.close()
    if setup.model is not None:
        check_model("model", setup.model, data.tokenizer)
    else:
        own_model(setup.task, data)
    if setup.start is not None:
        check_optimizer("start.optimizer", setup.start.optimizer)
        as_demonstrations(_data_of(setup.dataset, data, "start"), data.tokenizer)
    return data


def _check_agent(config: StudyConfig, name: str, label: str, data: TaskData) -> None:
    """An agent on a task."""
    setup, agent = task_setup(config, label), agent_setup(config, name, label)
    cls = get_agent(agent.agent or "")
    if "eval_envs" not in inspect.signature(cls.__init__).parameters:
        raise ValueError(f"agent {agent.agent!r} writes no texts that could be compared")
    settings = config.agents[name].config(0, task=config.source(label))
    check_optimizer("settings.optimizer", settings.optimizer)
    if agent.model is not None:
        check_model("model", agent.model, data.tokenizer)
    if not agent.start:
        own_model(setup.task, data)
    given = agent.dataset or (None if cls.online else setup.dataset)
    if given is not None:
        _check_data(cls, given, data.tokenizer)
    elif not cls.online and not (cls.from_preferences and data.preferences is not None):
        _data_of(None, data, "agent")


def _check_data(cls: type[Agent], given: str, tokenizer: Any) -> None:
    """Read a data set as an agent of this library reads it; a custom agent may read any format."""
    if not cls.__module__.startswith("textenv."):
        return
    columns = set(text_records(given, tokenizer).columns)
    if cls.online:
        as_demonstrations(given, tokenizer)
    elif not cls.from_preferences:
        as_episodes(given, tokenizer)
    elif {"chosen", "rejected"} <= columns or "completion" not in columns:
        as_pairs(given, tokenizer)


def _data_of(given: Any, data: TaskData, what: str) -> Any:
    if given is not None:
        return given
    if data.demonstrations is None:
        raise ValueError(
            f"dataset must be given, for the task has no demonstrations for its {what}; got None"
        )
    return data.demonstrations
