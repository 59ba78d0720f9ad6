"""An agent on disk: the files of its policy, and beside them the ``TrainingState``.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from textenv.agents.checkpointing.random_state import random_state, set_random_state
from textenv.agents.checkpointing.run_folder import RunFolder, RunFolderError
from textenv.agents.checkpointing.state import TrainingState
from textenv.modeling.saved_runs import MANIFEST, CorruptCheckpointError, manifest
from textenv.utils.files import atomic_folder
from textenv.utils.json_files import read_object

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


def save_state(
    path: str | os.PathLike[str], state: TrainingState, save_policy: Callable[[Path], None]
) -> None:
    """Write an agent into the folder ``path``, whole or not at all.

    Args:
        path: the folder.
        state: of the agent.
        save_policy: writes the policy's files into a folder.

    Raises:
        RunFolderError: if it can't be written; what was at ``path`` is still there.
        FileExistsError: if ``path`` holds something else than an agent.
    """
    with _explained(Path(path)), atomic_folder(path, marker=TRAINER) as folder:
        write_state(folder, state, save_policy)


def save_checkpoint(
    run: RunFolder, state: TrainingState, save_policy: Callable[[Path], None], *, keep: int
) -> None:
    """Write the checkpoint of this iteration into the run's folder, then remove all but the latest ``keep``.

    Raises:
        RunFolderError: if it can't be written; the earlier ones are still there.
    """
    step = state.counters["iteration"]
    with _explained(run.checkpoint_dir(step), run), run.checkpoint(step) as folder:
        write_state(folder, state, save_policy)
    run.prune(keep)


def write_state(folder: Path, state: TrainingState, save_policy: Callable[[Path], None]) -> None:
    """Fill a folder that the caller renames when it is complete."""
    save_policy(folder)
    tensors, plain = _flat(state.optimizer)
    save_file(tensors, folder / "optimizer.safetensors")
    extra_tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
    if extra_tensors:
        save_file(extra_tensors, folder / "trainer.safetensors")
    random_tensors, random_values = random_state()
    save_file(random_tensors, folder / "random.safetensors")
    trainer = {
        "format": FORMAT,
        "agent": state.agent,
        "config": state.config,
        "counters": state.counters,
        "optimizer": plain,
        "schedule": {k: v for k, v in state.schedule.items() if _is_json(v)},
        "scaler": state.scaler,
        "reward_terms": state.reward_terms,
        "callbacks": state.callbacks,
        "state": state.values,
        "stopped": state.stopped,
        "data": state.data,
        "random": random_values,
    }
    (folder / TRAINER).write_text(json.dumps(trainer, indent=2) + "\n")
    (folder / MANIFEST).write_text(json.dumps(manifest(folder), indent=2) + "\n")
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())


def read_state(path: str | os.PathLike[str]) -> TrainingState:
    """The state that ``write_state`` wrote.

    Raises:
        ValueError: if a newer version wrote it.
        CorruptCheckpointError: if ``trainer.json`` is damaged.
    """
    folder = Path(path)
    trainer, tensors = read_trainer(folder), folder / "trainer.safetensors"
    return TrainingState(
        agent=trainer["agent"],
        config=trainer["config"],
        counters=trainer["counters"],
        optimizer=_nested(load_file(folder / "optimizer.safetensors"), trainer["optimizer"]),
        schedule=trainer["schedule"],
        scaler=trainer.get("scaler"),
        reward_terms=trainer["reward_terms"],
        callbacks=trainer["callbacks"],
        values=trainer["state"],
        tensors=load_file(tensors) if tensors.is_file() else {},
        stopped=trainer["stopped"],
        data=trainer["data"],
    )


def restore_random_state(folder: Path) -> None:
    """Set the global random generators to where they stood when the checkpoint was written."""
    set_random_state(load_file(folder / "random.safetensors"), read_trainer(folder)["random"])


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
    """Report what could not be written, why, and which earlier checkpoint is whole."""
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
