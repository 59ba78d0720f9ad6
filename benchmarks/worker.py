"""A contender in a separate process, controlled line by line, so that several can take turns.

The parent writes ``run`` and reads one line of JSON: the seconds of that cycle and other figures of
the contender. Standard library only, because both sides of the pipe import it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
"""What makes a process compute on one thread of the processor, offline and quietly."""


def memory_mb(field: str = "VmHWM") -> float:
    """Resident memory of this process in MB (1e6 bytes): ``VmHWM`` its peak, ``VmRSS`` now. Linux only.

    Raises:
        ValueError: if the kernel reports no such field.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"field must be one of /proc/self/status, got {field!r}")


def reset_peak_memory() -> float:
    """Reset the kernel's peak of this process, and return the resident memory now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mb("VmRSS")


class Pipe:
    """The contender's end: everything that libraries print goes to stderr, the answers to the parent."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.baseline_mb = 0.0

    def imported(self) -> None:
        """Call after the imports and before any model is built: memory counts from here."""
        self.baseline_mb = reset_peak_memory()

    def answer(self, **values: Any) -> None:
        """Send one line to the parent, with the peak memory so far."""
        peak = memory_mb()
        line = {**values, "peak_mb": peak - self.baseline_mb, "peak_total_mb": peak}
        self._answers.write(json.dumps(line) + "\n")

    def wait(self) -> bool:
        """Block until the parent asks for a cycle; False when it is done."""
        return sys.stdin.readline().strip() == "run"

    def serve(self, cycle: Callable[[], Mapping[str, Any]], **ready: Any) -> None:
        """Answer ``run`` by ``cycle()`` until the parent is done."""
        self.answer(ready=True, **ready)
        while self.wait():
            self.answer(**cycle())


class Worker:
    """The parent's end of a contender."""

    def __init__(self, python: str | Path, module: str, case: Mapping[str, Any]) -> None:
        self.name = module
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process; a pipe would fill up
        self._process = subprocess.Popen(
            [str(python), "-m", module, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD},
        )
        self.ready = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"{self.name} stopped with code {code}:\n{self._errors.read()[-4000:]}")
        return json.loads(line)

    def run(self) -> dict[str, Any]:
        """One cycle: its seconds and what the contender adds."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the contender's process."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._errors.close()


def close_all(workers: Sequence[Worker]) -> None:
    """End several contenders."""
    for worker in workers:
        worker.close()
