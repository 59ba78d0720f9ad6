"""The graph of the imports between the project's modules; late and ``TYPE_CHECKING`` imports count, too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

LAYERS: tuple[tuple[str, ...], ...] = (
    ("textenv/utils",),
    ("textenv/prompts",),
    ("textenv/episodes",),
    ("textenv/data", "textenv/partners"),
    ("textenv/envs",),
    ("textenv/modeling", "textenv/scoring.py"),
    ("textenv/generation", "textenv/rollout.py", "textenv/interop.py"),
    ("textenv",),
    ("rewards",),
    ("tasks",),
    ("agents/data",),
    ("agents/losses",),
    ("agents/settings",),
    ("agents/loggers", "agents/distributed"),
    ("agents/policies",),
    ("agents/optim", "agents/checkpointing"),
    ("agents/evaluation",),
    ("agents/rollouts", "agents/integrations"),
    ("agents/base",),
    ("agents",),
    ("agents/reports",),
    ("agents/train_setup",),
    ("agents/training.py",),
    ("agents/pipeline",),
    ("agents/study",),
    ("agents/cli",),
    ("agents/__main__.py",),
)
"""Folders and files, lowest first: a module imports its own folder and lower layers, never a sibling."""


def place(path: str) -> tuple[int, str]:
    """(layer, member of that layer) of a file, by the longest member that it lies in."""
    found = [
        (len(member), i, member)
        for i, layer in enumerate(LAYERS)
        for member in layer
        if path == member or path.startswith(f"{member}/")
    ]
    assert found, f"{path} is in no layer: add its folder to LAYERS"
    _, layer, member = max(found)
    return layer, member


def imports_of(path: Path, modules: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """(module of the project, line) of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                target = name if name in modules else node.module
                if target in modules:
                    yield target, node.lineno


def strongly_connected(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of two or more modules that import each other (Tarjan 1972), largest first."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(groups, key=len, reverse=True)
