"""Loggers: the JSON lines survive everything, the terminal trusts no text, trackers are found by name."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import textenv.agents.loggers.registry as loggers_module
from textenv.agents.loggers.jsonl import JSONLLogger, read_metrics
from textenv.agents.loggers.registry import LOGGERS, Logger, RunInfo, make_loggers, register_logger
from textenv.agents.loggers.rich import RichLogger
from textenv.agents.settings.base import OnlineConfig


class Recorder:
    """Remembers the rows it was given."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, float], int]] = []
        self.tables: list[tuple[str, list[Sequence[Any]]]] = []
        self.closed = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.rows.append((dict(metrics), step))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        self.tables.append((name, list(rows)))

    def close(self) -> None:
        self.closed = True


class Failing(Recorder):
    """Raises whatever it is asked."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        raise ConnectionError("tracker is down")

    def close(self) -> None:
        raise OSError("can't close")


# -- the group


def test_values_become_python_numbers_and_others_are_refused() -> None:
    recorder = Recorder()
    with make_loggers([recorder]) as loggers:
        loggers.log({"a": torch.tensor(0.5), "b": np.float32(0.25), "c": 3}, step=1)
        with pytest.raises(TypeError, match="metric 'a' must be a number, got 'high'"):
            loggers.log({"a": "high"}, step=2)  # type: ignore[dict-item]
    assert recorder.rows == [({"a": 0.5, "b": 0.25, "c": 3}, 1)]
    assert all(type(value) in (int, float) for value in recorder.rows[0][0].values())
    assert recorder.closed


def test_a_failing_logger_is_loud_and_loses_nothing(tmp_path: Path) -> None:
    recorder = Recorder()
    loggers = make_loggers([Failing(), recorder], tmp_path)
    with pytest.raises(ConnectionError, match="tracker is down") as caught:
        loggers.log({"score": 1.0}, step=1)
    assert caught.value.__notes__ == ["raised by Failing.log"]
    assert recorder.rows == [({"score": 1.0}, 1)]
    assert read_metrics(tmp_path)[0]["score"] == 1.0
    with pytest.raises(OSError, match="can't close"):
        loggers.close()
    assert recorder.closed


def test_several_failures_are_raised_together() -> None:
    loggers = make_loggers([Failing(), Failing()])
    with pytest.raises(ExceptionGroup, match="2 loggers failed in log") as caught:
        loggers.log({"score": 1.0}, step=1)
    assert [type(error) for error in caught.value.exceptions] == [ConnectionError, ConnectionError]


def test_ragged_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="table 'samples': row 1 must have 2 values, got 1"):
        make_loggers([Recorder()]).log_table("samples", ["a", "b"], [[1, 2], [1]], step=1)


def test_specs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown logger 'wandv'; known: wandb, "):
        make_loggers(["wandv"])
    with pytest.raises(TypeError, match=r"must be a list of names or loggers, got the string 'rich'"):
        make_loggers("rich")
    with pytest.raises(
        TypeError, match=r"a logger must be a name, \[name, \{keyword: value\}\] or an object"
    ):
        make_loggers([("rich", 3)])
    with pytest.raises(ValueError, match="'jsonl' needs a run_dir"):
        make_loggers(["jsonl"])
    assert make_loggers() == []
    with make_loggers(["jsonl", ["jsonl", {}]], tmp_path) as loggers:
        assert [type(logger) for logger in loggers] == [JSONLLogger]


def test_a_logger_of_ones_own_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers_module, "LOGGERS", dict(LOGGERS))

    @register_logger("memory")
    class Memory(Recorder):
        def __init__(self, info: RunInfo, size: int = 1) -> None:
            super().__init__()
            self.info, self.size = info, size

    config = OnlineConfig(iterations=3)
    (logger,) = make_loggers([["memory", {"size": 5}]], config=config, total_steps=3, name="x")
    assert isinstance(logger, Memory)
    assert isinstance(logger, Logger)
    assert (logger.size, logger.info.name, logger.info.total_steps) == (5, "x", 3)
    assert logger.info.config == config.to_dict()
    with pytest.raises(ValueError, match="logger 'memory' is already registered"):
        register_logger("memory")
    with pytest.raises(ValueError, match="logger 'jsonl' is already registered"):
        register_logger("jsonl")


def test_what_was_made_is_closed_when_a_later_one_fails(tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="unknown logger"):
        make_loggers([recorder, "nowhere"], tmp_path)
    assert recorder.closed


# -- JSON lines


def test_jsonl_is_flushed_and_explicit_about_non_finite_numbers(tmp_path: Path) -> None:
    logger = JSONLLogger(tmp_path / "deep" / "run")
    logger.log({"x": math.nan, "y": -math.inf, "z": 1.5, "episodes": 64}, step=2)
    (line,) = (tmp_path / "deep" / "run" / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(row)[:3] == ["step", "episodes", "time"]
    assert (row["step"], row["episodes"], row["x"], row["y"], row["z"]) == (2, 64, "NaN", "-Infinity", 1.5)
    (read,) = read_metrics(tmp_path / "deep" / "run")
    assert math.isnan(read["x"])
    assert read["y"] == -math.inf
    logger.close()


def test_tables_go_to_their_own_files(tmp_path: Path) -> None:
    with make_loggers([], tmp_path) as loggers:
        loggers.log_table(
            "eval/samples", ["prompt", "return"], [["a\nb\u2028c", math.inf], ["d", 1.0]], step=3
        )
        with pytest.raises(ValueError, match=r"usable file name, got '\.\.'"):
            loggers.log_table("..", ["a"], [[1]], step=3)
    lines = (tmp_path / "tables" / "eval_samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 3, "prompt": "a\nb\u2028c", "return": "Infinity"},
        {"step": 3, "prompt": "d", "return": 1.0},
    ]


def test_a_fresh_run_refuses_the_folder_of_another(tmp_path: Path) -> None:
    with make_loggers([], tmp_path) as loggers:
        loggers.log({"a": 1.0}, step=1)
    with pytest.raises(FileExistsError, match="holds the metrics of another run"):
        make_loggers([], tmp_path)
    assert len(read_metrics(tmp_path)) == 1


def test_resume_drops_what_will_be_written_again(tmp_path: Path) -> None:
    with make_loggers([], tmp_path) as loggers:
        for step in (1, 2, 3):
            loggers.log({"a": float(step)}, step=step)
            loggers.log_table("t", ["b"], [[step]], step=step)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "a"')  # a crash in the middle of a line
    assert [row["a"] for row in read_metrics(path)] == [1.0, 2.0, 3.0]
    earlier = read_metrics(path)[1]["time"]
    with make_loggers([], tmp_path, resume_step=2) as loggers:
        loggers.log({"a": 30.0}, step=3)
        loggers.log_table("t", ["b"], [[30]], step=3)
    rows = read_metrics(path)
    assert [(row["step"], row["a"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert rows[-1]["time"] >= earlier
    table = (tmp_path / "tables" / "t.jsonl").read_text().splitlines()
    assert [json.loads(line)["b"] for line in table] == [1, 2, 30]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_metrics(tmp_path)


# -- the terminal

EVIL = "\x1b[2J\x1b]0;title\x07[bold red]pay[/bold red] \u202eoverride\x9b31m\r\nline\ud800"


def _terminal() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(
        file=stream, force_terminal=True, width=100, color_system=None, legacy_windows=False
    ), stream


def test_without_a_terminal_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    logger = RichLogger(RunInfo(name="demo", total_steps=40), every_seconds=1e9)
    for step in range(1, 41):
        logger.log({"objective/score": step / 100, "other": 2048}, step)
    logger.log_table("eval/samples", ["prompt"], [["hidden"]], 40)
    logger.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "demo 1/40  objective/score 0.01  other 2,048",
        "demo 40/40  objective/score 0.4  other 2,048",
    ]


def test_the_last_line_is_not_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    logger = RichLogger(every_seconds=0)
    logger.log({"loss": 1.0}, 1)
    logger.close()
    assert capsys.readouterr().err.count("loss") == 1


@pytest.mark.parametrize(
    ("also", "shown"), [({}, False), ({"eval/terms/length": 0.0}, True), ({"eval/return/max": 1.0}, True)]
)
def test_returns_are_shown_where_something_is_paid(
    also: dict[str, float], shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    returns = {f"eval/return/{name}": 0.0 for name in ("mean", "std", "min", "max")}
    logger = RichLogger(every_seconds=0)
    logger.log({"loss": 1.0, **returns, **also}, 1)
    assert ("eval/return/mean" in capsys.readouterr().err) == shown


def test_generated_text_is_shown_and_not_obeyed() -> None:
    console, stream = _terminal()
    logger = RichLogger(RunInfo(name=EVIL, total_steps=3), console=console)
    logger.log({EVIL: 1.0, "loss": 0.5}, 1)
    logger.log_table(EVIL, [EVIL, "return"], [[EVIL, 0.5]], 1)
    console.print(logger._view())
    logger.close()
    text = stream.getvalue()
    assert "[bold red]pay[/bold red]" in text  # markup is not interpreted
    for forbidden in ("\x1b[2J", "\x1b]0;", "\x07", "\u202e", "\x9b", "\ud800"):
        assert forbidden not in text
    text.encode("utf-8")


def test_live_display_shows_progress_means_and_samples_and_lets_go() -> None:
    console, stream = _terminal()
    logger = RichLogger(RunInfo(name="demo", total_steps=4), console=console, window=2)
    for step, value in enumerate((1.0, 2.0, 3.0), start=1):
        logger.log({"objective/score": value}, step)
    logger.log_table("eval/samples", ["prompt", "return"], [["hello", 0.25]] * 9, 3)
    logger.close()
    shown = stream.getvalue().split("demo")[-1]
    assert "3/4" in shown
    row = next(line for line in shown.splitlines() if "objective/score" in line)
    assert row.split()[1:] == ["3", "2.5"]
    assert shown.count("hello") == logger.samples
    before = len(stream.getvalue())
    console.print("after")
    assert stream.getvalue()[before:] == "after\n"


def test_key_metrics_come_first_and_the_rest_fills_up() -> None:
    logger = RichLogger(max_rows=3, every_seconds=1e9)
    logger.log({"zebra": 1.0, "apple": 1.0, "objective/kl": 1.0, "objective/score": 1.0}, 1)
    assert logger._shown() == ["objective/score", "objective/kl", "zebra"]
    logger.keys = ["apple", "absent"]
    assert logger._shown() == ["apple"]
    logger.close()


def test_a_terminal_that_can_say_only_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    logger = RichLogger(RunInfo(name="naïve"), console=Console(file=stream), every_seconds=0)
    logger.log({"größe": 1.0}, 1)
    logger.close()
    stream.flush()
    assert raw.getvalue() == b"na?ve 1  gr??e 1\n"


# -- trackers


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with make_loggers(["tensorboard"], tmp_path, {"seed": 1}) as loggers:
        for step in (1, 2, 3):
            loggers.log({"objective/score": step / 2, "bad": math.nan}, step=step)
        loggers.log_table("eval/samples", ["prompt"], [["<script>x</script>"]], step=3)
    with make_loggers(["tensorboard"], tmp_path, {"seed": 1}, resume_step=2) as loggers:
        loggers.log({"objective/score": 9.0}, step=3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("objective/score")] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    (table,) = events.Tensors("eval/samples/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in text.splitlines())  # a code block: shown, not rendered


def test_tensorboard_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'textenv\[tensorboard\]'"):
        make_loggers(["tensorboard"], tmp_path)


def test_tensorboard_needs_a_folder() -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match="'tensorboard' needs a run_dir"):
        make_loggers(["tensorboard"])


class FakeWandb:
    """Stands for the module wandb; notes what it is told."""

    def __init__(self, *, key: bool) -> None:
        self.key, self.calls, self.inits, self.id = key, [], [], "abc123"  # type: ignore[var-annotated]
        self.Table = dict

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt
        assert not verify
        return self.key

    def init(self, **kwargs: Any) -> FakeWandb:
        self.inits.append(kwargs)
        return self

    def define_metric(self, name: str, **kwargs: Any) -> None:
        self.calls.append(("define", name, kwargs))

    def log(self, row: dict[str, Any]) -> None:
        self.calls.append(("log", row))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.mark.parametrize("key", [True, False])
def test_wandb_is_offline_without_a_key_and_resumes_its_run(
    key: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    fake = FakeWandb(key=key)
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    with make_loggers(
        [["wandb", {"project": "p", "group": "g"}]], tmp_path, {"seed": 1}, name="n"
    ) as loggers:
        loggers.log({"loss": 1.0}, step=5)
        loggers.log_table("eval/samples", ["a"], [["b"]], step=5)
    with make_loggers(["wandb"], tmp_path, resume_step=2):
        pass
    first, second = fake.inits
    assert first.get("mode") == (None if key else "offline")
    assert (first["project"], first["group"], first["name"], first["config"]) == ("p", "g", "n", {"seed": 1})
    assert first["dir"] == str(tmp_path)
    assert "id" not in first
    assert (second["id"], second["resume"]) == ("abc123", "allow")
    assert ("log", {"loss": 1.0, "step": 5}) in fake.calls
    assert ("log", {"eval/samples": {"columns": ["a"], "data": [["b"]]}, "step": 5}) in fake.calls
    assert fake.calls.count(("finish",)) == 2


def test_wandb_mode_of_the_user_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    fake = FakeWandb(key=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    make_loggers(["wandb"]).close()
    assert "mode" not in fake.inits[0]


def test_wandb_writes_an_offline_run(tmp_path: Path) -> None:
    with make_loggers(["wandb"], tmp_path, {"seed": 1}) as loggers:
        loggers.log({"loss": 1.0}, step=1)
        loggers.log_table("eval/samples", ["a"], [["b"]], step=1)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert any(run.glob("*.wandb"))
    assert (tmp_path / "wandb-id.txt").read_text().strip() in run.name


def test_failed_calls_of_a_partner_are_shown_once_there_are_any() -> None:
    logger = RichLogger(RunInfo(), console=Console(file=io.StringIO()))
    logger.log({"rollout/turns": 3.0, "rollout/partner_errors": 0.0}, 1)
    assert logger._shown() == ["rollout/turns"]
    logger.log({"rollout/turns": 3.0, "rollout/partner_errors": 2.0}, 2)
    logger.log({"rollout/turns": 3.0, "rollout/partner_errors": 0.0}, 3)
    assert logger._shown() == ["rollout/turns", "rollout/partner_errors"]
