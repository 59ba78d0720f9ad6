"""Secrets do not reach files, reports, trackers or messages; files of a run that are damaged are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import textenv
from tests.helpers.models import letters, tiny
from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.cli.main import main
from textenv.agents.loggers.jsonl import JSONLLogger, read_metrics
from textenv.agents.loggers.registry import LOGGERS, make_loggers
from textenv.agents.pipeline.config import PipelineConfig
from textenv.agents.pipeline.stages import Stage, StageFolders
from textenv.agents.reports.report import write_report
from textenv.agents.reports.run_data import read_run
from textenv.agents.sft import SFTConfig
from textenv.agents.study.config import StudyConfig
from textenv.agents.study.outputs import markdown_page
from textenv.agents.study.plan import identity, plan, read_result
from textenv.utils.redaction import is_secret_name, masked, masked_command, masked_text

SECRET = "Zx9secretZx9"
NAMES = ["api_key", "API-KEY", "x.openai_api_key", "hf_token", "token", "access-token", "password", "passwd"]
NAMES += [
    "secret",
    "client_secret",
    "aws_secret_access_key",
    "wandb_key",
    "authorization",
    "credentials",
    "PWD",
]
PLAIN = ["eos_token", "pad_token", "max_new_tokens", "stop_token_ids", "tokenizer", "key", "keys", "monkey"]
PLAIN += ["keep_checkpoints", "token_level", "author", "passes", "authors", "kl_coef", "secretary", "tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_secrets_are_known_by_name(name: str) -> None:
    assert is_secret_name(name)
    assert masked({"a": [{name: SECRET}], name: {"b": [SECRET]}})["a"] == [{name: "***"}]
    assert SECRET not in json.dumps(masked({name: SECRET, "inner": {name: [SECRET, SECRET]}}))
    assert masked({name: 1234})[name] == "***"
    assert masked({name: None, "x": ""}) == {name: None, "x": ""}
    for argv in (["--" + name, SECRET], [f"--{name}={SECRET}"], ["--a.b." + name, SECRET]):
        assert SECRET not in " ".join(masked_command(argv))
    assert SECRET not in " ".join(masked_command(["--kwargs", f"{{{name}: {SECRET}, n: 1}}"]))


@pytest.mark.parametrize("name", PLAIN)
def test_other_names_are_left_alone(name: str) -> None:
    assert masked({name: "abc"}) == {name: "abc"}
    assert masked_command([f"--{name}", "abc", f"--{name}=abc"]) == [f"--{name}", "abc", f"--{name}=abc"]


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET}@host/data.jsonl",
        f"s3://host/x?token={SECRET}&n=1",
        f"https://host/x?a=1&signature={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"api_key={SECRET}, n=1",
        f"{{'api_key': '{SECRET}'}}",
        f'{{"password": "{SECRET}"}}',
        "hf_" + "Zx9secretZx9" * 3,
        "sk-" + "Zx9secretZx9" * 3,
        "ghp_" + "Zx9secretZx9" * 3,
    ],
)
def test_secrets_are_known_by_form(text: str) -> None:
    assert SECRET not in masked_text(text) and "***" in masked_text(text)
    assert SECRET not in json.dumps(masked({"data": [text]}))


@pytest.mark.parametrize(
    "text",
    [
        "https://host/data.jsonl",
        "a:b@c",
        "token: 3 of 4",
        "[length, {coef: 1.0}]",
        "my_rewards.py:polite",
        "sk-short",
    ],
)
def test_other_texts_are_left_alone(text: str) -> None:
    assert masked_text(text) == text


def test_a_run_writes_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    monkeypatch.setattr("sys.argv", ["textenv", "train", "--env.task_kwargs", f"{{api_key: {SECRET}}}"])
    folder.write_info({"judge": {"api_key": SECRET}, "n": 1}, data=f"https://me:{SECRET}@host", agent="ppo")
    folder.note_resume(3)
    assert SECRET not in folder.info_path.read_text()
    info = folder.read_info()
    assert (info["config"], info["agent"]) == ({"judge": {"api_key": "***"}, "n": 1}, "ppo")
    # A run from before: what its report shows is masked, too.
    folder.info_path.write_text(
        json.dumps({"config": {"password": SECRET}, "command": ["x", "--password", SECRET]})
    )
    assert SECRET not in str(read_run(tmp_path).info)
    assert SECRET not in write_report(tmp_path).read_text()


def test_trackers_are_given_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Silent:
        def log(self, metrics: Any, step: int) -> None: ...

        def log_table(self, name: str, columns: Any, rows: Any, step: int) -> None: ...

        def close(self) -> None: ...

    def factory(info: Any) -> Any:
        given.append(info)
        return Silent()

    monkeypatch.setitem(LOGGERS, "noted", factory)
    make_loggers(["noted"], config={"api_key": SECRET, "n": 1}).close()
    assert given[0].config == {"api_key": "***", "n": 1}


def test_stages_are_told_apart_and_write_no_secret(tmp_path: Path) -> None:
    def folders(secret: str) -> StageFolders:
        config = PipelineConfig(task_kwargs={"api_key": secret, "data": "x"})
        return StageFolders(tmp_path, config, overwrite=False)

    stage = Stage("sft", SFTConfig(), [])
    folders(SECRET).begin(stage)
    folders(SECRET).end(stage, {"metrics": {}})
    assert SECRET not in (tmp_path / "sft" / "stage.json").read_text()
    assert folders(SECRET).finished(stage) == {"metrics": {}}


def test_a_study_writes_no_secret() -> None:
    judge = ["weighted", {"of": "length", "weight": 1.0, "api_key": SECRET}]
    config = StudyConfig(agents={"ppo": {}}, tasks={"probe-end": {"judge": judge}}, seeds=1)
    assert SECRET not in json.dumps([identity(config, spec) for spec in plan(config)])
    assert SECRET not in markdown_page(config, [], {}, [], [])
    other = StudyConfig(
        agents={"ppo": {}},
        tasks={"probe-end": {"judge": ["weighted", {**judge[1], "api_key": "other"}]}},
        seeds=1,
    )
    assert [identity(config, s) for s in plan(config)] == [identity(other, s) for s in plan(other)]


def test_messages_show_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "x", "--task", f"https://me:{SECRET}@host"]) in (1, 2)
    assert main(["train", "ppo", "--task=probe-end", f"--env.task_kwargs={{password: {SECRET}}}"]) in (1, 2)
    assert SECRET not in capsys.readouterr().err


# -- damaged files of a run ----------------------------------------------------------------------------------

TOKENIZER = letters("abcdefgh")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    config = tiny(TOKENIZER, positions=16)
    textenv.train(
        "ppo",
        config,
        prompts=["a"],
        eval_prompts=["a"],
        tokenizer=TOKENIZER,
        reward=lambda completions: [0.0] * len(completions),
        run_dir=tmp_path / "run",
        **{"iterations": 1, "episodes_per_iteration": 2, "minibatches": 1, "eval_episodes": 2},
        env_kwargs={"max_new_tokens": 2},
        num_envs=2,
        loggers=(),
    )
    (tmp_path / "run" / "evaluations").mkdir(exist_ok=True)
    (tmp_path / "run" / "episodes").mkdir(exist_ok=True)
    return tmp_path / "run"


CONTENTS = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"5", b'"x"']
FILES = ["run.json", "evaluations/before.json", "evaluations/after.json", "episodes/last.json"]


def test_a_report_names_the_damaged_file(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in FILES:
        file = finished / name
        whole = file.read_bytes() if file.is_file() else None
        for content in CONTENTS:
            file.write_bytes(content)
            capsys.readouterr()
            assert main(["report", str(finished)]) == 1
            errors = capsys.readouterr().err
            assert f"{file} is damaged" in errors and "Traceback" not in errors
        file.write_bytes(b"{}")
        assert main(["report", str(finished)]) == (0 if name == "run.json" else 1)
        file.unlink() if whole is None else file.write_bytes(whole)


@pytest.mark.parametrize(
    "content", [b"null\n", b"[1]\n", b"5\n", b"{\n", b"\xff\n", b'{"step": 1}\nx\n{"step": 2}\n']
)
def test_damaged_metrics_are_named_with_their_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics.jsonl, line \d "):
        read_metrics(tmp_path)


def test_a_last_line_that_was_cut_off_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "x": 2.0}\n{"step": 2, "x"')
    with pytest.warns(UserWarning, match=r"metrics.jsonl: the last line was cut off and is left out"):
        assert read_metrics(tmp_path) == [{"step": 1, "x": 2.0}]
    with pytest.warns(UserWarning, match="cut off"):
        logger = JSONLLogger(tmp_path, resume_step=1)
    logger.log({"x": 3.0}, 2)
    logger.close()
    assert [row["x"] for row in read_metrics(tmp_path)] == [2.0, 3.0]


def test_rows_without_a_step_are_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"x": 1}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 must have a step, got None"):
        JSONLLogger(tmp_path, resume_step=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged, it is not JSON"),
        ("{}", "is damaged, it lacks 'status'"),
        ('{"status": "maybe"}', "status must be 'done' or 'failed', got 'maybe'"),
        ('{"status": "done"}', "it lacks 'figures'"),
        ('{"status": "failed"}', "it lacks 'error'"),
    ],
)
def test_a_damaged_result_of_a_study_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=rf"result.json .*{message}|result.json {message}"):
        read_result(tmp_path / "result.json")
