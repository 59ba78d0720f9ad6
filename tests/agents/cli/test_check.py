"""``textenv check``: the exit code, the table, JSON, and players of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from textenv.agents.cli.main import main
from textenv.tasks import registry

TASK = '''
"""A task of one's own, and a player."""
from textenv.tasks import TaskData, letter_tokenizer, register_task


@register_task("check-example")
def build(split="train", wrong=False):
    """Say a."""
    def says_a(completions, **columns):
        return [1.0 if wrong else float(text[:1] == "a") for text in completions]

    return TaskData(prompts=["b"], tokenizer=letter_tokenizer("ab"), rewards=[says_a], max_new_tokens=2)


def player(words, rng):
    return "a"
'''
SMALL = ["--episodes", "4", "--num_envs", "2", "--skip", "[garbage]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "check_mine.py").write_text(TASK)
    (tmp_path / "c.yaml").write_text("player: check_mine.py:player\n")
    yield tmp_path
    registry._TASKS.pop("check-example", None)


def test_a_good_task_has_exit_code_0_and_a_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["check", "check-example", "--import", "check_mine.py", "--player=check_mine.py:player", *SMALL]
    )
    out = capsys.readouterr().out
    assert code == 0 and "errors: 0, warnings: 0" in out
    assert "player" in out and "same-seed" in out and "left out by skip" in out


def test_a_bad_task_has_exit_code_1_and_says_what_is_wrong(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["check", "check-example", "--import=check_mine.py", "--player=check_mine.py:player", *SMALL]
    code = main([*argv, "--env.task_kwargs.wrong=true", "--json"])
    report = json.loads(capsys.readouterr().out)
    (error,) = [found for found in report["findings"] if found["severity"] == "error"]
    assert (code, report["ok"], error["check"]) == (1, False, "player")
    assert report["figures"]["returns"]["player"] == 1.0


def test_what_cannot_be_checked_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, says in (
        (["check"], "name the task: textenv check TASK"),
        (["check", "guess-numbre"], "unknown task 'guess-numbre'; known: guess-number"),
        (["check", "probe-copy", "--player", "best"], "player must be module:function or file.py:function"),
        (["check", "probe-copy", "--config", "c.yaml"], "is code and named in a file"),
        (["check", "probe-copy", "--skip", "[speed]"], "skip must be one of"),
    ):
        assert main(argv) in (1, 2)
        assert says in capsys.readouterr().err, argv
