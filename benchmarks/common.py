"""Timing, memory and output shared by the benchmarks: one thread, interleaved contenders, best of n.

Contenders take turns, so that a slow phase of the machine affects all of them. The best turn of each counts,
because noise only adds time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.worker import ONE_THREAD


def one_thread() -> None:
    """Compute on one thread from here on, offline."""
    for name, value in ONE_THREAD.items():
        if name != "CUDA_VISIBLE_DEVICES":
            os.environ.setdefault(name, value)
    torch.set_num_threads(1)


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def interleave(
    contenders: Mapping[str, Callable[[], float]], *, repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Let contenders take turns: name -> its ``repeats`` results, in order; warm-up turns are dropped.

    Raises:
        ValueError: if repeats < 1 or warmup < 0.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be >= 1, got {repeats}")
    if warmup < 0:
        raise ValueError(f"warmup must be >= 0, got {warmup}")
    results: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, run in contenders.items():
            result = run()
            if turn >= warmup:
                results[name].append(result)
    return results


def matmul_flops(*, size: int = 1536, repeats: int = 5) -> float:
    """FLOP/s of a large float32 matrix product on the current number of threads: the limit of the machine."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = min(seconds(lambda: a @ b) for _ in range(repeats + 1))
    return 2 * size**3 / best


def environment() -> dict[str, Any]:
    """Versions and machine, written with the figures."""
    packages = ("torch", "transformers", "gymnasium", "textenv")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load": list(os.getloadavg()),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in packages},
    }


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
    """Print a table; numbers are right-aligned, floats get three significant digits."""
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console(width=None if os.isatty(1) else 120)
    console.print(title, style="bold")
    console.print(table)
    if note:
        console.print(note)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: a first look, not a result")
    return parser


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write figures with the environment they were measured in; nothing if no file was asked for."""
    if path is not None:
        path.write_text(json.dumps({**figures, "environment": environment()}, indent=2) + "\n")
