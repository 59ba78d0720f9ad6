"""Clean the run's folder after a failed start, so that the corrected command can use it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from textenv.agents.checkpointing.run_folder import LOCK, RunFolder, RunFolderError

MADE_BY_RUNS = (
    "run.json",
    "metrics.jsonl",
    "tables",
    "checkpoints",
    "evaluations",
    "episodes",
    "plots",
    "report.html",
    "tensorboard",
    "wandb",
    "wandb-id.txt",
    "stage.json",
    "pipeline.json",
)
"""Files that runs and pipelines write before there is a result to keep."""


@contextmanager
def fresh_start(run_dir: str | os.PathLike[str]) -> Iterator[None]:
    """If the block raises before the run has a result, remove the files that it made in the folder.

    Metrics, checkpoints and finished stages are results, and ``failures`` are kept, too. Files that were in
    the folder before, and files of other programs, stay.

    Args:
        run_dir: the run's folder; it and its parents need not be there.
    """
    folder = Path(run_dir)
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except BaseException:
        if folder.is_dir() and not has_begun(folder):
            _clear(folder, before, missing)
        raise


@contextmanager
def starting(run_dir: str | os.PathLike[str]) -> Iterator[None]:
    """``fresh_start``, with the folder held for this process meanwhile."""
    with fresh_start(run_dir), RunFolder(run_dir).running():
        yield


def has_begun(folder: Path) -> bool:
    """Whether a run's folder holds results: metrics, checkpoints, finished stages."""
    run = RunFolder(folder)
    metrics = run.metrics_path
    if metrics.is_file() and metrics.stat().st_size:
        return True
    return bool(run.step_folders()) or (folder / "best").exists() or any(folder.glob("*/stage.json"))


def _clear(folder: Path, before: set[str], missing: list[Path]) -> None:
    try:
        with RunFolder(folder).running():
            for name in MADE_BY_RUNS:
                path = folder / name
                if name in before or not (path.exists() or path.is_symlink()):
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
    except RunFolderError:  # another process has begun there meanwhile: nothing of this one's is in its way
        return
    if LOCK not in before:
        (folder / LOCK).unlink(missing_ok=True)
    for place in missing:
        with suppress(OSError):  # it holds something else
            place.rmdir()
