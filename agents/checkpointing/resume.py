"""Going on with an interrupted run: the newest whole checkpoint, put into an agent made as the run's was."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors.torch import load_file

from textenv.agents.checkpointing.checkpoint import data_sizes, read_trainer, restore
from textenv.agents.checkpointing.random_state import set_random_state
from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.distributed import process_group
from textenv.agents.loggers.jsonl import read_metrics
from textenv.agents.train_setup.task_settings import given_settings
from textenv.modeling.saved_runs import latest_whole

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent
    from textenv.agents.settings.base import AgentConfig

FREE_TO_CHANGE = frozenset(
    {
        "iterations",
        "total_episodes",
        "steps",
        "eval_every",
        "eval_episodes",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "max_tokens_per_microbatch",
        "report",
    }
)
"""Settings that a resumed run may change: how long it runs, what it reports, what fits into memory."""


def resume_agent(
    agent: Agent, run_dir: str | os.PathLike[str], *, missing: Literal["error", "start"] = "error"
) -> Path | None:
    """Put an agent, made as the run's was, where the newest whole checkpoint of the run stands.

    Half-written files are removed, and damaged checkpoints newer than that one are set aside, for they will
    be written again.

    Args:
        agent: an agent that has not learned yet.
        run_dir: folder of the run.
        missing: where there is no whole checkpoint: "error", or "start" to leave the agent as it is.

    Returns:
        The checkpoint; None if there was none.

    Raises:
        FileNotFoundError: if there is no whole checkpoint and ``missing`` is "error".
        RunFolderError: if another process is training in the folder, or it can't be written to.
        ValueError: if the run was made by another kind of agent, or with other settings or data.

    Warns:
        UserWarning: naming each damaged checkpoint that was passed over.
    """
    if missing not in ("error", "start"):
        raise ValueError(f"missing must be 'error' or 'start', got {missing!r}")
    folder = RunFolder(run_dir)
    if missing == "error" and not folder.path.is_dir():
        raise FileNotFoundError(f"{folder.path} is not there, expected the folder of a run")
    choice: tuple[Path | None, list[str]] = None, []
    with process_group.joined("resuming"):
        if process_group.is_main():
            choice = _choose(agent, folder, missing)
    found, problems = process_group.broadcast(choice)
    for problem in problems:
        instead = "the run begins anew" if found is None else f"going on from {found}"
        warnings.warn(f"{problem}; {instead}", stacklevel=3)
    if found is not None:
        trainer = read_trainer(found)
        with agent.backend.unsharded_state(write=True):
            agent.restore_policy(found)
            restore(agent, found)
        agent.stopped = bool(trainer["stopped"])
        set_random_state(load_file(found / "random.safetensors"), trainer["random"])
    agent.resumed = True
    return found


def _choose(agent: Agent, folder: RunFolder, missing: str) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, checked; damaged ones that are newer are set aside."""
    with folder.running():
        found, problems = latest_whole(folder.path)
        if found is None and missing == "error":
            what = "; ".join(problems) or "it holds no checkpoint"
            raise FileNotFoundError(f"{folder.path} can't be resumed: {what}")
        if found is not None:
            check_same_run(agent, read_trainer(found), found)
        for step, damaged in folder.step_folders():
            if found is None or damaged > found:
                folder.set_aside(step)
        if found is not None:  # a process that was killed before it pruned has left one too many
            folder.prune(agent.config.keep_checkpoints)
    return found, problems


def settings_to_resume(
    cls: type[Agent],
    run_dir: str | os.PathLike[str],
    config: AgentConfig | Mapping[str, Any] | None,
    changes: Mapping[str, Any],
) -> AgentConfig | None:
    """Settings to go on with a run by: those given now, and the newest checkpoint's for the rest.

    Args:
        cls: the agent's class.
        run_dir: folder of the run.
        config: settings given now, as an object or by name; None gives none.
        changes: further ones, by name.

    Returns:
        None if there is no checkpoint with settings of this class.

    Raises:
        ValueError: for a setting given now that is unknown, out of range or without effect.
    """
    saved = None
    for _, folder in reversed(RunFolder(run_dir).step_folders()):
        try:
            saved = cls.config_class.from_saved(read_trainer(folder)["config"])
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
        ):  # damaged, or another agent's: told when it is read
            continue
        break
    if saved is None:
        return None
    given = {**given_settings(config), **changes}
    for pair in (("iterations", "total_episodes"), ("steps", "epochs")):
        # Two ways to say one thing: the one given now replaces the other.
        if not all(hasattr(saved, name) for name in pair):
            continue
        for name, other in (pair, pair[::-1]):
            if given.get(name) is not None and other not in given:
                given[other] = None
    return saved.replace(**given)


def check_same_run(agent: Agent, trainer: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with another agent, other settings or other data than the checkpoint's.

    Raises:
        ValueError: naming what differs.
    """
    name = agent.registered_name()
    if trainer["agent"] != name:
        raise ValueError(f"{path} is of the agent {trainer['agent']!r}, expected {name!r}")
    free = FREE_TO_CHANGE | (set() if agent.online else {"epochs"})
    # Through the settings' class: settings that came later than the checkpoint get their defaults.
    own, saved = agent.config.to_dict(), type(agent.config).from_saved(trainer["config"]).to_dict()
    differ = [key for key in own if key not in free and own[key] != saved[key]]
    if differ:
        listed = ", ".join(f"{key}={saved[key]!r} (got {own[key]!r})" for key in differ)
        raise ValueError(
            f"a resumed run must keep its settings, {path} was written with {listed}; "
            "for other settings start a new run with the checkpoint as its model"
        )
    sizes = data_sizes(agent)
    for key, count in trainer["data"].items():
        if sizes.get(key) != count:
            raise ValueError(
                f"a resumed run must keep its data, {path} saw {count} {key}, got {sizes.get(key)}"
            )


def earlier_rows(run_dir: Path | None, step: int) -> list[dict[str, float]]:
    """The metrics that a run had logged up to ``step``, as ``TrainResult.history`` has them."""
    path = None if run_dir is None else RunFolder(run_dir).metrics_path
    if path is None or not path.exists():
        return []
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    return [{name: value for name, value in row.items() if name not in ("step", "time")} for row in rows]
