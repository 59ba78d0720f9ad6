"""An agent on disk: its policy's folder, and beside it everything that training needs to go on exactly.

    (policy files)              see ``textenv.agents.policies.files``; plain transformers loads the folder
    trainer.json                agent, settings, counters, schedule, reward terms, callbacks, extra state
    optimizer.safetensors       moments and, of 16-bit weights, float32 copies, by parameter index
    trainer.safetensors         further tensors of the agent, if it has any
    random.safetensors          state of the global random generators
    files.json                  size and sha256 of every file, written last: what makes a checkpoint whole

No pickle is written or read.
"""

from __future__ import annotations

import errno
import json
import os
import reprlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from textenv import scoring as scorer
from textenv.agents.checkpointing.random_state import random_state
from textenv.agents.checkpointing.run_folder import RunFolder, RunFolderError
from textenv.agents.distributed import process_group
from textenv.modeling.saved_runs import MANIFEST, CorruptCheckpointError, manifest, verify
from textenv.utils.files import atomic_folder
from textenv.utils.json_files import read_object

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent

TRAINER = "trainer.json"
FORMAT = 1
FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "agent": str,
    "config": dict,
    "counters": dict,
    "optimizer": dict,
    "schedule": dict,
    "callbacks": (dict, list),
    "state": dict,
    "stopped": bool,
    "data": dict,
}
"""Fields of ``trainer.json`` and their types."""


def save_agent(agent: Agent, path: str | os.PathLike[str]) -> None:
    """Write an agent into the folder ``path``, whole or not at all.

    Raises:
        RunFolderError: if it can't be written; what was at ``path`` is still there.
        FileExistsError: if ``path`` holds something else than an agent.
    """
    with process_group.joined("saving"), agent.backend.unsharded_state():
        if process_group.is_main():
            with _explained(Path(path)), atomic_folder(path, marker=TRAINER) as folder:
                write_agent(agent, folder)


def save_checkpoint(agent: Agent, run_dir: str | os.PathLike[str]) -> Path:
    """Write the checkpoint of this iteration into the run's folder, then drop the oldest ones.

    Raises:
        RunFolderError: if it can't be written; the earlier ones are still there.
    """
    folder = RunFolder(run_dir)
    final = folder.checkpoint_dir(agent.iteration)
    with process_group.joined("saving a checkpoint"), agent.backend.unsharded_state():
        if process_group.is_main():
            with _explained(final, folder), folder.checkpoint(agent.iteration) as path:
                write_agent(agent, path)
            folder.prune(agent.config.keep_checkpoints)
    return final


def write_agent(agent: Agent, folder: Path) -> None:
    """Fill a folder that becomes visible later (the caller renames it)."""
    agent.save_policy(folder)
    tensors, plain = _flat(agent.optimizer.state_dict())
    save_file(tensors | agent.backend.masters.tensors(), folder / "optimizer.safetensors")
    extra_tensors = {name: value.detach().cpu().contiguous() for name, value in agent.state_tensors().items()}
    if extra_tensors:
        save_file(extra_tensors, folder / "trainer.safetensors")
    random_tensors, random_values = random_state()
    save_file(random_tensors, folder / "random.safetensors")
    wrappers = [] if agent.envs is None else scorer.reward_wrappers(agent.envs)
    trainer = {
        "format": FORMAT,
        "agent": agent.registered_name(),
        "config": agent.config.to_dict(),
        "counters": agent.counters(),
        "optimizer": plain,
        "schedule": {k: v for k, v in agent.schedule.state_dict().items() if _is_json(v)},
        "scaler": agent.backend.scaler.state_dict(),
        "reward_terms": scorer.state_dict(wrappers),
        "callbacks": agent.callbacks.state_dict(),
        "state": agent.state_values(),
        "stopped": agent.stopped,
        "data": data_sizes(agent),
        "random": random_values,
    }
    (folder / TRAINER).write_text(json.dumps(trainer, indent=2) + "\n")
    (folder / MANIFEST).write_text(json.dumps(manifest(folder), indent=2) + "\n")
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())


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
    from textenv.agents.base.registry import get_agent

    verify(path)
    folder = Path(path)
    trainer = read_trainer(folder)
    kind = get_agent(trainer["agent"])
    if not issubclass(kind, cls):
        raise ValueError(f"{folder} holds a {kind.__name__}, expected a {cls.__name__}")
    config = kwargs.pop("config", None) or kind.config_class.from_saved(trainer["config"])
    policy = kind.policy_class.load(folder)
    agent = kind(policy, config=config, **kwargs)
    with agent.backend.unsharded_state(write=True):
        restore(agent, folder)
    return agent


