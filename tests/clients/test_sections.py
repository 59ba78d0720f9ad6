"""docs/works_with.md: each section runs alone, from an empty folder, as a reader would paste it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.doc_blocks import sections_of

SECTIONS = sections_of("docs/works_with.md")


@pytest.mark.parametrize("section", SECTIONS)
def test_section(section: str, tmp_path: Path) -> None:
    """First the settings, under the name in their first line, then the commands, then the script."""
    found: dict[str, str] = {"yaml": "", "bash": "", "python": ""}
    for language, text in re.findall(r"```(\w+)\n(.*?)```", SECTIONS[section], flags=re.DOTALL):
        found[language] += text
    assert found["bash"] or found["python"]
    if found["yaml"]:
        (tmp_path / found["yaml"].splitlines()[0].removeprefix("# ")).write_text(found["yaml"])
    for command in found["bash"].splitlines():
        run(command, tmp_path)
    if found["python"]:
        (tmp_path / "section.py").write_text(found["python"])
        run("python section.py", tmp_path)


def run(command: str, folder: Path) -> None:
    program, *arguments = shlex.split(command)
    assert program == "python"
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
