"""Hashes of short training runs: whether a change of the code changes a number.

    python -m benchmarks.fingerprints --out before.json
    python -m benchmarks.fingerprints --out after.json --compare before.json [--root CHECKOUT] [--only ppo]

All runs of ``benchmarks.fingerprint_runs`` are made with the code of ``--root`` (by default this checkout),
in one process, on one thread of the CPU; it takes about 80 seconds. Four hashes of each are kept:

- ``weights``: all tensors of the policy in memory, with their names, dtypes and shapes;
- ``values``: the same without the names;
- ``saved``: the tensors of the files that the agent saves (weights, optimizer, target networks, reference);
- ``metrics``: all logged metrics and the last evaluation, without times, speeds and memory.

Hashes are equal on one machine with one version of torch; other processors sum in another order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.worker import ONE_THREAD, ROOT

TIMING = re.compile(r"(^|[/_])(time|seconds|throughput|memory|fps)([/_]|$)")
"""Names of metrics that differ between two runs of the same code."""
ENVIRONMENT = {**ONE_THREAD, "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}
Hashes = dict[str, Any]


def tensor_digest(tensor: Any) -> str:
    """sha256 of dtype, shape and the bytes of a tensor."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)} ".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tensors_digest(tensors: Mapping[str, Any], *, names: bool = True) -> str:
    """sha256 of tensors in the order of their names; without names in the order of their own digests."""
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    lines = [f"{name} {digests[name]}" for name in sorted(digests)] if names else sorted(digests.values())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def lasting(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics without times, speeds and memory."""
    return {name: value for name, value in row.items() if not TIMING.search(name)}


def columns_digest(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Name of each metric -> the first 16 digits of the sha256 of its values, exactly, row by row."""
    columns: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        for name, value in lasting(row).items():
            exact = (
                float(value).hex() if isinstance(value, int | float) else json.dumps(value, sort_keys=True)
            )
            columns.setdefault(name, []).append(f"{number} {exact}")
    return {
        name: hashlib.sha256("\n".join(columns[name]).encode()).hexdigest()[:16] for name in sorted(columns)
    }


def rows_hashes(rows: Sequence[Mapping[str, Any]]) -> Hashes:
    """The hash of all rows of metrics, and those of each metric, which say where a difference lies."""
    columns = columns_digest(rows)
    whole = hashlib.sha256(json.dumps([len(rows), columns]).encode()).hexdigest()
    return {"metrics": whole, "columns": columns}


def differences(before: Mapping[str, Hashes], after: Mapping[str, Hashes]) -> list[str]:
    """What differs between two recordings, one line per run; a run that only one of them has differs, too."""
    found = []
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            found.append(f"{name}: only in the {'later' if name in after else 'earlier'} recording")
            continue
        old, new = before[name], after[name]
        parts = [part for part in ("error", "weights", "saved", "metrics") if old.get(part) != new.get(part)]
        if "weights" in parts and old.get("values") == new.get("values"):
            parts[parts.index("weights")] = "names of weights (their values are equal)"
        if "metrics" in parts:
            ours, theirs = old.get("columns", {}), new.get("columns", {})
            columns = [each for each in sorted({*ours, *theirs}) if ours.get(each) != theirs.get(each)]
            shown = ", ".join(columns[:6]) + (f" and {len(columns) - 6} more" if len(columns) > 6 else "")
            parts[parts.index("metrics")] = f"metrics ({shown})"
        if parts:
            found.append(f"{name}: {', '.join(parts)}")
    return found


def record(root: Path, only: str = "") -> dict[str, Any]:
    """The hashes of all runs with the code of a checkout: ``{"environment": ..., "runs": name -> hashes}``.

    Raises:
        FileNotFoundError: if the checkout has no ``src/textenv``.
        RuntimeError: if the process ends without an answer.
    """
    source = root.resolve() / "src"
    if not (source / "textenv" / "__init__.py").is_file():
        raise FileNotFoundError(f"root must be a checkout with src/textenv, got {root}")
    paths = os.pathsep.join([str(source), str(ROOT)])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "runs.json"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.fingerprint_worker", str(out), "--only", only],
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": paths},
            cwd=folder,
        )
        if done.returncode or not out.is_file():
            raise RuntimeError(f"the runs with the code of {root} ended with code {done.returncode}")
        found: dict[str, Any] = json.loads(out.read_text())
    if not Path(found["textenv"]).resolve().is_relative_to(root.resolve()):
        raise RuntimeError(f"the runs used {found['textenv']}, expected the code of {root}")
    return found


def main() -> int:
    """Record, write and compare; 1 if a run failed or differs."""
    parser = argparse.ArgumentParser(description="Hashes of short training runs, to compare two checkouts.")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the hashes here")
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="checkout whose code runs (default: this one)"
    )
    parser.add_argument("--compare", type=Path, metavar="FILE", help="hashes to compare with")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs whose name contains this")
    args = parser.parse_args()
    earlier = None if args.compare is None else json.loads(args.compare.read_text())
    found = record(args.root, args.only)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    runs = found["runs"]
    failed = [f"{name}: {run['error']}" for name, run in runs.items() if "error" in run]
    print(f"{len(runs)} runs in {found['seconds']:.0f} s, {len(failed)} failed", *failed, sep="\n  ")
    if earlier is None:
        return 1 if failed else 0
    before = {name: run for name, run in earlier["runs"].items() if args.only in name}
    different = differences(before, runs)
    for line in different:
        print(line)
    print(f"{len(different)} of {len({*before, *runs})} runs differ")
    return 1 if failed or different else 0


if __name__ == "__main__":
    sys.exit(main())
