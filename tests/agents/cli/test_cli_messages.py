"""Mistakes on the command line and what it says about them, and options that are lists or have no value."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers.utils import logging as transformers_logging

from textenv.agents.cli import wording
from textenv.agents.cli.main import main
from textenv.utils.quiet import quiet_libraries, without_bars

PPO = "train ppo --task probe-end "
Say = Callable[[str], tuple[int, str, str]]
FILES = {
    "none.yaml": "task: probe-end\nsettings:\n  max_grad_norm: None\n",
    "stage.yaml": "reward_model: {steps: 3}\n",
    "one.yaml": "task: probe-end\nloggers: wandb\n",
    "empty.yaml": "agents: {}\ntasks: {probe-end: {}}\n",
    "p.jsonl": '{"prompt": "ab"}\n',
}


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Type a command in a folder with some files: -> exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def type_in(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(line.split())
        return code, *capsys.readouterr()

    return type_in


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (PPO + "--loggers wandbb", "loggers: unknown logger 'wandbb'; known: wandb"),
        (PPO + "--num_envs 3 --num_envs 4", "--num_envs is given twice, as 3 and 4; give it once"),
        (PPO + "--resume --run_dir r --resume", "--resume is given twice, as true and true; give it once"),
        (PPO + "--env.task_kwargs={a: --env.task_kwargs={b:", "--env.task_kwargs is given twice"),
        (PPO + "--reward length --reward nosuch", "unknown reward 'nosuch'; known: "),
        (PPO + "--settings.max_grad_norm big", "settings.max_grad_norm must be float or null, got big"),
        (PPO + "--settings.adam_betas 0.9", "adam_betas must be a list of 2 values, [float, float], got 0.9"),
        (PPO + "--env.max_new_tokens x", "env.max_new_tokens must be int or null, got x"),
        (PPO + "--resume maybe", "resume must be 'auto' or true or false, got maybe"),
        (PPO + "--num_envs", "--num_envs needs a value, int or null; got none"),
        (PPO + "--env 3", "--env is a group of options such as --env.task_kwargs, and takes no value"),
        ("train ppo probe-end", "probe-end is not an option; options are --NAME VALUE, see --help"),
        (
            "train sft --config none.yaml",
            "none.yaml, line 3: settings.max_grad_norm is None, which YAML writes as null",
        ),
        (
            "pipeline --config stage.yaml",
            "stage.yaml, line 1: reward_model must be text or null, got settings; "
            "steps belongs under reward or judge or sft",
        ),
        (
            "pipeline --reward_model.steps 3",
            "unknown option --reward_model.steps; did you mean --reward_model or --reward.steps?",
        ),
        ("compare", "it holds agents and tasks by label, as in agents: {ppo: {}, sft: {}}"),
        ("compare empty.yaml", "agents must hold at least one (such as ppo: {}), got none"),
        ("train sft --model gpt2", "agent 'sft' learns offline and needs --dataset (or --task), got None"),
        ("generate ./nothere --prompts p.jsonl", "./nothere: no such folder"),
        ("generate runs/a/b --prompts p.jsonl", "runs/a/b: no such folder"),
        ("evaluate /nothere/ --task probe-end", "/nothere/: no such folder"),
        (
            "generate runs/nothere --prompts p.jsonl",
            "textenv: error: model 'runs/nothere' can't be loaded: there is no such folder, and as a hub id "
            "it is not in the cache and the hub can't be reached",
        ),
        ("evaluate nothere --prompts p.jsonl", "textenv: error: model 'nothere' can't be loaded"),
        (
            "train ppo --model nothere --prompts p.jsonl --reward length",
            "textenv: error: model 'nothere' can't be loaded",
        ),
        (
            "evaluate nothere --task probe-end",
            "model 'nothere' can't be loaded: there is no such folder, and as",
        ),
    ],
)
def test_mistakes(line: str, message: str, say: Say, tmp_path: Path) -> None:
    code, out, errors = say(line)
    assert code in (1, 2)
    assert message in errors
    *notices, error = errors.splitlines()
    assert error.startswith("textenv: error: ") and all(line.startswith("task settings") for line in notices)
    assert "Subtypes" not in errors and "huggingface.co" not in errors
    assert out == "" and {path.name for path in tmp_path.iterdir()} == set(FILES)


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        (PPO + "--loggers wandb --loggers=[rich,tensorboard]", "loggers", ["wandb", "rich", "tensorboard"]),
        (
            PPO + "--reward length --reward=[brevity,{coef:2}]",
            "reward",
            ["length", ["brevity", {"coef:2": None}]],
        ),
        (PPO + "--reward=[[a],b] --reward c", "reward", [["a"], "b", "c"]),
        (PPO + "--reward length", "reward", "length"),
        (PPO + "--tokenizer none", "tokenizer", None),
        (PPO + "--run_dir=None", "run_dir", None),
        ("generate x --prompt a --prompt [INST]", "prompt", ["a", "INST"]),
        ("generate x --prompt a --prompt [INST", "prompt", ["a", "[INST"]),
        ("compare --best_of 2 --best_of 4", "best_of", [2, 4]),
    ],
)
def test_values(line: str, key: str, value: Any, say: Say) -> None:
    code, out, errors = say(f"{line} --print_config")
    assert (code, errors) == (0, "")
    assert yaml.safe_load(out)[key] == value


def test_one_is_a_list_of_one(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    from textenv.agents import training

    seen = []
    monkeypatch.setattr(training, "train", lambda *args, **kwargs: seen.append(kwargs) or 1 / 0)
    for line in (PPO + "--loggers wandb", "train ppo --config one.yaml"):
        with pytest.raises(ZeroDivisionError):
            say(line)
    assert [kwargs["loggers"] for kwargs in seen] == [("wandb",), ("wandb",)]
    with pytest.raises(ZeroDivisionError):
        say(PPO + "--settings.max_grad_norm none")
    assert seen[2]["config"].max_grad_norm is None


def test_pythons_words_become_the_shells() -> None:
    wording.set_options(["run_dir", "resume", "env.max_new_tokens", "prompts"])
    try:
        text = "x/run_dir holds another run; say resume=True, or choose another run_dir"
        assert wording.in_shell(text) == text.replace("resume=True", "--resume")[:-7] + "--run_dir"
        assert wording.in_shell("needs run_dir=, got None") == "needs --run_dir, got None"
        for same in (
            "run_dir='a', got a.run_dir",
            "--run_dir must be",
            "max_new_tokens must be",
            "kl_coef=0",
        ):
            assert wording.in_shell(same) == same
    finally:
        wording.set_options([])
    assert wording.in_shell("say resume=True") == "say resume=True"


def test_a_run_prints_nothing_of_other_libraries(tmp_path: Path) -> None:
    code = """
import textenv.agents
textenv.agents.train("ppo", task="probe-end", run_dir="r", iterations=1, eval_episodes=2, num_envs=2,
                     episodes_per_iteration=4, epochs=1, minibatches=1, report=False, loggers=())
import json, sys
print(json.dumps([name for name in ("peft", "bitsandbytes") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == []


def test_notices_are_held_back_and_errors_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    quiet_libraries()
    logger = logging.getLogger("DeepSpeed")
    monkeypatch.setattr(logger, "propagate", True)
    logger.warning("Setting accelerator to CPU")
    logger.error("broken")
    logging.getLogger("bitsandbytes.backends").warning("Failed to load")
    # Its own handler may be caplog's, too, and then it counts twice.
    assert {record.getMessage() for record in caplog.records} == {"broken"}


def test_bars_come_back_after_the_block() -> None:
    shown = transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.enable_progress_bar()
        with without_bars():
            assert not transformers_logging.is_progress_bar_enabled()
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        if not shown:
            transformers_logging.disable_progress_bar()
