"""Ctrl-C and SIGTERM: exit codes, advice that is true, and runs that can be resumed; failed starts."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import textenv
from tests.helpers.models import letters, tiny
from textenv.agents.checkpointing.checkpoint import read_trainer
from textenv.agents.checkpointing.fresh_start import fresh_start
from textenv.agents.checkpointing.run_folder import RunFolder, RunFolderError
from textenv.agents.cli import commands
from textenv.agents.cli.interrupts import Terminated, terminable
from textenv.agents.cli.main import main
from textenv.agents.loggers.jsonl import read_metrics
from textenv.agents.loggers.registry import check_loggers
from textenv.modeling.saved_runs import CorruptCheckpointError, latest_whole, verify
from textenv.utils.json_files import read_object

TOKENIZER = letters("abcdefgh")
CONFIG = tiny(TOKENIZER, positions=16)
TINY = ["--settings.episodes_per_iteration=4", "--settings.minibatches=1", "--settings.epochs=1"]
TINY += ["--env.max_new_tokens=3", "--loggers=[]", "--num_envs=4", "--settings.report=false"]


def zero(completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def train(run_dir: Path | None, reward: Any = zero, **given: Any) -> Any:
    settings = {"iterations": 2, "episodes_per_iteration": 2, "minibatches": 1, "epochs": 1}
    settings |= {"eval_episodes": 2, "report": False}
    return textenv.train(
        "ppo",
        CONFIG,
        prompts=["a"],
        tokenizer=TOKENIZER,
        reward=reward,
        env_kwargs={"max_new_tokens": 2},
        num_envs=2,
        run_dir=run_dir,
        **{"loggers": (), **settings, **given},
    )


# -- interrupts ----------------------------------------------------------------------------------------------

STOP = """
import os, signal
calls = 0
def stop(completions, **columns):
    global calls
    calls += 1
    if calls == {after} and not os.path.exists("go"):
        {how}
    return [0.0] * len(completions)
