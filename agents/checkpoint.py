"""An agent on disk: its policy's folder, and beside it everything that training needs to go on exactly.

    (policy files)              see ``policy_files``; plain transformers loads the folder
    trainer.json                agent, settings, counters, schedule, reward terms, callbacks, extra state
    optimizer.safetensors       moments, by parameter index
    trainer.safetensors         further tensors of the agent, if it has any
    files.json                  size and sha256 of every file, written last: what makes a checkpoint whole

No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from textenv import scoring as scorer
from textenv.atomic import atomic_folder

if TYPE_CHECKING:
    from textenv.agents.base import Agent

TRAINER = "trainer.json"
MANIFEST = "files.json"


class CorruptCheckpointError(ValueError):
    """A checkpoint's files are not the ones that were written."""


def save_agent(agent: Agent, path: str | os.PathLike[str]) -> None:
    """Write an agent into the folder ``path``, whole or not at all."""
    with atomic_folder(path, marker=TRAINER) as folder:
        write_agent(agent, folder)


def write_agent(agent: Agent, folder: Path) -> None:
    """Fill a folder that becomes visible later (the caller renames it)."""
    agent.save_policy(folder)
    tensors, plain = _flat(agent.optimizer.state_dict())
    save_file(tensors, folder / "optimizer.safetensors")
    extra_tensors = {name: value.detach().cpu().contiguous() for name, value in agent.state_tensors().items()}
    if extra_tensors:
        save_file(extra_tensors, folder / "trainer.safetensors")
    wrappers = [] if agent.envs is None else scorer.reward_wrappers(agent.envs)
    trainer = {
        "agent": agent.registered_name(),
        "config": agent.config.to_dict(),
        "counters": agent.counters(),
        "optimizer": plain,
        "schedule": {k: v for k, v in agent.schedule.state_dict().items() if _is_json(v)},
        "reward_terms": scorer.state_dict(wrappers),
        "callbacks": agent.callbacks.state_dict(),
        "state": agent.state_values(),
    }
    (folder / TRAINER).write_text(json.dumps(trainer, indent=2) + "\n")
    (folder / MANIFEST).write_text(json.dumps(_manifest(folder), indent=2) + "\n")
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())


def verify(path: str | os.PathLike[str]) -> None:
    """Check that a checkpoint is whole.

    Raises:
        FileNotFoundError: if ``path`` holds no checkpoint of an agent.
        CorruptCheckpointError: if a file is missing or differs from what was written.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}, expected a folder that Agent.save wrote")
    try:
        written = json.loads((folder / MANIFEST).read_text())
    except ValueError as error:
        raise CorruptCheckpointError(f"{folder / MANIFEST} is not JSON: {error}") from error
    for name, facts in written.items():
        file = folder / name
        if not file.is_file():
            raise CorruptCheckpointError(f"{file} is missing; the checkpoint was written with it")
        if file.stat().st_size != facts["size"] or _sha256(file) != facts["sha256"]:
            raise CorruptCheckpointError(f"{file} differs from what was written; the checkpoint is damaged")


def load_agent(cls: type[Any], path: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Rebuild an agent.

    Args:
        cls: the agent's class; ``Agent`` itself takes the class that the folder names.
        path: folder that ``save_agent`` wrote.
        kwargs: of the constructor: ``envs``, ``dataset``, ``callbacks``, ...; ``config`` replaces the
            saved settings.

    Raises:
        ValueError: if the folder was written by another kind of agent.
        CorruptCheckpointError: if the folder is damaged.
    """
    from textenv.agents.registry import get_agent

    verify(path)
    folder = Path(path)
    trainer = json.loads((folder / TRAINER).read_text())
    kind = get_agent(trainer["agent"])
    if not issubclass(kind, cls):
        raise ValueError(f"{folder} holds a {kind.__name__}, expected a {cls.__name__}")
    config = kwargs.pop("config", None) or kind.config_class.from_dict(trainer["config"])
    policy = kind.policy_class.load(folder)
    agent = kind(policy, config=config, **kwargs)
    restore(agent, folder)
    return agent


def restore(agent: Agent, path: str | os.PathLike[str]) -> None:
    """Put optimizer, counters and states of a saved agent into ``agent``, whose policy was loaded already."""
    folder = Path(path)
    trainer = json.loads((folder / TRAINER).read_text())
    agent.optimizer.load_state_dict(
        _nested(load_file(folder / "optimizer.safetensors"), trainer["optimizer"])
    )
    agent.schedule.load_state_dict(trainer["schedule"])
    agent.set_counters(trainer["counters"])
    if agent.envs is not None:
        scorer.load_state_dict(scorer.reward_wrappers(agent.envs), trainer["reward_terms"])
    agent.callbacks.load_state_dict(trainer["callbacks"])
    tensors = folder / "trainer.safetensors"
    agent.load_state(trainer["state"], load_file(tensors) if tensors.is_file() else {})
    agent.policy.invalidate()


def latest_whole(run_dir: str | os.PathLike[str]) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that is whole, and what was wrong with the newer ones."""
    from textenv.agents.run_folder import RunFolder

    problems = []
    for _, folder in reversed(RunFolder(run_dir).checkpoints()):
        try:
            verify(folder)
        except (FileNotFoundError, CorruptCheckpointError) as error:
            problems.append(str(error))
        else:
            return folder, problems
    return None, problems


def _flat(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by "index/name" and plain values."""
    tensors, plain = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value.detach().cpu().contiguous()
            else:
                plain[f"{index}/{name}"] = value
    return tensors, {"plain": plain, "param_groups": state["param_groups"]}


def _nested(tensors: dict[str, Tensor], saved: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *saved["plain"].items()]:
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    groups = [
        {name: tuple(value) if name == "betas" else value for name, value in group.items()}
        for group in saved["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": _sha256(file)}
        for file in files
    }


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
