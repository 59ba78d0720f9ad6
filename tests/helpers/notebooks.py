"""Notebooks run without a kernel: their code cells, one after the other, in one module.

``python -m tests.helpers.notebooks examples/*.ipynb`` runs notebooks and stores in them what they print.
"""

from __future__ import annotations

import ast
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

Replacements = Sequence[tuple[str, str]]


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook, checked for what this module needs of the format.

    Raises:
        ValueError: if it is not a Python notebook of format 4.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    if notebook.get("nbformat") != 4:
        raise ValueError(f"{path}: nbformat must be 4, got {notebook.get('nbformat')!r}")
    if notebook["metadata"]["kernelspec"]["language"] != "python":
        raise ValueError(f"{path}: the kernel must be Python, got {notebook['metadata']['kernelspec']}")
    return notebook


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cells(path: Path, module: ModuleType, replaced: Replacements = ()) -> list[str]:
    """Run the code cells in ``module``, in the working folder; gives what each prints.

    As in a notebook, the value of a last expression is shown, unless it is None.

    Args:
        path: the notebook.
        module: where the cells run.
        replaced: (text of a cell, what runs in its place): sizes only.

    Raises:
        ValueError: if no cell has a text that is to be replaced.
    """
    cells = ["".join(cell["source"]) for cell in code_cells(read_notebook(path))]
    for old, new in replaced:
        if not any(old in text for text in cells):
            raise ValueError(f"{path.name}: no cell has {old!r}")
        cells = [text.replace(old, new) for text in cells]
    printed = []
    for number, text in enumerate(cells):
        out = io.StringIO()
        tree = ast.parse(text)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        where = f"{path.name}, code cell {number}"
        with redirect_stdout(out):
            exec(compile(tree, where, "exec"), vars(module))
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), where, "eval"), vars(module))
                if value is not None:
                    print(repr(value))
        printed.append(out.getvalue())
    return printed


def store_outputs(path: Path) -> None:
    """Run a notebook and write what its cells print into it."""
    notebook = read_notebook(path)
    before = Path.cwd()
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            printed = run_cells(path, module)
        finally:
            os.chdir(before)
    for count, (cell, text) in enumerate(zip(code_cells(notebook), printed, strict=True), start=1):
        cell["execution_count"] = count
        cell["outputs"] = (
            [{"output_type": "stream", "name": "stdout", "text": text.splitlines(True)}] if text else []
        )
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        store_outputs(Path(argument).resolve())
