"""Pages of the API reference: every public name of the packages, from their stubs."""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path

from textenv.agents.base.registry import BUILTIN

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "textenv.episodes": "Records of generated episodes and of preference pairs, and their files.",
    "textenv.prompts": "Tokenized prompts.",
    "textenv.data": "Users' files and data sets as prompts, episodes and preference pairs.",
    "textenv.partners": "Other roles in episodes of several turns: games, tools, users.",
    "textenv.rewards": "Reward terms, the wrappers that apply them, and their registry.",
    "textenv.tasks": "Tasks: prompts, a tokenizer, rewards and limits under one name.",
    "textenv.agents.losses": "Losses and advantages: pure functions of tensors.",
    "textenv.agents.evaluation": "Evaluation of policies and of reward models.",
    "textenv.agents.pipeline": "Supervised fine-tuning, reward model and RL, one after the other.",
    "textenv.agents.study": "Comparison studies: agents x tasks x seeds, with statistics for few runs.",
    "textenv.agents": "Agents, their settings, training and evaluation.",
    "textenv": "The environment, rollouts, and the names that most scripts need.",
}
"""Package -> its line, in the order in which an object finds the page that describes it."""


@dataclass(frozen=True)
class PublicName:
    """A name in ``__all__`` of a package."""

    package: str
    name: str
    module: str
    """The module that defines it."""

    @property
    def path(self) -> str:
        """Where the object is defined, with its name."""
        return f"{self.module}.{self.name}"

    @property
    def source(self) -> str:
        """Its file, seen from the root of the repository."""
        path = module_file(self.module)
        assert path is not None, self.module
        return path

    @property
    def page(self) -> str:
        """The page that describes it, if this package does: large packages have several."""
        stem = self.package.replace(".", "_")
        if self.package == "textenv.agents":
            if ".settings." in self.module:
                return f"reference/{stem}_settings.md"
            if f"{self.module}:{self.name}" in BUILTIN.values():
                return f"reference/{stem}_algorithms.md"
        return f"reference/{stem}.md"


TITLES = {
    "reference/textenv_agents_settings.md": "textenv.agents: settings",
    "reference/textenv_agents_algorithms.md": "textenv.agents: algorithms",
}


def module_file(module: str) -> str | None:
    """The file of a module, seen from the root of the repository."""
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in ("agents", "rewards", "tasks"):
        parts = parts[1:]
    for path in (Path(*parts).with_suffix(".py"), Path(*parts, "__init__.py")):
        if (ROOT / path).is_file():
            return path.as_posix()
    return None


def public_names() -> list[PublicName]:
    """Every name in ``__all__`` of the packages, with the module that the stub imports it from.

    Raises:
        ValueError: if ``__all__`` has a name that the stub does not import.
    """
    found = []
    for package in PACKAGES:
        module = importlib.import_module(package)
        stub = Path(str(module.__file__)).with_suffix(".pyi")
        modules = {}
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                where = f"{package}.{node.module}" if node.level else str(node.module)
                modules |= {alias.asname or alias.name: where for alias in node.names}
        for name in module.__all__:
            if name not in modules:
                raise ValueError(f"{stub}: __all__ names {name}, which is not imported there")
            found.append(PublicName(package, name, modules[name]))
    return found


def reference_pages() -> dict[str, str]:
    """Page -> its Markdown. Each object is described once; other packages that have its name link there."""
    home: dict[str, PublicName] = {}
    for name in public_names():
        home.setdefault(name.path, name)
    described: dict[str, list[PublicName]] = {}
    for name in home.values():
        described.setdefault(name.page, []).append(name)
    pages = {}
    for package, line in PACKAGES.items():
        names = [name for name in public_names() if name.package == package]
        main = f"reference/{package.replace('.', '_')}.md"
        pages[main] = "\n".join(
            [f"# {package}", "", line, "", *table(names), "", *descriptions(described.get(main, []))]
        )
    for page, title in TITLES.items():
        pages[page] = "\n".join(
            [f"# {title}", "", *table(described[page]), "", *descriptions(described[page])]
        )
    return pages


def table(names: list[PublicName]) -> list[str]:
    """A table of names, each with links to its description and its source."""
    rows = [
        f"| [`{name.name}`][{name.path}] | [{name.source}](../source/{name.source}.md) |"
        for name in sorted(names, key=lambda name: name.name.lower())
    ]
    return ["| name | source |", "| --- | --- |", *rows]


def descriptions(names: list[PublicName]) -> list[str]:
    """What mkdocstrings reads: one block per object."""
    return [f"::: {name.path}\n" for name in sorted(names, key=lambda name: name.name.lower())]
