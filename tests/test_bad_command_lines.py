"""Mistakes on command lines and in their files: one line names what is wrong, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from textenv.agents.cli.main import Flags, main

BASE = ["train", "ppo", "--loggers=[]", "--run_dir=run"]
TASK = "task: probe-end\n"


def _refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of errors of a command that must fail."""
    code = main(argv)
    errors = capsys.readouterr().err
    assert code in (1, 2)
    assert "Traceback" not in errors
    assert not list(Path.cwd().rglob("run.json")) + list(Path.cwd().rglob("*.lock"))
    return errors.strip()


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TASK + "task: probe-copy\n", "c.yaml, line 2: the key 'task' is given twice, first in line 1"),
        (
            TASK + "settings:\n  iterations: 1\n  iterations: 2\n",
            "line 4: the key 'iterations' is given twice, first in line 3",
        ),
        (TASK + "env: {task_kwargs: {a: 1, a: 2}}\n", "the key 'a' is given twice"),
        (TASK + "reward: [[length, {coef: 1, coef: 2}]]\n", "the key 'coef' is given twice"),
        (TASK + "? [1]\n: 2\n", "line 2: a key must be a name, got a list or a mapping"),
        (TASK + "settings: [1]\n", r"settings must hold settings, name: value, got [1]"),
        (TASK + "settings: 5\n", "settings must hold settings, name: value, got 5"),
        (TASK + "env: x\n", "env must"),
        (TASK + "settings: {iterations: '3'}\n", "iterations must be int, got the text '3'"),
        (TASK + 'settings: {report: "true"}\n', "report must be bool, got the text 'true'"),
        ("a: " + "[" * 3000 + "\n", "c.yaml"),
    ],
)
def test_files(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text(text)
    assert message in _refused([*BASE, "--config=c.yaml"], capsys)


def test_anchors_and_merged_keys_are_no_repeats(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text(TASK + "env:\n  task_kwargs: &one {a: 1}\nreward: [length, {<<: *one, a: 2}]\n")
    assert "twice" not in _refused([*BASE, "--config=c.yaml"], capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*BASE, "--config="], "--config must be the path of a YAML file, got ''"),
        ([*BASE, "--config", ""], "--config must be the path of a YAML file, got ''"),
        (
            [*BASE, "--task=probe-end", "--env.task_kwargs={a: 1, a: 2}"],
            "--env.task_kwargs, line 1: the key 'a'",
        ),
        ([*BASE, "--task=probe-end", "--loggers=[richh]"], "unknown logger 'richh'"),
        (["train", "ppo", "--task=probe-end", "--run_dir="], "run_dir must be the path of a folder, got ''"),
        (["--version", "stray"], "--version takes nothing else, got stray"),
        (["compare"], "name the study's file: textenv compare STUDY.yaml"),
        (["compare", "--jobs", "2"], "name the study's file"),
    ],
)
def test_options(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in _refused(argv, capsys)


LINE = ("train", "ppo", "--config", "theirs.yaml", "--reward", "my_rewards:polite_long")
LINE += ("--run_dir", "runs/os:getcwd", "--env.task_kwargs", "{data: os:listdir}", "os:walk")


@pytest.mark.parametrize(
    ("argv", "place", "allowed"),
    [
        (LINE, "my_rewards:polite_long", True),
        (LINE, "rewards:polite", False),
        (LINE, "my_rewards:polite", False),
        (LINE, "os:getcwd", False),
        (LINE, "os:listdir", False),
        (LINE, "os:walk", False),
        (("train", "--reward=[length, [weighted, {of: a.py:f}]]"), "a.py:f", True),
        (("train", "--reward=[length, [weighted, {of: a.py:f}]]"), "py:f", False),
        (("train", "--reward+=a:f"), "a:f", True),
        (("compare", "s.yaml", "--tasks.t.judge", "a:f"), "a:f", True),
        (("compare", "s.yaml", "--tasks.t.label", "a:f"), "a:f", False),
        (("pipeline", "--rewards", "[a:f]"), "a:f", True),
        (("train", "--reward="), "a:f", False),
        (("train", "--reward", "--resume"), "--resume", False),
    ],
)
def test_only_what_a_reward_option_names_may_be_imported(
    argv: tuple[str, ...], place: str, allowed: bool
) -> None:
    assert Flags(argv=argv).may_import(place) is allowed
    assert Flags(argv=argv, allow_imports=True).may_import(place)
