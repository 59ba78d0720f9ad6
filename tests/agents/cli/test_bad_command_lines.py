"""Mistakes on command lines and in their files: one line names what is wrong, and nothing is left."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.models import letters, save_tiny
from textenv.agents.cli.flags import Flags
from textenv.agents.cli.main import main

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


LETTERS = letters("abcdefgh")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny language model with its tokenizer."""
    return str(save_tiny(tmp_path_factory.mktemp("bad") / "model", LETTERS))


TRAIN = [*BASE, "--task=probe-end", "--settings.iterations=1"]
UNPLACED = [token for token in TRAIN if not token.startswith("--run_dir")]
FEW = ["--env.max_new_tokens=2", "--num_envs=2"]
MORE: dict[str, tuple[list[str], str]] = {
    "a device": ([*TRAIN, "--policy.device=gpu"], "policy.device must be a device that this machine has"),
    "a task's argument": ([*TRAIN, "--env.task_kwargs={sed: 1}"], "sed"),
    "settings as a number": ([*TRAIN, "--settings=5"], "settings"),
    "env as text": ([*TRAIN, "--env=x"], "env"),
    "a reward's argument": (
        [*TRAIN, "--reward=[length, {coef: x}]"],
        "in the reward ['length', {'coef': 'x'}]",
    ),
    "a reward file with a mistake": ([*TRAIN, "--reward=syntax.py:f"], "syntax.py, line 1: invalid syntax"),
    "a reward file that exits": ([*TRAIN, "--reward=leaves.py:f"], "it ends the program (sys.exit(3))"),
    "a reward file that raises": ([*TRAIN, "--reward=raises.py:f"], "boom"),
    "an import with a mistake": (["--import", "syntax.py", "agents"], "syntax.py, line 1: invalid syntax"),
    "an import that exits": (["--import=leaves.py", "agents"], "it ends the program (sys.exit(3))"),
    "a logger twice": (
        [*TRAIN, "--loggers=[rich, rich]"],
        "loggers must differ from each other, got 'rich' twice",
    ),
    "a run folder in a file": ([*UNPLACED, "--run_dir=file.txt/run"], "file.txt"),
    "a run folder that is a file": ([*UNPLACED, "--run_dir=file.txt"], "--run_dir must be a folder"),
    "a model that is not there": ([*TRAIN, "--model=no/such"], "model 'no/such' can't be loaded"),
    "a second agent": (["train", "ppo", "sft"], "sft"),
    "resume of nothing": ([*TRAIN, "--resume"], "run is not there, expected the folder of a run"),
    "stages twice": (["pipeline", "--stages=[sft, sft]"], "stages must differ from each other"),
    "a pipeline's reward in a file": (["pipeline", "--config=theirs.yaml"], "--allow_imports"),
    "a pipeline's empty folder": (["pipeline", "--task=probe-end", "--run_dir="], "run_dir must be the path"),
    "too many seeds": (["compare", "seeds.yaml"], "seeds must be <= 10000, got 1000000000000"),
    "a study in a file": (
        ["compare", "seeds.yaml", "--seeds=1", "--run_dir=file.txt"],
        "run_dir must be a folder",
    ),
    "a repository's name": (["push", "folder", "me/a b"], "the repository must be OWNER/NAME, got 'me/a b'"),
    "a repository without owner": (
        ["push", "folder", "name"],
        "the repository must be OWNER/NAME, got 'name'",
    ),
    "an empty repository": (["push", "folder", ""], "the repository must be OWNER/NAME, got ''"),
    "metrics without steps": (["report", "nosteps"], "line 1 is damaged, it lacks 'step'"),
    "metrics of text": (["report", "texts"], "line 1 is damaged, x must be a number, got 'abc'"),
}


@pytest.mark.parametrize("name", MORE)
def test_more(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "syntax.py": "def f(:\n",
        "leaves.py": "import sys\nsys.exit(3)\n",
        "raises.py": "raise ValueError('boom')\n",
        "file.txt": "x",
        "theirs.yaml": "task: prompts\nrewards: ['os:getcwd']\n",
        "seeds.yaml": "agents: {ppo: {}}\ntasks: {probe-end: {}}\nseeds: 1000000000000\n",
        "folder/x": "",
        "nosteps/metrics.jsonl": '{"x": 1}\n',
        "texts/metrics.jsonl": '{"step": 1, "x": "abc"}\n',
    }
    for path, text in files.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(text)
    argv, message = MORE[name]
    assert message in _refused(argv, capsys)
    assert not Path("run").exists()
    assert not {"syntax", "leaves", "raises"} & set(sys.modules)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--out=", "--out must be the path of a file, got ''"),
        ("--out=folder", "--out must be the path of a file, folder is a folder"),
        ("--out=file.txt/x.json", "file.txt is a file"),
        ("--metrics=[5]", "a metric must be a name or [name, {option: value}], got 5"),
        ("--metrics=[[rouge, {colum: x}]]", "metric 'rouge' has no option 'colum'"),
        ("--episodes=0", "episodes"),
        ("--reference=./nowhere", "nowhere"),
        ("--policy.device=gpu", "policy.device must be a device"),
    ],
)
def test_evaluations_are_refused_before_they_begin(
    option: str, message: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("p.jsonl").write_text('{"prompt": "ab"}\n')
    Path("file.txt").write_text("x")
    Path("folder").mkdir()
    given = ["evaluate", model, "--prompts=p.jsonl", "--reward=length", "--episodes=2", *FEW]
    assert message in _refused([*given, option], capsys)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("policy.json", "{"),
        ("policy.json", "{}"),
        ("policy.json", '{"format": "1"}'),
        ("config.json", "["),
        ("config.json", "[]"),
        ("trainer.json", "[]"),
        ("trainer.json", "{}"),
    ],
)
def test_damaged_files_of_a_model_are_named(
    name: str, content: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, "copy")
    Path("copy/policy.json").write_text("{}")
    Path("copy", name).write_text(content)
    Path("p.jsonl").write_text('{"prompt": "ab"}\n')
    errors = _refused(["evaluate", "copy", "--prompts=p.jsonl", "--reward=length", *FEW], capsys)
    assert f"copy/{name} is damaged" in errors
