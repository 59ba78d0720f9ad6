"""A pipeline finds out before its first stage what any stage lacks, and leaves nothing behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config

from tests.helpers.models import letters
from textenv.agents.checkpointing.needs import check_writable
from textenv.agents.checkpointing.run_folder import RunFolderError
from textenv.agents.cli.main import main
from textenv.agents.pipeline import run as module
from textenv.agents.pipeline.run import PipelineConfig, StageError, run_pipeline

TOKENIZER = letters("abcdefgh")
PAIR = '{"prompt": "ab", "chosen": "c", "rejected": "d"}\n'


def _model(folder: Path, auto: Any, **given: Any) -> str:
    config = GPT2Config(
        n_layer=1,
        n_embd=8,
        n_head=1,
        n_positions=32,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **{"vocab_size": len(TOKENIZER), **given},
    )
    auto.from_config(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("needs")
    _model(root / "lm", AutoModelForCausalLM)
    _model(root / "small", AutoModelForCausalLM, vocab_size=4)
    _model(root / "judge", AutoModelForSequenceClassification, num_labels=1)
    (root / "empty").mkdir()
    weightless = root / "weightless"
    _model(weightless, AutoModelForCausalLM)
    (weightless / "model.safetensors").unlink()
    (root / "data").mkdir()
    for split in ("train", "validation"):
        (root / "data" / f"{split}.jsonl").write_text('{"prompt": "ab", "completion": "c"}\n' * 2)
    (root / "pairs.jsonl").write_text(PAIR * 4)
    (root / "bad.jsonl").write_text(PAIR * 3 + '{"prompt": "ab", "chosen": 5, "rejected": "d"}\n')
    (root / "texts.jsonl").write_text('{"text": "ab"}\n')
    (root / "words.jsonl").write_text('{"word": "ab"}\n')
    return root


@pytest.fixture(autouse=True)
def _nothing_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def trains(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a stage began")

    for name in ("SFT", "RewardModelAgent", "PPO"):
        monkeypatch.setattr(module, name, trains)


def settings(root: Path, **changes: Any) -> PipelineConfig:
    pairs = str(root / "pairs.jsonl")
    values: dict[str, Any] = {
        "task": "prompts",
        "task_kwargs": {"data": str(root / "data")},
        "model": str(root / "lm"),
        "data": {"sft": str(root / "data"), "pairs": pairs, "judge": pairs, "held_out": pairs},
        "num_envs": 2,
        "max_new_tokens": 3,
        **changes,
    }
    return PipelineConfig.from_dict(values)


def _data(root: Path, **changes: str) -> dict[str, Any]:
    pairs = str(root / "pairs.jsonl")
    given = {"sft": str(root / "data"), "pairs": pairs, "judge": pairs, "held_out": pairs}
    return {"data": {**given, **{name: str(root / file) for name, file in changes.items()}}}


Needs = tuple[Callable[[Path], dict[str, Any]], type[Exception], str, str | None]
NEEDS: dict[str, Needs] = {
    "no validation split": (
        lambda root: {"task_kwargs": {"data": str(root / "data" / "train.jsonl")}},
        ValueError,
        "all records have the same prompt, so none can be held out",
        "rl",
    ),
    "sft: no such file": (lambda root: _data(root, sft="none.jsonl"), OSError, r"none\.jsonl", "sft"),
    "sft: no completion": (lambda root: _data(root, sft="words.jsonl"), ValueError, "word", "sft"),
    "pairs: no such file": (
        lambda root: _data(root, pairs="no.jsonl"),
        OSError,
        r"no\.jsonl",
        "reward-model",
    ),
    "pairs: other columns": (
        lambda root: _data(root, pairs="words.jsonl"),
        ValueError,
        "chosen|pairs|word",
        "reward-model",
    ),
    "pairs: a bad row": (
        lambda root: _data(root, pairs="bad.jsonl"),
        (ValueError, TypeError),
        "chosen",
        "reward-model",
    ),
    "held out: a bad row": (
        lambda root: _data(root, held_out="bad.jsonl"),
        (ValueError, TypeError),
        "chosen",
        "reward-model",
    ),
    "judge: a bad row": (
        lambda root: _data(root, judge="bad.jsonl"),
        (ValueError, TypeError),
        "chosen",
        "judge",
    ),
    "judge: no such file": (lambda root: _data(root, judge="no.jsonl"), OSError, r"no\.jsonl", "judge"),
    "no pairs": (
        lambda root: {"data": {"sft": str(root / "data")}},
        StageError,
        "set data.pairs or data.ratings",
        "reward-model",
    ),
    "model: none": (lambda root: {"model": str(root / "empty")}, (OSError, ValueError), "empty", None),
    "model: no weights": (
        lambda root: {"model": str(root / "weightless")},
        ValueError,
        "holds no weights",
        "sft",
    ),
    "model: a classifier": (
        lambda root: {"model": str(root / "judge")},
        ValueError,
        "model must be a causal language model",
        "sft",
    ),
    "model: few tokens": (
        lambda root: {"model": str(root / "small")},
        ValueError,
        "vocabulary of 4 tokens, fewer than",
        "sft",
    ),
    "policy: a classifier": (
        lambda root: {"policy": str(root / "judge")},
        ValueError,
        "policy must be a causal language model",
        "rl",
    ),
    "reward model: writes": (
        lambda root: {"reward_model": str(root / "lm")},
        ValueError,
        "reward_model must be a sequence classifier",
        "rl",
    ),
    "judge model: none": (
        lambda root: {"judge_model": str(root / "nowhere")},
        OSError,
        "judge_model .* can't be loaded",
        "rl",
    ),
    "rewards: unknown": (lambda root: {"rewards": ["lenght"]}, ValueError, "unknown reward 'lenght'", "rl"),
    "rewards: argument": (lambda root: {"rewards": [["length", {"coeff": 1}]]}, ValueError, "coeff", "rl"),
    "rewards: no column": (
        lambda root: {"rewards": [["exact-match", {"column": "answer"}]]},
        ValueError,
        "answer",
        "rl",
    ),
    "device": (
        lambda root: {"device": "gpu"},
        ValueError,
        "device must be a device that this machine has",
        None,
    ),
    "device of a stage": (
        lambda root: {"rl_policy": {"device": "gpu"}},
        ValueError,
        "rl_policy.device must be a device",
        "rl",
    ),
    "task": (lambda root: {"task": "promptz"}, ValueError, "promptz", None),
    "argument of the task": (lambda root: {"task_kwargs": {"datta": "x"}}, TypeError, "datta", None),
    "not among the stages": (
        lambda root: {"stages": ["rl"]},
        StageError,
        "'sft' is not among the stages to run",
        None,
    ),
}


@pytest.mark.parametrize("name", NEEDS)
def test_what_a_stage_needs_is_checked_before_the_first(name: str, root: Path, tmp_path: Path) -> None:
    changes, error, message, stage = NEEDS[name]
    with pytest.raises(error, match=message) as found:
        run_pipeline(settings(root, **changes(root)), tmp_path / "runs" / "run", loggers=())
    notes = " ".join(getattr(found.value, "__notes__", []))
    assert stage is None or f"needed by the stage '{stage}'; no stage has begun" in notes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "changes", "message"),
    [
        (
            "peft",
            {"sft_policy": {"lora": True}},
            r"sft_policy.lora needs peft: pip install 'textenv\[lora\]'",
        ),
        ("peft", {"rl_policy": {"lora": {"r": 2}}}, r"rl_policy.lora needs peft"),
        ("bitsandbytes", {"rl": {"optimizer": "adamw_8bit"}}, r"rl.optimizer needs bitsandbytes"),
        ("bitsandbytes", {"judge": {"optimizer": "adamw_8bit"}}, r"judge.optimizer needs bitsandbytes"),
    ],
)
def test_extras(
    package: str,
    changes: dict[str, Any],
    message: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "textenv.agents.checkpointing.needs.find_spec", lambda name: None if name == package else object()
    )
    with pytest.raises(ImportError, match=message):
        run_pipeline(settings(root, **changes), tmp_path / "run", loggers=())
    assert not (tmp_path / "run").exists()


def test_a_logger_and_a_folder_that_can_not_be_used(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown logger 'richh'"):
        run_pipeline(settings(root), tmp_path / "run", loggers=("richh",))
    (tmp_path / "file").touch()
    with pytest.raises((RunFolderError, NotADirectoryError), match=r"file"):
        run_pipeline(settings(root), tmp_path / "file" / "run", loggers=())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunFolderError, match="is read-only"):
            check_writable(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "content",
    ["", "null", "[]", "{}", '{"hash": 1, "made_from": {}, "finished": true}'],
)
def test_a_damaged_stage_file_is_named(content: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "stage.json").write_text(content)
    with pytest.raises(StageError, match=r"sft/stage.json is damaged.*remove the folder .*sft"):
        run_pipeline(settings(root), tmp_path, loggers=())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["sft", "stage.json"]


def test_a_stage_that_fails_when_it_begins_leaves_nothing(root: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a stage began"):
        run_pipeline(settings(root), tmp_path / "run", loggers=())
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_which_stage(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(json.dumps({**settings(root).to_dict(), "rewards": ["lenght"]}))
    assert main(["pipeline", "--config=p.yaml", "--run_dir=run"]) == 1
    errors = capsys.readouterr().err
    assert "unknown reward 'lenght'" in errors and "needed by the stage 'rl'" in errors
    assert not Path("run").exists()
