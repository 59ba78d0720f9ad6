"""Folders of the pipeline's stages: their inputs, whether they are reused, and what differs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from textenv.agents.pipeline.config import PipelineConfig
from textenv.agents.settings.base import Config
from textenv.utils.json_files import read_object, write_json
from textenv.utils.redaction import masked

STAGE_FILE = "stage.json"


class StageError(RuntimeError):
    """A stage can't run, or its folder can't be used."""


class Stage(NamedTuple):
    """A stage and what it is made from."""

    name: str
    """One of ``STAGES``."""
    settings: Config
    """Its agent's."""
    inputs: Sequence[Any]
    """Other inputs as JSON values; of a file also its size and modification time."""
    after: Sequence[str] = ()
    """Stages on whose models it depends."""


class StageFolders:
    """The folders of stages in a run's folder.

    Args:
        run_dir: the run's folder.
        config: settings of the pipeline.
        overwrite: whether stages that were made with other settings are repeated.
    """

    def __init__(self, run_dir: Path, config: PipelineConfig, *, overwrite: bool) -> None:
        self.run_dir, self.config, self.overwrite = run_dir, config, overwrite
        self.hashes: dict[str, str] = {}
        """Stage -> hash of what it is made from; the stages before it must be hashed first."""

    def made_from(self, stage: Stage) -> tuple[str, dict[str, Any]]:
        """What a stage is made from, and the hash of it."""
        written = {
            "settings": stage.settings.to_dict(),
            "task": [self.config.task, self.config.task_kwargs],
            "inputs": [identity(item) for item in stage.inputs],
            "after": {name: self.hashes[name] for name in stage.after if name in self.hashes},
        }
        key = hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]
        self.hashes[stage.name] = key
        return key, written

    def finished(self, stage: Stage) -> dict[str, Any] | None:
        """The figures of a stage that is finished and can be reused; None if it is to run.

        Raises:
            StageError: if it was made from other settings and these are not to be overwritten, is not among
                the stages to run, or its folder holds something else.
        """
        key, written = self.made_from(stage)
        folder, file = self.run_dir / stage.name, self.run_dir / stage.name / STAGE_FILE
        known = self._read(file) if file.is_file() else None
        if known is not None and known["hash"] != key and stage.name in self.config.stages:
            if not self.overwrite:
                differ = ", ".join(differences(masked(known["made_from"]), masked(written)))
                raise StageError(
                    f"{folder} was made from other settings ({differ}); "
                    "choose another run_dir, or overwrite=True"
                )
            return None
        if known is not None and known["finished"]:
            return dict(known["figures"])
        if stage.name not in self.config.stages:
            raise StageError(
                f"the stage {stage.name!r} is not among the stages to run, and {folder} is not finished"
            )
        if known is None and folder.is_dir() and any(folder.iterdir()):
            raise StageError(f"{folder} holds other files; choose another run_dir")
        return None

    def begin(self, stage: Stage) -> None:
        """Note that a stage runs; what other settings made in its folder is removed."""
        key, written = self.made_from(stage)
        file = self.run_dir / stage.name / STAGE_FILE
        if file.is_file() and self._read(file)["hash"] != key:
            shutil.rmtree(file.parent)
        write_json(file, {"hash": key, "made_from": masked(written), "finished": False})

    def end(self, stage: Stage, figures: Mapping[str, Any]) -> None:
        """Note that a stage is finished, with its figures."""
        key, written = self.made_from(stage)
        content = {
            "hash": key,
            "made_from": masked(written),
            "finished": True,
            "figures": dict(figures),
        }
        write_json(self.run_dir / stage.name / STAGE_FILE, content)

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        fields = {"hash": str, "made_from": dict, "finished": bool}
        try:
            known = read_object(file, fields)
            if known["finished"]:
                read_object(file, {"figures": dict})
            read_made_from(known["made_from"], file)
        except ValueError as error:
            raise StageError(f"{error}; remove the folder {file.parent} to repeat the stage") from error
        return known


def read_made_from(written: Mapping[str, Any], file: Path) -> None:
    """Check the form of what a stage was made from.

    Raises:
        ValueError: if a part is missing or of another type.
    """
    for name, kind in (("settings", dict), ("task", list), ("inputs", list), ("after", dict)):
        if not isinstance(written.get(name), kind):
            raise ValueError(f"{file} is damaged, made_from.{name} is missing or of another type")


def identity(value: Any) -> Any:
    """What stands for an input in a stage's hash: of a file also its size and time of change."""
    if isinstance(value, str) and Path(value).is_file():
        facts = Path(value).stat()
        return [value, facts.st_size, facts.st_mtime_ns]
    return value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Settings that differ, by name and value."""
    old, new = one["settings"], other["settings"]
    names = sorted({*old, *new})
    listed = [
        f"{name}: {old.get(name)!r}, now {new.get(name)!r}"
        for name in names
        if old.get(name) != new.get(name)
    ]
    listed += [name for name in ("task", "inputs", "after") if one[name] != other[name]]
    return listed