"""
HOW = {130: "raise KeyboardInterrupt", 143: "os.kill(os.getpid(), signal.SIGTERM)"}


def _command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, after: int) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Path("stopper.py").write_text(STOP.format(after=after, how=HOW[code]))
    given = ["train", "ppo", "--task", "probe-end", *TINY, "--settings.iterations=3"]
    return [*given, "--reward=stopper.py:stop", "--settings.checkpoint_every=1", "--settings.eval_episodes=2"]


@pytest.mark.parametrize("code", [130, 143])
def test_an_interrupted_run_is_resumed_by_the_command_that_it_names(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = _command(tmp_path, monkeypatch, code, after=2)
    before = signal.getsignal(signal.SIGTERM)
    assert main([*command, "--run_dir=run"]) == code
    assert signal.getsignal(signal.SIGTERM) is before
    errors = capsys.readouterr().err
    assert "the same command with --resume continues from run/checkpoints/step-00000001" in errors
    assert latest_whole("run") == (Path("run/checkpoints/step-00000001"), [])
    Path("go").touch()
    assert main([*command, "--run_dir=run", "--resume"]) == 0
    assert [row["step"] for row in read_metrics("run")] == [1, 2, 3]


def test_an_interrupt_before_the_first_checkpoint_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = _command(tmp_path, monkeypatch, 130, after=2)
    command = [token for token in given if not token.startswith("--settings.checkpoint_every")]
    command += ["--settings.checkpoint_every=0", "--run_dir=run"]
    assert main(command) == 130
    errors = capsys.readouterr().err
    assert "no checkpoint was saved yet (see settings.checkpoint_every), so the same command with" in errors
    assert "--resume auto starts again in run" in errors
    Path("go").touch()
    assert main([*command, "--resume", "auto"]) == 0
    assert [row["step"] for row in read_metrics("run")] == [1, 2, 3]


def test_an_interrupted_run_in_a_folder_of_the_default_name_is_told_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_command(tmp_path, monkeypatch, 130, after=2)) == 130
    (run,) = Path("runs").iterdir()
    assert f"the same command with --run_dir {run} --resume continues from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"),
    [("pipeline", "interrupted"), ("evaluate", "interrupted"), ("generate", "interrupted")],
)
def test_commands_without_resume_do_not_advise_it(
    name: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, name, interrupted)
    assert main([name]) == 130
    errors = capsys.readouterr().err
    assert (told in errors, "--resume" in errors) == (True, False)


def test_an_interrupted_pipeline_is_told_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from textenv.agents.pipeline import run as pipeline

    def interrupted(*given: Any, **more: Any) -> None:
        raise Terminated

    monkeypatch.setattr(pipeline, "run_pipeline", interrupted)
    monkeypatch.chdir(tmp_path)
    assert main(["pipeline"]) == 143
    assert "terminated; the same command continues: finished stages are reused" in capsys.readouterr().err


def test_sigterm_outside_of_the_block_is_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


# -- a failed start leaves nothing ---------------------------------------------------------------------------


def _raises(completions: list[str], **columns: Any) -> list[float]:
    raise KeyboardInterrupt


class _BadCallback(textenv.agents.Callback):
    def on_start(self, agent: Any) -> None:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"loggers": ("richh",)}, ValueError),
        ({"loggers": (["rich", {"colour": 1}],)}, TypeError),
        ({"loggers": ("rich", 5)}, TypeError),
        ({"loggers": 5}, TypeError),
        ({"callbacks": [_BadCallback()]}, ValueError),
        ({"callbacks": ["bestt"]}, (ValueError, TypeError)),
        ({"reward": _raises}, KeyboardInterrupt),
        ({"resume": True}, FileNotFoundError),
        ({"resume": "yes"}, ValueError),
        ({"resume": 1}, ValueError),
        ({"policy_kwargs": {"temperatur": 1}}, TypeError),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_failed_start_leaves_nothing(
    given: dict[str, Any], error: Any, there: bool, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "mine"
    if there:
        (run / "plots").mkdir(parents=True)
        (run / "notes.txt").write_text("mine")
    with pytest.raises(error):
        train(run, **given)
    left = sorted(path.relative_to(run).as_posix() for path in run.rglob("*"))
    assert left == (["notes.txt", "plots"] if there else [])
    assert (tmp_path / "runs").exists() == there
    train(run, iterations=1)


def test_what_failed_later_keeps_everything(tmp_path: Path) -> None:
    class Second(textenv.agents.Callback):
        def on_iteration(self, agent: Any, metrics: Any) -> None:
            if agent.iteration == 2:
                raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        train(tmp_path / "run", callbacks=[Second()])
    assert len(read_metrics(tmp_path / "run")) == 1
    with pytest.raises(FileExistsError, match="holds another run"):
        train(tmp_path / "run")


def test_the_episodes_of_a_failed_reward_are_kept_and_do_not_block_the_folder(tmp_path: Path) -> None:
    def broken(completions: list[str], **columns: Any) -> list[float]:
        raise RuntimeError("boom")

    with pytest.raises(Exception, match="boom"):
        train(tmp_path, reward=broken)
    assert [path.name for path in tmp_path.iterdir()] == ["failures"]
    train(tmp_path, iterations=1)


def test_a_start_that_finds_the_folder_in_use_leaves_it_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.running():
        run.write_info({})
        with pytest.raises(RunFolderError, match="in use"), fresh_start(run.path), run.running():
            pass
        assert run.info_path.exists()


@pytest.mark.parametrize(
    ("run_dir", "error", "message"),
    [
        ("", ValueError, "run_dir must be the path of a folder, got ''"),
        ("a\0b", ValueError, "run_dir must be the path of a folder"),
        (5, TypeError, "run_dir must be the path of a folder, got 5"),
        (__file__, NotADirectoryError, "run_dir must be a folder, .* is a file"),
    ],
)
def test_what_is_no_folder_is_refused(run_dir: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train(run_dir)


def test_loggers_are_checked_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    check_loggers(["rich", ["wandb", {"project": "p"}]])
    with pytest.raises(ValueError, match="'tensorboard' needs a run_dir, got None"):
        check_loggers(["tensorboard"])
    monkeypatch.setattr("textenv.agents.loggers.registry.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs tensorboard: pip install 'textenv\[tensorboard\]'"):
        check_loggers(["tensorboard"], "run")


# -- checkpoints that are not what was written ---------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder, checkpoint_every=1)
    return folder


def _first(whole: dict[str, Any]) -> str:
    return next(iter(whole))


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "null": lambda whole: None,
    "a list": lambda whole: [whole],
    "a number": lambda whole: 5,
    "{}": lambda whole: {},
    "without the weights of the optimizer": lambda whole: {
        name: facts for name, facts in whole.items() if not name.startswith("optimizer")
    },
    "facts a list": lambda whole: {**whole, _first(whole): [1]},
    "facts null": lambda whole: {**whole, _first(whole): None},
    "no size": lambda whole: {**whole, _first(whole): {"sha256": "0" * 64}},
    "another key": lambda whole: {**whole, _first(whole): {**whole[_first(whole)], "sizd": 1}},
    "size a text": lambda whole: {**whole, _first(whole): {**whole[_first(whole)], "size": "1"}},
    "size a float": lambda whole: {**whole, _first(whole): {**whole[_first(whole)], "size": 1.0}},
    "size true": lambda whole: {**whole, _first(whole): {**whole[_first(whole)], "size": True}},
    "sum too short": lambda whole: {**whole, _first(whole): {**whole[_first(whole)], "sha256": "ab"}},
    "sum a number": lambda whole: {**whole, _first(whole): {**whole[_first(whole)], "sha256": 5}},
    "outside": lambda whole: {**whole, "../files.json": whole[_first(whole)]},
    "outside, deeper": lambda whole: {**whole, "a/../../b": whole[_first(whole)]},
    "absolute": lambda whole: {**whole, "/etc/passwd": whole[_first(whole)]},
    "of another system": lambda whole: {**whole, "..\\x": whole[_first(whole)]},
    "empty name": lambda whole: {**whole, "": whole[_first(whole)]},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_of_another_form_makes_no_checkpoint(name: str, run: Path) -> None:
    file = run / "checkpoints" / "step-00000002" / "files.json"
    whole = file.read_text()
    try:
        file.write_text(json.dumps(MANIFESTS[name](json.loads(whole))))
        with pytest.raises(CorruptCheckpointError, match=r"files\.json is damaged, "):
            verify(file.parent)
        assert latest_whole(run)[0] == run / "checkpoints" / "step-00000001"
    finally:
        file.write_text(whole)
    verify(file.parent)


def test_every_flipped_bit_of_a_manifest_is_noticed_or_changes_nothing(run: Path) -> None:
    file = run / "checkpoints" / "step-00000002" / "files.json"
    whole = file.read_bytes()
    try:
        for place in range(0, len(whole) * 8, 37):
            data = bytearray(whole)
            data[place // 8] ^= 1 << place % 8
            file.write_bytes(data)
            try:
                verify(file.parent)
            except CorruptCheckpointError:
                continue
            assert json.loads(data) == json.loads(whole)  # a blank between two values, say
        for length in range(0, len(whole) - 2, 97):
            file.write_bytes(whole[:length])
            with pytest.raises(CorruptCheckpointError):
                verify(file.parent)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agent": 5}, "agent must be a string, got 5"),
        ({"format": "1"}, "format must be an integer, got '1'"),
        ({"format": True}, "format must be an integer, got True"),
        ({"config": []}, "config must be an object"),
        ({"counters": {"iteration": "2"}}, "the counter iteration must be an integer >= 0, got '2'"),
        ({"counters": {"iteration": -1}}, "the counter iteration must be an integer >= 0, got -1"),
        ({"stopped": "no"}, "stopped must be true or false, got 'no'"),
        ({"format": 99}, "has format 99, expected at most 1; update textenv"),
    ],
)
def test_a_trainer_file_of_another_form_is_named(
    change: dict[str, Any], message: str, run: Path, tmp_path: Path
) -> None:
    whole = json.loads((run / "checkpoints" / "step-00000002" / "trainer.json").read_text())
    (tmp_path / "trainer.json").write_text(json.dumps({**whole, **change}))
    with pytest.raises(ValueError, match=message):
        read_trainer(tmp_path)
    for name in change:
        del whole[name]
    (tmp_path / "trainer.json").write_text(json.dumps(whole))
    with pytest.raises(CorruptCheckpointError, match=f"lacks '{next(iter(change))}'"):
        read_trainer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"\xff{}", "it is not JSON"),
        (b"[1]", r"it must hold a JSON object, got \[1\]"),
        (b"[" * 100_000, "it is nested too deeply|it is not JSON"),
        (b"null", "it must hold a JSON object, got None"),
    ],
)
def test_a_damaged_json_file_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"run.json is damaged, {message}"):
        read_object(file)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        RunFolder(tmp_path).read_info()


def test_resume_removes_the_checkpoint_that_a_killed_process_had_not_pruned(tmp_path: Path) -> None:
    train(tmp_path, iterations=3, checkpoint_every=1, keep_checkpoints=3)
    train(tmp_path, iterations=3, checkpoint_every=1, keep_checkpoints=2, resume=True)
    assert [step for step, _ in RunFolder(tmp_path).checkpoints()] == [2, 3]