def restore(agent: Agent, path: str | os.PathLike[str]) -> None:
    """Put optimizer, counters and states of a saved agent into ``agent``, whose policy was loaded already."""
    folder = Path(path)
    trainer = read_trainer(folder)
    state = _nested(load_file(folder / "optimizer.safetensors"), trainer["optimizer"])
    for own, saved in zip(agent.optimizer.param_groups, state["param_groups"], strict=True):
        # How it computes here, not there.
        saved |= {name: own[name] for name in ("fused", "foreach") if name in own}
    agent.backend.masters.load(state["state"])
    agent.optimizer.load_state_dict(state)
    agent.schedule.load_state_dict(trainer["schedule"])
    scaler = agent.backend.scaler
    scaler.load_state_dict(trainer.get("scaler", scaler.state_dict()))  # the oldest checkpoints have none
    agent.set_counters(trainer["counters"])
    if agent.envs is not None:
        scorer.load_state_dict(scorer.reward_wrappers(agent.envs), trainer["reward_terms"])
    agent.callbacks.load_state_dict(trainer["callbacks"])
    tensors = folder / "trainer.safetensors"
    agent.load_state(trainer["state"], load_file(tensors) if tensors.is_file() else {})
    agent.policy.invalidate()


def data_sizes(agent: Agent) -> dict[str, int]:
    """How much data an agent has, kept to notice a resume on other data."""
    sizes = {}
    if agent.dataset is not None:
        sizes["rows of data"] = len(agent.dataset)
    if agent.envs is not None:
        sizes["prompts"] = len(agent.envs.unwrapped.prompts)
    return sizes


def read_trainer(folder: Path) -> dict[str, Any]:
    """The settings and values of a saved agent.

    Raises:
        ValueError: if a newer version wrote them.
        CorruptCheckpointError: if the file does not hold them.
    """
    trainer = read_object(folder / TRAINER, FIELDS, error=CorruptCheckpointError)
    wrong = [name for name, value in trainer["counters"].items() if type(value) is not int or value < 0]
    if wrong:
        raise CorruptCheckpointError(
            f"{folder / TRAINER} is damaged, the counter {wrong[0]} must be an integer >= 0, "
            f"got {reprlib.repr(trainer['counters'][wrong[0]])}"
        )
    if trainer["format"] > FORMAT:
        raise ValueError(
            f"{folder} has format {trainer['format']}, expected at most {FORMAT}; update textenv"
        )
    return trainer


@contextmanager
def _explained(path: Path, run: RunFolder | None = None) -> Iterator[None]:
    """Say what could not be written, why, and what is still there."""
    try:
        yield
    except FileExistsError:
        raise
    except Exception as error:
        # The libraries in Rust raise exceptions of their own that only quote the system's error.
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        reason = str(getattr(error, "strerror", None) or error)
        if f"(os error {errno.ENOSPC})" in reason or getattr(error, "errno", None) == errno.ENOSPC:
            reason = f"the disk is full ({_free_bytes(path) / 2**20:.0f} MiB free)"
        kept = ""
        if run is not None:
            last = run.latest()
            kept = "; there is no earlier one" if last is None else f"; {last} is whole, resume from there"
        raise RunFolderError(f"{path} could not be written: {reason}{kept}") from error


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


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
