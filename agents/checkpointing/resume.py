"""Find the checkpoint from which an interrupted run continues, and check that it belongs to this run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from textenv.agents.checkpointing.checkpoint import read_trainer
from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.checkpointing.state import RunIdentity
from textenv.agents.distributed import process_group
from textenv.agents.loggers.jsonl import read_metrics
from textenv.agents.settings.base import AgentConfig, given_settings
from textenv.modeling.saved_runs import latest_whole

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
"""Settings that a resumed run may change: its length, its reports, and its use of memory."""


def find_checkpoint(
    run_dir: str | os.PathLike[str],
    identity: RunIdentity,
    *,
    missing: Literal["error", "start"] = "error",
    keep: int,
) -> Path | None:
    """The newest whole checkpoint of a run, checked to be of this agent; every process calls it.

    Half-written files are removed, and newer checkpoints that are damaged are renamed: they will be written
    again.

    Args:
        run_dir: folder of the run.
        identity: of the agent that continues the run.
        missing: where there is no whole checkpoint: "error", or "start" to return None.
        keep: number of the latest checkpoints that stay.

    Raises:
        FileNotFoundError: if there is no whole checkpoint and ``missing`` is "error".
        RunFolderError: if another process is training in the folder, or it can't be written to.
        ValueError: if the run was made by another kind of agent, or with other settings or data.

    Warns:
        UserWarning: naming each damaged checkpoint that is skipped.
    """
    if missing not in ("error", "start"):
        raise ValueError(f"missing must be 'error' or 'start', got {missing!r}")
    folder = RunFolder(run_dir)
    if missing == "error" and not folder.path.is_dir():
        raise FileNotFoundError(f"{folder.path} is not there, expected the folder of a run")
    choice: tuple[Path | None, list[str]] = None, []
    with process_group.collective("resuming"):
        if process_group.is_main():
            choice = _choose(identity, folder, missing, keep)
    found, problems = process_group.broadcast(choice)
    for problem in problems:
        instead = "the run begins anew" if found is None else f"going on from {found}"
        warnings.warn(f"{problem}; {instead}", stacklevel=4)
    return found


def _choose(
    identity: RunIdentity, folder: RunFolder, missing: str, keep: int
) -> tuple[Path | None, list[str]]:
    """The checkpoint, and the problems of newer damaged ones, which are renamed."""
    with folder.running():
        found, problems = latest_whole(folder.path)
        if found is None and missing == "error":
            what = "; ".join(problems) or "it holds no checkpoint"
            raise FileNotFoundError(f"{folder.path} can't be resumed: {what}")
        if found is not None:
            check_same_run(identity, read_trainer(found), found)
        for step, damaged in folder.step_folders():
            if found is None or damaged > found:
                folder.set_aside(step)
        if found is not None:  # a process that was killed before it pruned has left one too many
            folder.prune(keep)
    return found, problems


def settings_to_resume(
    config_class: type[AgentConfig],
    run_dir: str | os.PathLike[str],
    config: AgentConfig | Mapping[str, Any] | None,
    changes: Mapping[str, Any],
) -> AgentConfig | None:
    """Settings of a resumed run: those given now; the others are the newest checkpoint's.

    Args:
        config_class: class of the agent's settings.
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
            saved = config_class.from_saved(read_trainer(folder)["config"])
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
        ):  # damaged, or another agent's: reported when it is read
            continue
        break
    if saved is None:
        return None
    given = {**given_settings(config), **changes}
    for pair in (("iterations", "total_episodes"), ("steps", "epochs")):
        # Two settings for the same quantity: the one given now replaces the other.
        if not all(hasattr(saved, name) for name in pair):
            continue
        for name, other in (pair, pair[::-1]):
            if given.get(name) is not None and other not in given:
                given[other] = None
    return saved.replace(**given)


def check_same_run(identity: RunIdentity, trainer: Mapping[str, Any], path: Path) -> None:
    """Refuse a resume with another agent, other settings or other data than the checkpoint's.

    Raises:
        ValueError: naming what differs.
    """
    name = identity.agent
    if trainer["agent"] != name:
        raise ValueError(f"{path} is of the agent {trainer['agent']!r}, expected {name!r}")
    free = FREE_TO_CHANGE | (set() if identity.online else {"epochs"})
    # Through the settings' class: settings that came later than the checkpoint get their defaults.
    config = identity.config
    own, saved = config.to_dict(), type(config).from_saved(trainer["config"]).to_dict()
    differ = [key for key in own if key not in free and own[key] != saved[key]]
    if differ:
        listed = ", ".join(f"{key}={saved[key]!r} (got {own[key]!r})" for key in differ)
        raise ValueError(
            f"a resumed run must keep its settings, {path} was written with {listed}; "
            "for other settings start a new run with the checkpoint as its model"
        )
    for key, count in trainer["data"].items():
        if identity.data.get(key) != count:
            raise ValueError(
                f"a resumed run must keep its data, {path} saw {count} {key}, got {identity.data.get(key)}"
            )


def earlier_rows(run_dir: Path | None, step: int) -> list[dict[str, float]]:
    """The metrics that a run had logged up to ``step``, as ``TrainResult.history`` has them."""
    path = None if run_dir is None else RunFolder(run_dir).metrics_path
    if path is None or not path.exists():
        return []
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    return [{name: value for name, value in row.items() if name not in ("step", "time")} for row in rows]
