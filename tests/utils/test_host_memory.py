"""Freed memory is kept: large tensors soon lie where earlier ones lay and fault no pages in."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.helpers.forked_python import PYTHON
from textenv.utils.host_memory import _is_glibc, keep_freed_memory

FAULTS = """
import json, resource, sys, torch
from textenv.utils.host_memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(count)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
counts = [faults(12_000_000) for _ in range(20)]  # blocks of 48 MB, more than glibc keeps by default
print(json.dumps({"kept": kept, "first": counts[0], "later": min(counts[10:])}))
"""


def run(mode: str) -> dict[str, int]:
    done = PYTHON.run(["-c", FAULTS, mode], env={})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not _is_glibc(), reason="glibc only")
def test_freed_memory_is_kept() -> None:
    kept, plain = run("keep"), run("plain")
    assert kept["kept"] is True
    assert kept["first"] > 1000 and plain["later"] > 1000
    assert kept["later"] < 100


@pytest.mark.skipif(not _is_glibc(), reason="glibc only")
def test_the_users_own_setting_wins() -> None:
    # glibc reads it when a process starts, so this one is not forked.
    command = [sys.executable, "-c", FAULTS, "keep"]
    environment = {"MALLOC_TRIM_THRESHOLD_": "1048576"}
    found = json.loads(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)
    assert found["kept"] is False
    assert found["later"] > 1000


def test_refuses_no_size() -> None:
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        keep_freed_memory(0)
