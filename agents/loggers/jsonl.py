"""JSON lines: metrics of a run on disk, one object per line; studies and plots read them."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from textenv.utils.files import atomic_file

if TYPE_CHECKING:
    from textenv.agents.loggers.registry import RunInfo

METRICS_FILE = "metrics.jsonl"
TABLES_FOLDER = "tables"
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class JSONLLogger:
    """Writes ``metrics.jsonl`` and ``tables/NAME.jsonl`` in the folder of a run, flushed line by line.

    A line of metrics starts with ``step``, ``episodes`` (if among the metrics) and ``time``: seconds that the
    run has taken, which continue over a resume. JSON has no NaN: non-finite numbers are the strings
    "NaN", "Infinity" and "-Infinity", which ``read_metrics`` and Python's ``float`` turn back.

    Args:
        run_dir: folder of the run, made if it is not there.
        resume_step: None for a fresh run. Else lines after this step are dropped, as is a line cut off by a
            crash.

    Raises:
        FileExistsError: if a fresh run's folder already holds metrics.
    """

    def __init__(self, run_dir: str | os.PathLike[str], *, resume_step: int | None = None) -> None:
        self.run_dir = Path(run_dir)
        self.resume_step = resume_step
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._files: dict[Path, IO[str]] = {}
        path = self.run_dir / METRICS_FILE
        if resume_step is None and path.exists() and path.stat().st_size:
            raise FileExistsError(
                f"{path} holds the metrics of another run; resume that run or choose another run_dir"
            )
        self._metrics = self._open(path)
        earlier = read_metrics(path)
        self._started = time.monotonic() - (float(earlier[-1].get("time", 0.0)) if earlier else 0.0)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line of numbers."""
        row: dict[str, Any] = {"step": step}
        if "episodes" in metrics:
            row["episodes"] = metrics["episodes"]
        row["time"] = time.monotonic() - self._started
        self._write(self._metrics, {**row, **metrics, "step": step})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Append lines of rows, ``{"step": ..., column: value}``, to ``tables/NAME.jsonl`` ("/" becomes "_").

        Raises:
            ValueError: if the name can't be a file name.
        """
        path = self.run_dir / TABLES_FOLDER / f"{name.replace('/', '_')}.jsonl"
        if path not in self._files:
            if not name.strip("./") or "\\" in name or "\0" in name:
                raise ValueError(f"a table's name must be a usable file name, got {name!r}")
            path.parent.mkdir(exist_ok=True)
            self._open(path)
        for row in rows:
            self._write(self._files[path], {"step": step, **dict(zip(columns, row, strict=True))})

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def _open(self, path: Path) -> IO[str]:
        if self.resume_step is not None and path.exists():
            _drop_after(path, self.resume_step)
        self._files[path] = path.open("a", encoding="utf-8")
        return self._files[path]

    @staticmethod
    def _write(file: IO[str], row: Mapping[str, Any]) -> None:
        file.write(json.dumps(_explicit(row), allow_nan=False) + "\n")
        file.flush()


def jsonl_logger(info: RunInfo) -> JSONLLogger:
    """The logger that writes in the folder of a run.

    Raises:
        ValueError: if the run has no folder.
        FileExistsError: if a fresh run's folder already holds metrics.
    """
    if info.run_dir is None:
        raise ValueError("the logger 'jsonl' needs a run_dir, got None")
    return JSONLLogger(info.run_dir, resume_step=info.resume_step)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the metrics of a run, non-finite numbers as floats; a last line cut off by a crash is left out.

    Args:
        path: the file, or the folder of a run, which stands for its ``metrics.jsonl``.

    Raises:
        ValueError: if a line other than the last is no JSON object.

    Warns:
        UserWarning: if the last line was cut off.
    """
    path = Path(path)
    if path.is_dir():
        path = path / METRICS_FILE
    return [
        {
            key: _NON_FINITE.get(value, value) if isinstance(value, str) else value
            for key, value in row.items()
        }
        for row, _ in _rows(path)
    ]


def _rows(path: Path) -> list[tuple[dict[str, Any], str]]:
    """(parsed object, raw line) for every complete line of a file."""
    rows = []
    lines = path.read_bytes().split(b"\n")
    if lines.pop():  # what a killed process had begun to write
        warnings.warn(f"{path}: the last line was cut off and is left out", stacklevel=3)
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8")
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} must hold a JSON object, got {text[:80]}")
        rows.append((row, text + "\n"))
    return rows


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines up to ``step``; the file is replaced as a whole, so a crash can't lose what is kept."""
    found = _rows(path)
    for number, (row, _) in enumerate(found, start=1):
        if isinstance(row.get("step"), bool) or not isinstance(row.get("step"), int | float):
            raise ValueError(f"{path}, line {number} must have a step, got {row.get('step')!r}")
    kept = [line for row, line in found if row["step"] <= step]
    with atomic_file(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _explicit(value: Any) -> Any:
    """The value with every non-finite number written out as a string."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _explicit(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_explicit(item) for item in value]
    return value
