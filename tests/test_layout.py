"""Where modules lie and whom they import: one direction, no cycle, folders that can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.import_graph import imports_of, place, strongly_connected
from tests.test_project import FILES, ROOT, label, module_name

MODULES = {module_name(path): label(path) for path in FILES}
"""Module -> its file."""
ALGORITHMS = {
    *("a2c", "archer", "best_of_n", "dpo", "grpo", "ilql", "monte_carlo", "nlpo", "online_dpo", "ppo"),
    *("reinforce", "reward_model", "rft", "rloo", "rwr", "sb3", "sft"),
}


@pytest.mark.parametrize("path", FILES, ids=label)
def test_imports_point_down(path: Path) -> None:
    layer, member = place(label(path))
    for module, line in imports_of(path, MODULES):
        target = MODULES[module]
        assert target != "textenv/__init__.py", f"{label(path)}:{line} imports the package, which imports all"
        other, where = place(target)
        down = where == member or other < layer
        assert down, f"{label(path)}:{line} imports {target}, which is not below it"


def test_no_modules_import_each_other() -> None:
    graph = {module_name(path): {module for module, _ in imports_of(path, MODULES)} for path in FILES}
    graph = {module: others - {module} for module, others in graph.items()}
    assert strongly_connected(graph) == []


def test_a_cycle_is_found() -> None:
    """The search itself: two groups, one of them across a chain, and a module that imports itself alone."""
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f", "d"}, "f": {"e"}}
    assert strongly_connected(graph) == [["a", "b", "c"], ["e", "f"]]
    assert strongly_connected({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_a_late_import_counts(tmp_path: Path) -> None:
    file = tmp_path / "late.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from textenv.agents import training\n"
        "def f():\n    import textenv.agents.ppo\n"
    )
    assert [module for module, _ in imports_of(file, MODULES)] == [
        "textenv.agents.training",
        "textenv.agents.ppo",
    ]


def test_folders_can_be_read() -> None:
    assert len(list((ROOT / "textenv").glob("*.py"))) <= 5
    top = {path.stem for path in (ROOT / "agents").glob("*.py")}
    assert top - ALGORITHMS <= {"__init__", "__main__", "batch", "make", "training"}
    assert top >= ALGORITHMS
