"""The fenced blocks of the pages, and how each kind runs: what ``test_docs`` builds on."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(path for path in (ROOT / "docs").rglob("*.md") if "reports" not in path.parts)
"""All pages that people wrote; those below ``docs/reports`` were written by studies."""
PYTHON, SHELL, YAML = {"python"}, {"bash", "sh", "shell"}, {"yaml"}
OUTPUT = {"text"}
"""Languages by kind. What a program printed is no block to run."""
_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
_HEREDOC = re.compile(r"<<\s*'?(\w+)'?")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    """The page, seen from the root of the checkout."""
    line: int
    """Line of the page on which its text begins, counted from 1."""
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page in their order.

    Raises:
        ValueError: if a block does not say its language, says one that nothing runs, or is not closed.
    """
    name = page.relative_to(ROOT).as_posix()
    opened: tuple[str, str, str, int] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence:
                opened, lines = (fence[1], fence[2], fence[3].strip(), number + 1), []
        elif fence and fence[2].startswith(opened[1]) and not fence[3].strip():
            indent, _, language, start = opened
            if language not in PYTHON | SHELL | YAML | OUTPUT:
                known = ", ".join(sorted(PYTHON | SHELL | YAML | OUTPUT))
                raise ValueError(
                    f"{name}:{start - 1}: a block must say its language ({known}), got {language!r}"
                )
            yield Block(name, start, language, "".join(f"{text.removeprefix(indent)}\n" for text in lines))
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        raise ValueError(f"{name}:{opened[3] - 1}: the block is not closed")


def sections_of(page: str) -> dict[str, str]:
    """Heading of the second level -> what stands under it."""
    parts = re.split(r"^## (.+)\n", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def commands_of(text: str) -> Iterator[str]:
    """The commands of a shell block: joined where a line goes on, with their here-documents, uncommented.

    >>> list(commands_of("# about\\ntextenv train \\\\\\n    ppo   # one\\ncat > a <<'END'\\nx # y\\nEND\\n"))
    ['textenv train ppo', "cat > a <<'END'\\nx # y\\nEND"]
    """
    lines = iter(text.splitlines())
    for line in lines:
        heredoc = _HEREDOC.search(line)
        if heredoc:
            parts = [line]
            for part in lines:
                parts.append(part)
                if part.strip() == heredoc[1]:
                    break
            yield "\n".join(parts)
            continue
        while line.rstrip().endswith("\\"):
            line = f"{line.rstrip()[:-1].rstrip()} {next(lines, '').strip()}"
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if line:
            yield line.removeprefix("$ ")


def run_command(command: str, more: Sequence[str] = ()) -> None:
    """Run a command in this process where it is one of ours, else by bash.

    Args:
        command: as the page has it; ``> FILE`` at its end is obeyed.
        more: further arguments; an option that the page gives, too, has their value.

    Raises:
        AssertionError: if it does not end with 0.
    """
    from textenv.agents.cli.main import main

    plain = " <<" not in command
    line, _, target = (part.strip() for part in command.partition(" > ")) if plain else (command, "", "")
    tokens = shlex.split(line) if plain else [""]
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        if tokens[0] == "textenv":
            code = main([*without_options(tokens[1:], more), *more])
        elif tokens[0] in ("python", "python3"):
            code = _python([*tokens[1:], *more])
        else:
            done = subprocess.run(["bash", "-euc", command], text=True, capture_output=True, check=False)
            code = done.returncode
            print(done.stdout, done.stderr)
    if target and tokens[0] in ("textenv", "python", "python3"):
        Path(target).write_text(out.getvalue(), encoding="utf-8")
    printed = f"{errors.getvalue()}\n{out.getvalue()}"
    assert code == 0, f"`{command}` with {list(more)} ended with {code}:\n{printed}"


def without_options(tokens: Sequence[str], others: Sequence[str]) -> list[str]:
    """The arguments without the options that others give, too.

    >>> without_options(["train", "ppo", "--seed", "1", "--run_dir=r"], ["--seed", "2"])
    ['train', 'ppo', '--run_dir=r']
    """
    given = {token.partition("=")[0] for token in others if token.startswith("--")}
    kept: list[str] = []
    dropping = False
    for token in tokens:
        if token.startswith("--"):
            name, equals, _ = token.partition("=")
            dropping = name in given and not equals
            if name in given:
                continue
        if not dropping:
            kept.append(token)
    return kept


@contextmanager
def registries_kept() -> Iterator[None]:
    """What is registered within the block is forgotten at its end, as at the end of a process."""
    from textenv.agents.base import registry
    from textenv.agents.loggers import registry as loggers
    from textenv.agents.losses import advantages
    from textenv.agents.losses import aggregation as aggregations
    from textenv.rewards import registry as rewards
    from textenv.tasks import registry as tasks

    tables: list[dict[str, Any]] = [rewards.REWARDS, rewards.OPTIONS, tasks._TASKS, registry.AGENTS]
    tables += [advantages.ADVANTAGES, aggregations.AGGREGATIONS, loggers.LOGGERS]
    before = [dict(table) for table in tables]
    try:
        yield
    finally:
        for table, kept in zip(tables, before, strict=True):
            for name in [name for name in table if name not in kept and not _ours(table[name])]:
                del table[name]


def _ours(thing: Any) -> bool:
    """Whether the library itself registered it, when one more of its modules was imported."""
    return str(getattr(thing, "__module__", "")).startswith("textenv.")


def _python(arguments: Sequence[str]) -> int:
    """``python FILE ...`` or ``python -m MODULE ...``."""
    before, main_module = sys.argv, sys.modules["__main__"]
    module = arguments[0] == "-m"
    sys.argv = list(arguments[1:] if module else arguments)
    try:
        with registries_kept():
            if module:
                runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    finally:
        sys.argv, sys.modules["__main__"] = before, main_module
    return 0


def run_python(block: Block, module: ModuleType, folder: Path) -> None:
    """Run a Python block in the module of its page; errors show the page's line numbers."""
    file = folder / f"{block.page.replace('/', '-')}-{block.line}.py"
    file.write_text("\n" * (block.line - 1) + block.text, encoding="utf-8")
    module.__file__ = str(file)
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), vars(module))


def check_yaml(block: Block) -> None:
    """Write the file that the first line names (``# first.yaml``), and let its command read the options."""
    text = block.text
    found = yaml.safe_load(text)
    assert isinstance(found, Mapping), f"{block.place}: expected settings, name: value, got {found!r}"
    named = re.match(r"# ([\w.-]+\.yaml)\n", text)
    file = Path(named[1] if named else "block.yaml")
    file.write_text(text, encoding="utf-8")
    if "agents" in found:
        run_command(f"textenv compare {file} --print_config")
    elif "agent" in found:
        run_command(f"textenv train --config {file} --print_config")
    elif not named:
        run_command(f"textenv pipeline --config {file} --print_config")
