"""Find the model in the folder of a run, and check checkpoints for damage."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import reprlib
from pathlib import Path, PurePosixPath
from typing import Any

from textenv.utils.json_files import read_object

MANIFEST = "files.json"
"""File with the size and sha256 of every other file of a checkpoint; it is written last."""
ALWAYS = ("trainer.json", "optimizer.safetensors", "random.safetensors")
"""Files that the checkpoint of every agent has."""
_DIGEST = re.compile("[0-9a-f]{64}")
_OF_RUNS = ("run.json", "pipeline.json", "stage.json")
"""Files that only the folder of a run, a pipeline or one of its stages has."""
_OF_MODELS = ("config.json", "adapter_config.json")
"""Files that the folder of a model or an adapter has."""


class CorruptCheckpointError(ValueError):
    """A file of a checkpoint is missing or was changed after it was written."""


def model_folder(source: str | os.PathLike[str], *, scores: bool = False) -> Path:
    """The model's folder in the folder of a run.

    In a pipeline it is the policy of the last stage. In other runs it is the best model, or else the newest
    undamaged checkpoint.

    Args:
        source: the folder of a run, of a pipeline, or of one of its stages. Anything else (the folder of a
            checkpoint or a model, a hub id) is returned unchanged.
        scores: return the reward model of a pipeline instead of its policy.

    Raises:
        ValueError: if the run has no undamaged model.
    """
    folder = Path(source)
    if not folder.is_dir() or any((folder / name).is_file() for name in _OF_MODELS):
        return folder
    stages = ("reward-model",) if scores else ("rl", "sft")
    for inner in (*(folder / stage / "model" for stage in stages), folder / "best", folder / "model"):
        if (inner / "config.json").is_file():
            return inner
    newest, problems = latest_whole(folder, remember=True)
    if newest is not None:
        return newest
    if problems or any((folder / name).exists() for name in _OF_RUNS):
        what = "; ".join(problems) or "it has no checkpoint yet"
        raise ValueError(f"{folder} is the folder of a run without a usable model: {what}")
    return folder


def step_folders(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every folder ``checkpoints/step-N`` of a run, oldest first; they may be damaged."""
    found = []
    for folder in (run_dir / "checkpoints").glob("step-*"):
        match = re.fullmatch(r"step-(\d+)", folder.name)
        if match and folder.is_dir():
            found.append((int(match[1]), folder))
    return sorted(found)


def latest_whole(run_dir: str | os.PathLike[str], *, remember: bool = False) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint of a run.

    Args:
        run_dir: the run's folder.
        remember: reuse an earlier result of this process while sizes and times of all files are the same. A
            check reads every file, and loading a model calls this several times.

    Returns:
        (folder of the checkpoint or None, one message for each newer checkpoint that is damaged).
    """
    problems: list[str] = []
    for _, folder in reversed(step_folders(Path(run_dir))):
        found = _remembered(folder, _stamp(folder)) if remember else _problem(folder)
        if found is None:
            return folder, problems
        problems.append(found)
    return None, problems


def verify(path: str | os.PathLike[str]) -> None:
    """Check that all files of a checkpoint have the sizes and hashes in its manifest.

    Raises:
        FileNotFoundError: if ``path`` is not the checkpoint of an agent.
        CorruptCheckpointError: if a file is missing or was changed after it was written.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}, expected a folder that Agent.save wrote")
    for name, facts in _read_manifest(folder / MANIFEST).items():
        file = folder / name
        if not file.is_file():
            raise CorruptCheckpointError(f"{file} is missing; the checkpoint was written with it")
        if file.stat().st_size != facts["size"] or _sha256(file) != facts["sha256"]:
            raise CorruptCheckpointError(f"{file} differs from what was written; the checkpoint is damaged")


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """{relative path: {"size", "sha256"}} of every file in a folder, except the manifest."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": _sha256(file)}
        for file in files
    }


def _problem(folder: Path) -> str | None:
    """The reason why a checkpoint is damaged, or None."""
    try:
        verify(folder)
    except (FileNotFoundError, CorruptCheckpointError) as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=64)
def _remembered(folder: Path, stamp: object) -> str | None:
    return _problem(folder)


def _stamp(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    facts = [(file, file.stat()) for file in files]
    return tuple((str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in facts)


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Read and check the manifest of a checkpoint: file -> ``size`` and ``sha256``.

    Raises:
        CorruptCheckpointError: if it does not have the form of ``manifest``, or does not list a file of
            ``ALWAYS``.
    """
    written = read_object(path, error=CorruptCheckpointError)
    for name, facts in written.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise CorruptCheckpointError(
                f"{path} is damaged, a file's name must be a path in its folder, got {name!r}"
            )
        size, digest = (facts.get("size"), facts.get("sha256")) if isinstance(facts, dict) else (None, None)
        whole = type(size) is int and isinstance(digest, str) and _DIGEST.fullmatch(digest)
        if not whole or set(facts) != {"size", "sha256"}:
            raise CorruptCheckpointError(
                f"{path} is damaged, {name!r} must have a size and a sha256, got {reprlib.repr(facts)}"
            )
    missing = [name for name in ALWAYS if name not in written]
    if missing:
        raise CorruptCheckpointError(
            f"{path} is damaged, it must list {', '.join(ALWAYS)}, but lacks {missing[0]}"
        )
    return written


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
