"""The folder of a run: its paths, atomic checkpoints, and ``run.json``."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from textenv.agents.loggers.jsonl import METRICS_FILE
from textenv.agents.settings.base import Config
from textenv.modeling.saved_runs import step_folders
from textenv.utils.files import atomic_folder
from textenv.utils.json_files import read_object, write_json
from textenv.utils.redaction import masked, masked_command

LOCK = ".lock"
"""The file that the process that trains in a folder holds."""
MARKER = "checkpoint.json"
"""The file that makes a folder a checkpoint; it is written last."""
STAGES = ("sft", "reward-model", "judge", "rl")
"""The folders of a pipeline's stages in its run folder, in their order."""
_FORMER_MODULES = {
    "textenv.agents.preferences.agents": "textenv.agents.dpo",
    "textenv.agents.reward_models.agent": "textenv.agents.reward_model",
    "textenv.agents.sb3_learner": "textenv.agents.sb3",
}
"""Modules of agent classes in version 0.1.0 -> where the classes are now."""
_PACKAGES = ("textenv", "torch", "transformers", "gymnasium", "datasets", "numpy")
_LEFT_OVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>writing|older|pruned)-[0-9a-f]{8}")
"""Names of what a killed process leaves: half-written, being replaced, being removed."""


class RunFolderError(OSError):
    """The folder of a run can't be used, or a checkpoint can't be written to it."""


class RunFolder:
    """Paths in the folder of a run.

        run_dir/
            run.json                  settings, versions, command
            metrics.jsonl             one line a logged step
            tables/NAME.jsonl         samples and other tables
            checkpoints/step-00000040/
            best/                     the best agent, where BestCheckpoint is used
            evaluations/, episodes/   what the report shows, see ``textenv.agents.reports.recorder``
            report.html, plots/       the report
            .lock                     held by the process that trains here

    Args:
        path: the folder; nothing is made before something is written.

    Raises:
        TypeError: if ``path`` is no path.
        ValueError: if it is empty or holds a null byte.
        NotADirectoryError: if it is a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"run_dir must be the path of a folder, got {path!r}")
        if not os.fspath(path) or "\0" in os.fspath(path):
            raise ValueError(f"run_dir must be the path of a folder, got {os.fspath(path)!r}")
        self.path = Path(path)
        if self.path.is_file():
            raise NotADirectoryError(f"run_dir must be a folder, {self.path} is a file")

    @property
    def metrics_path(self) -> Path:
        """File of the metrics."""
        return self.path / METRICS_FILE

    @property
    def info_path(self) -> Path:
        """File of the facts about the run."""
        return self.path / "run.json"

    def checkpoint_dir(self, step: int) -> Path:
        """Folder of the checkpoint at ``step``."""
        return self.path / "checkpoints" / f"step-{step:08d}"

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """Give a temporary folder to fill; it becomes ``checkpoint_dir(step)`` if the block raises nothing.

        Raises:
            ValueError: if ``step`` is negative.
        """
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        with atomic_folder(self.checkpoint_dir(step), marker=MARKER) as temporary:
            yield temporary
            (temporary / MARKER).write_text(json.dumps({"step": step}) + "\n")
        _sync_folder(self.path / "checkpoints")

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every complete checkpoint, oldest first."""
        return [(step, folder) for step, folder in self.step_folders() if (folder / MARKER).exists()]

    def step_folders(self) -> list[tuple[int, Path]]:
        """(step, folder) of everything at the place of a checkpoint, whole or not, oldest first."""
        return step_folders(self.path)

    def latest(self) -> Path | None:
        """Folder of the latest complete checkpoint, None if there is none."""
        checkpoints = self.checkpoints()
        return checkpoints[-1][1] if checkpoints else None

    def prune(self, keep: int) -> None:
        """Remove all but the latest ``keep`` checkpoints.

        Raises:
            ValueError: if ``keep`` is below 1.
        """
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        for _, folder in self.checkpoints()[:-keep]:
            # Renamed first: a process killed while removing leaves nothing that looks like a checkpoint.
            doomed = folder.with_name(f".{folder.name}.pruned-{uuid.uuid4().hex[:8]}")
            os.rename(folder, doomed)
            shutil.rmtree(doomed)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Lock the folder for the process that trains in it, and remove files that a killed process left.

        The lock ends with the process, however that ends.

        Raises:
            RunFolderError: if the folder can't be made or written to, or another process trains in it.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise RunFolderError(f"{self.path} is in use: another process is training in it") from None
        except OSError as error:
            raise RunFolderError(
                f"{self.path} can't be written to: {error.strerror or error}; choose another run_dir"
            ) from error
        try:
            self.clear_left_overs()
            yield
        finally:
            lock.release()

    def clear_left_overs(self) -> None:
        """Remove half-written files and folders; put back what was being replaced when the process died."""
        for place in (self.path, self.path / "checkpoints", self.path / "tables"):
            for path in sorted(place.glob(".*-*")):
                found = _LEFT_OVER.fullmatch(path.name)
                if found is None:
                    continue
                home = path.with_name(found["name"])
                if found["kind"] == "older" and not home.exists():
                    os.rename(path, home)
                elif path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def set_aside(self, step: int) -> Path:
        """Rename the damaged checkpoint of a step, to free its place; returns the new path."""
        folder = self.checkpoint_dir(step)
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
        return aside

    def note_resume(self, step: int, **extra: Any) -> None:
        """Add a resume to ``run.json``: the step, time and command, and ``extra``."""
        info = self.read_info() if self.info_path.exists() else {}
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        made = {"step": step, "at": now, "command": masked_command(sys.argv), **extra}
        write_json(self.info_path, {**info, "resumes": [*info.get("resumes", []), made]})

    def write_info(self, config: Config | Mapping[str, Any], **extra: Any) -> None:
        """Write ``run.json``: settings, versions of packages, platform, command, and ``extra``.

        Secrets are masked, see ``textenv.utils.redaction``.

        Args:
            config: settings of the agent.
            extra: further JSON values, such as the agent's name and the environment's arguments.
        """
        settings = config.to_dict() if isinstance(config, Config) else dict(config)
        info = {
            **masked(extra),
            "config": masked(settings),
            "versions": {"python": platform.python_version(), **_versions()},
            "platform": platform.platform(),
            "command": masked_command(sys.argv),
        }
        write_json(self.info_path, info)

    def read_info(self) -> dict[str, Any]:
        """Read ``run.json``; the class of an agent is named by the module that holds it now.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged.
        """
        info = read_object(self.info_path)
        module, colon, name = str(info.get("agent", "")).partition(":")
        if colon:
            info["agent"] = f"{_FORMER_MODULES.get(module, module)}:{name}"
        return info


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder outlive a power cut; only POSIX systems open folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a source tree on the path that was never installed
            continue
    return versions
