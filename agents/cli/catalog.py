"""What is registered, with one line about each, read from the source: nothing heavy is imported to say it."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

from textenv.agents.base.registry import AGENTS, BUILTIN


def agents() -> dict[str, str]:
    """Agent -> its line: those that come with the library, and those that were registered."""
    return {name: agent(name) for name in [*BUILTIN, *(name for name in AGENTS if name not in BUILTIN)]}


def agent(name: str) -> str:
    """The line of a registered agent."""
    if name in AGENTS:
        return _documented(AGENTS[name])
    module, attribute = BUILTIN[name].split(":")
    found = next(node for node in _definitions(_source(module)) if node.name == attribute)
    return _first_line(found)


def tasks() -> dict[str, str]:
    """Task -> its line."""
    return _registered("textenv.tasks", "register_task")


def rewards() -> dict[str, str]:
    """Reward -> its line."""
    return _registered("textenv.rewards", "register_reward")


def _registered(package: str, decorator: str) -> dict[str, str]:
    """What the modules of a package register by a decorator, and what others have registered by now."""
    import sys

    lines = {}
    for path in sorted(_source(package).parent.glob("*.py")):
        for node in _definitions(path):
            for call in node.decorator_list:
                named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
                if named and call.func.id == decorator and isinstance(call.args[0], ast.Constant):  # type: ignore[attr-defined]
                    lines[str(call.args[0].value)] = _first_line(node)  # type: ignore[attr-defined]
    registry = sys.modules.get(f"{package}.registry")  # imported already, if the user's code registered any
    return lines | (registry.describe() if registry is not None else {})


def _source(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin)


def _definitions(path: Path) -> list[ast.ClassDef | ast.FunctionDef]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]


def _first_line(node: ast.ClassDef | ast.FunctionDef) -> str:
    lines = (ast.get_docstring(node) or "").splitlines()
    return lines[0] if lines else ""


def _documented(thing: object) -> str:
    lines = (thing.__doc__ or "").strip().splitlines()
    return lines[0] if lines else ""
