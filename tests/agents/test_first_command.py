"""Three cells of the table that ``benchmarks.first_command`` makes, and when a cell counts as learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import first_command
from textenv.agents.base.registry import BUILTIN


@pytest.mark.parametrize("agent", ["reinforce", "filtered-bc", "best-of-n"])
def test_the_command_learns_at_its_defaults(agent: str) -> None:
    found = first_command.measure(agent, "probe-end", episodes=256)
    assert found["learned"] and found["note"] == "", found


def test_half_of_the_gap_and_three_standard_errors() -> None:
    start, end = torch.tensor([0.0, 0.4] * 8).double(), torch.tensor([0.0, 1.0] * 8).double()
    assert not first_command.verdict(start, end, 0.9)  # 0.2 to 0.5 with a standard error of 0.14
    assert first_command.verdict(start, torch.full((16,), 0.56).double(), 0.9)
    assert not first_command.verdict(start, torch.full((16,), 0.54).double(), 0.9)


def test_cells_in_the_file_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[tuple[str, str]] = []

    def measure(agent: str, task: str, *, seed: int) -> dict[str, object]:
        played.append((agent, task))
        return {"agent": agent, "task": task, "seed": seed, "start": 0.1, "end": None, "seconds": 1.0}

    monkeypatch.setattr(first_command, "measure", measure)
    file = tmp_path / "cells.json"
    first_command.run(["ppo"], ["probe-end"], file, 0)
    rows = first_command.run(["ppo", "sft"], ["probe-end"], file, 0)
    assert played == [("ppo", "probe-end"), ("sft", "probe-end")]
    assert json.loads(file.read_text())["cells"] == rows


def test_agents_that_cannot_learn_have_their_reason_with_the_task() -> None:
    from textenv.tasks.registry import make_task

    for task in first_command.TASKS:
        reasons = {agent for agent in BUILTIN if "cannot" in make_task(task).settings(agent)}
        assert reasons >= {"sft", "reward-model"}
