"""A run that is killed and resumed ends as one that never was: weights, metrics, files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.loggers.jsonl import read_metrics

STEPS = 4
ONLINE = ["ppo", "ppo-lora", "ppo-frozen"]
KINDS = [*ONLINE, "ilql", "sft", "reward-model", "dpo"]
Run = Callable[..., int]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Train in a process of its own: (kind, run_dir, resume, kill, after) -> exit status, -9 if killed."""
    worker = Path(__file__).with_name("resume_worker.py")
    with subprocess.Popen(
        [sys.executable, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        said = iter(process.stdout.readline, "")  # libraries may say something, too
        assert "ready\n" in said, "the worker did not start"

        def ask(
            kind: str, run_dir: Path, resume: Any = False, kill: str | None = None, after: float | None = None
        ) -> int:
            request = {
                "kind": kind,
                "run_dir": str(run_dir),
                "resume": resume,
                "kill": kill,
                "after": after,
            }
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of this kind that was never interrupted."""
    folders: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("whole") / kind
            assert run(kind, folders[kind]) == 0
        return folders[kind]

    return of


def contents(run_dir: Path) -> dict[str, Any]:
    """Everything in the run's folder but times: bytes of files, rows of metrics and tables."""
    found: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("*")):
        name = path.relative_to(run_dir).as_posix()
        if path.is_dir() or name in (".lock", "run.json"):
            continue
        found[name] = path.read_bytes()
    found["metrics.jsonl"] = [
        {key: repr(value) for key, value in row.items() if not key.startswith(("time", "throughput/"))}
        for row in read_metrics(run_dir)
    ]
    return found


def check_same(one: Path, other: Path) -> None:
    ours, theirs = contents(one), contents(other)
    assert sorted(ours) == sorted(theirs)
    assert [row["step"] for row in ours["metrics.jsonl"]] == [str(i + 1) for i in range(STEPS)]
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.mark.parametrize(
    ("kill", "left"),
    [
        ("rollout:3", ""),  # before any checkpoint
        ("rollout:15", ""),
        ("update:6", ""),
        ("log:3", ""),
        ("write:9", "checkpoints/.step-00000002.writing-*/random.safetensors"),
        ("before-rename:3", "checkpoints/.step-00000003.writing-*/checkpoint.json"),
        ("after-rename:3", "checkpoints/step-00000003"),
        ("prune:1", "checkpoints/.step-00000001.pruned-*"),
        ("best:1", ".best.older-*/trainer.json"),
    ],
)
def test_ppo_killed_anywhere_ends_the_same(
    kill: str, left: str, run: Run, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    kind = "ppo-best" if kill.startswith("best") else "ppo"
    assert run(kind, tmp_path, kill=kill) == -9
    assert not left or list(tmp_path.glob(left))
    assert run(kind, tmp_path, "auto") == 0
    check_same(tmp_path, whole(kind))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ppo"])
def test_every_kind_of_agent_and_policy_goes_on(
    kind: str, run: Run, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    assert run(kind, tmp_path, kill="update:9" if kind in ONLINE else "update:3") == -9
    assert run(kind, tmp_path, True) == 0
    check_same(tmp_path, whole(kind))


def test_killed_again_and_again_from_outside(run: Run, whole: Callable[[str], Path], tmp_path: Path) -> None:
    draw = random.Random(3)
    statuses = [run("sft", tmp_path, "auto", after=draw.uniform(0.05, 0.5)) for _ in range(5)]
    assert set(statuses) <= {0, -9}
    assert run("sft", tmp_path, "auto") == 0
    check_same(tmp_path, whole("sft"))


def test_a_damaged_checkpoint_is_passed_over(run: Run, whole: Callable[[str], Path], tmp_path: Path) -> None:
    assert run("sft", tmp_path, kill="update:4") == -9
    folder = RunFolder(tmp_path)
    steps = [step for step, _ in folder.checkpoints()]
    assert steps == [2, 3]
    weights = folder.checkpoint_dir(3) / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert run("sft", tmp_path, True) == 0
    aside = tmp_path / "checkpoints" / "damaged-step-00000003"
    assert (aside / "model.safetensors").read_bytes() == damaged
    for path in [*aside.rglob("*"), aside]:
        path.rmdir() if path.is_dir() else path.unlink()
    check_same(tmp_path, whole("sft"))
    resumes = RunFolder(tmp_path).read_info()["resumes"]
    assert [resume["step"] for resume in resumes] == [2]


def test_a_finished_run_is_left_as_it_is(run: Run, whole: Callable[[str], Path]) -> None:
    before = contents(whole("ilql"))
    assert run("ilql", whole("ilql"), True) == 0
    assert contents(whole("ilql")) == before
