"""``textenv tasks new``: the files of a package with one task, to begin with."""

from __future__ import annotations

import os
import re
from pathlib import Path

from textenv.tasks.plugins import GROUP
from textenv.tasks.registry import task_names
from textenv.utils.files import write_text
from textenv.utils.names import check_name

_PYPROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
description = "The task {name} for textenv"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["textenv"]

[project.optional-dependencies]
dev = ["pytest"]

# textenv finds the task by this entry point: name of the task = module that registers it.
[project.entry-points."{group}"]
"{name}" = "{module}"

[tool.setuptools]
py-modules = ["{module}"]

[tool.pytest.ini_options]
pythonpath = ["."]
testpaths = ["tests"]
"""
_MODULE = '''"""The task "{name}"."""

from functools import partial

from textenv.tasks import TaskData, letter_tokenizer, register_task
from textenv.tasks.models import small_gpt2


def is_right(completions, answer, **columns):
    """1 for the answer, else 0."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def player():
    """A scripted player that does the task well: the words of the episode so far -> its next turn."""
    return repeat


def repeat(words, rng):
    """The letter of the prompt."""
    return words[-1]


@register_task("{name}")
def build(split="train", letters="abcd"):
    """Write the letter of the prompt once more, and stop.

    Args:
        split: "train" or "validation", which are the same.
        letters: the letters.
    """
    tokenizer = letter_tokenizer(letters)
    return TaskData(
        prompts=list(letters),
        columns={{"answer": list(letters)}},
        tokenizer=tokenizer,
        rewards=[is_right],
        max_new_tokens=2,
        optimum=1.0,
        model_config=partial(small_gpt2, tokenizer, layers=1, width=32, heads=2, positions=16),
        make_player=player,
    )
'''
_TEST = '''"""The task keeps the promises that training relies on: see `textenv check --help`."""

import {module}

from textenv.tasks.audit import audit


def test_the_task_passes_the_audit():
    report = audit("{name}")
    assert report.ok, str(report)


def test_the_player_reaches_the_optimum():
    report = audit("{name}", player={module}.repeat)
    assert report.figures["returns"]["player"] == 1.0
'''
_README = """# {name}

A task for textenv, text generation as a Gymnasium environment.

    pip install -e '.[dev]'
    textenv tasks {name}
    textenv check {name}
    textenv train ppo --task {name}
    pytest
"""
_FILES = {
    "pyproject.toml": _PYPROJECT,
    "README.md": _README,
    "{module}.py": _MODULE,
    "tests/test_{module}.py": _TEST,
}


def new_task(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Write a package with one task: its entry point, a module, and a test that runs the audit.

    Args:
        name: of the task and the package.
        folder: of the package; by default ``name`` in the working folder.

    Returns:
        The folder.

    Raises:
        ValueError: if the name is malformed or another task has it.
        FileExistsError: if the folder exists and is not empty.
    """
    check_name("task", name)
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name) is None:
        raise ValueError(f"a package's name must begin and end with a letter or digit, got {name!r}")
    if name in task_names():
        raise ValueError(f"task {name!r} exists already; choose another name")
    place = Path(name if folder is None else folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise FileExistsError(f"{place} exists already; choose another folder")
    module = f"{re.sub(r'[^a-z0-9]', '_', name.lower())}_task"
    if not module.isidentifier():
        module = f"task_{module}"
    for path, text in _FILES.items():
        file = place / path.format(module=module)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text.format(name=name, module=module, group=GROUP))
    return place
