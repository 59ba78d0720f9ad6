"""The folder of a run: checkpoints are whole or not there, and the run says what it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.settings.base import OnlineConfig


def _save(folder: RunFolder, step: int, text: str = "weights") -> None:
    with folder.checkpoint(step) as path:
        (path / "model.txt").write_text(text)


def test_checkpoints_are_listed_oldest_first_and_pruned(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.latest() is None
    for step in (100, 20, 3):
        _save(folder, step)
    assert [step for step, _ in folder.checkpoints()] == [3, 20, 100]
    assert folder.latest() == folder.checkpoint_dir(100)
    folder.prune(2)
    assert [step for step, _ in folder.checkpoints()] == [20, 100]
    folder.prune(5)
    assert len(folder.checkpoints()) == 2
    with pytest.raises(ValueError, match="keep must be >= 1, got 0"):
        folder.prune(0)


def test_a_checkpoint_that_fails_leaves_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _save(folder, 1, "old")
    with pytest.raises(RuntimeError, match="disk full"), folder.checkpoint(2) as path:
        (path / "model.txt").write_text("half")
        raise RuntimeError("disk full")
    with pytest.raises(RuntimeError, match="disk full"), folder.checkpoint(1) as path:
        raise RuntimeError("disk full")
    assert [step for step, _ in folder.checkpoints()] == [1]
    assert (folder.checkpoint_dir(1) / "model.txt").read_text() == "old"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _save(folder, 1, "old")
    _save(folder, 1, "new")
    assert (folder.checkpoint_dir(1) / "model.txt").read_text() == "new"


def test_a_folder_without_the_marker_is_no_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _save(folder, 1)
    (tmp_path / "checkpoints" / "step-00000009").mkdir()
    (tmp_path / "checkpoints" / "step-notes").mkdir()
    assert folder.latest() == folder.checkpoint_dir(1)
    with pytest.raises(ValueError, match="step must be >= 0, got -1"), folder.checkpoint(-1):
        pass


def test_facts_about_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(FileNotFoundError):
        folder.read_info()
    config = OnlineConfig(iterations=3)
    folder.write_info(config, agent="ppo", task="random-walks")
    info = folder.read_info()
    assert OnlineConfig.from_dict(info["config"]) == config
    assert (info["agent"], info["task"]) == ("ppo", "random-walks")
    assert {"python", "torch", "transformers", "textenv"} <= set(info["versions"])
