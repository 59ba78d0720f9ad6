"""The folder of a run: what is where, checkpoints that appear whole, and facts about the run."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from textenv.agents.config import Config
from textenv.agents.loggers_jsonl import METRICS_FILE
from textenv.atomic import atomic_file, atomic_folder

MARKER = "checkpoint.json"
"""The file that makes a folder a checkpoint; it is written last."""
_PACKAGES = ("textenv", "torch", "transformers", "gymnasium", "datasets", "numpy")


class RunFolder:
    """Paths in the folder of a run.

        run_dir/
            run.json                  settings, versions, command
            metrics.jsonl             one line a logged step
            tables/NAME.jsonl         samples and other tables
            checkpoints/step-00000040/
            best/                     the best agent, where BestCheckpoint is used

    Args:
        path: the folder; nothing is made before something is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def metrics_path(self) -> Path:
        """File of the metrics."""
        return self.path / METRICS_FILE

    @property
    def info_path(self) -> Path:
        """File of the facts about the run."""
        return self.path / "run.json"

    def checkpoint_dir(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
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

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every complete checkpoint, oldest first."""
        found = []
        for folder in (self.path / "checkpoints").glob("step-*"):
            match = re.fullmatch(r"step-(\d+)", folder.name)
            if match and (folder / MARKER).exists():
                found.append((int(match[1]), folder))
        return sorted(found)

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
            shutil.rmtree(folder)

    def write_info(self, config: Config | Mapping[str, Any], **extra: Any) -> None:
        """Write ``run.json``: settings, versions of packages, platform, command, and ``extra``.

        Args:
            config: settings of the agent.
            extra: further JSON values, such as the agent's name and the environment's arguments.
        """
        settings = config.to_dict() if isinstance(config, Config) else dict(config)
        info = {
            **extra,
            "config": settings,
            "versions": {"python": platform.python_version(), **_versions()},
            "platform": platform.platform(),
            "command": sys.argv,
        }
        with atomic_file(self.info_path) as temporary:
            temporary.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")

    def read_info(self) -> dict[str, Any]:
        """Read ``run.json``.

        Raises:
            FileNotFoundError: if there is none.
        """
        return json.loads(self.info_path.read_text(encoding="utf-8"))


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a source tree on the path that was never installed
            continue
    return versions
