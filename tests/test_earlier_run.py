"""Runs of version 0.1.0, kept as they were written: they load, go on, and get their report.

``fixtures/run_of_0_1_0/NAME`` is what ``train(**given(NAME), run_dir=NAME, loggers=["jsonl"])`` wrote,
without the report and its plots. PPO was given by name and has all that a checkpoint can hold: a critic, a
reference, a moving average, the states of an adaptive KL and of a reward. DPO was given as a class and has
adapters.
"""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config

import textenv
from tests.helpers.models import letters
from textenv import agents
from textenv.agents import Agent, RunFolder, read_metrics
from textenv.agents.reports.run_data import read_run
from textenv.tasks import make_vec_env

FOLDER = Path(__file__).parent / "fixtures" / "run_of_0_1_0"
TOKENIZER = letters("abcdefgh")
WORDS = ["ab", "c", "dea", "face", "b", "gg"]
AGENTS = {"ppo": agents.PPO, "dpo": agents.DPO}
STEPS = {"ppo": ("iterations", 2), "dpo": ("steps", 3)}


def given(name: str) -> dict[str, Any]:
    """Arguments of the run."""
    model = GPT2Config(
        n_layer=1,
        n_embd=8,
        n_head=2,
        n_positions=16,
        vocab_size=len(TOKENIZER),
        bos_token_id=TOKENIZER.bos_token_id,
        eos_token_id=TOKENIZER.eos_token_id,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    shared = {"model": model, "tokenizer": TOKENIZER, "learning_rate": 1e-2}
    if name == "ppo":
        return {
            **shared,
            "agent": "ppo",
            "prompts": ["a", "bc", "def"],
            "eval_prompts": ["ab", "ba"],
            "reward": [["normalized", {"of": ["length", {"coef": -1.0}]}]],
            "env_kwargs": {"max_new_tokens": 5},
            "num_envs": 4,
            "iterations": 2,
            "episodes_per_iteration": 8,
            "eval_episodes": 4,
            "kl_controller": "adaptive",
            "ema_decay": 0.5,
        }
    pairs = [{"prompt": "ab", "chosen": word, "rejected": word + "h"} for word in WORDS]
    lora = {"policy_kwargs": {"lora": {"r": 2}}}
    return {**shared, **lora, "agent": agents.DPO, "dataset": pairs, "steps": 3, "batch_size": 4}


@pytest.fixture(params=sorted(AGENTS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run_dir(name: str, tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    return Path(shutil.copytree(FOLDER / name, tmp_path / name))


def last_checkpoint(run_dir: Path) -> Path:
    return sorted((run_dir / "checkpoints").iterdir())[-1]


def settings_since(config: Any, saved: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that came after the saved ones, which have their defaults."""
    now, default = config.to_dict(), type(config)().to_dict()
    added = set(now) - set(saved)
    assert {name: now[name] for name in added} == {name: default[name] for name in added}
    return {name: value for name, value in now.items() if name not in added}


def test_the_agent_loads_from_its_checkpoint(name: str) -> None:
    checkpoint = last_checkpoint(FOLDER / name)
    arguments = given(name)
    if name == "ppo":
        pieces = {key: arguments[key] for key in ("prompts", "tokenizer", "num_envs")}
        sources: dict[str, Any] = {
            "envs": make_vec_env(**pieces, rewards=arguments["reward"], **arguments["env_kwargs"])
        }
    else:
        sources = {"dataset": arguments["dataset"], "tokenizer": TOKENIZER}
    agent = Agent.load(checkpoint, **sources)
    assert type(agent) is AGENTS[name] and agent.iteration == STEPS[name][1]
    saved = json.loads((checkpoint / "trainer.json").read_text())
    assert settings_since(agent.config, saved["config"]) == saved["config"] and saved["agent"] == name
    assert agent.optimizer_steps == saved["counters"]["optimizer_steps"] > 0
    plain = AutoModelForCausalLM.from_pretrained(checkpoint)
    policy = agents.LanguagePolicy.load(checkpoint)
    tokens = torch.tensor([[0, 1, 2, 3]])
    with torch.no_grad():
        trained, ours, theirs = (m(tokens).logits for m in (agent.policy.model, policy.model, plain))
    assert torch.allclose(ours, theirs, atol=1e-5)
    # PPO's folder holds the moving average; the agent goes on from the weights that it is the average of.
    assert torch.allclose(trained, ours, atol=1e-5) is (name == "dpo")
    if name == "ppo":
        heads, own = load_file(checkpoint / "heads.safetensors"), policy.state_dict()
        assert heads and all(torch.equal(own[key], tensor) for key, tensor in heads.items())
    moments = load_file(checkpoint / "optimizer.safetensors")
    state = agent.optimizer.state_dict()["state"]
    assert moments and all(
        torch.equal(state[int(key.split("/")[0])][key.split("/")[1]], tensor)
        for key, tensor in moments.items()
    )


def test_the_model_of_the_run_loads_by_its_folder(name: str) -> None:
    policy = agents.LanguagePolicy.load(FOLDER / name)
    assert policy.tokenizer("abh")["input_ids"] == [0, 1, 7]
    assert (policy.value_head is not None) is (name == "ppo")
    assert any("lora_A" in key for key in policy.state_dict()) is (name == "dpo")


def test_the_class_in_run_json_is_public(name: str) -> None:
    info = json.loads((FOLDER / name / "run.json").read_text())
    assert info["agent"] == {"ppo": "ppo", "dpo": "textenv.agents.preferences.agents:DPO"}[name]
    assert getattr(agents, info["agent"].rpartition(":")[2].upper()) is AGENTS[name]


def test_the_class_in_run_json_is_read_by_its_present_place() -> None:
    for read in (RunFolder(FOLDER / "dpo").read_info(), read_run(FOLDER / "dpo").info):
        module, _, attribute = read["agent"].partition(":")
        assert module == "textenv.agents.dpo"
        assert getattr(import_module(module), attribute) is agents.DPO
    assert RunFolder(FOLDER / "ppo").read_info()["agent"] == "ppo"


def test_the_run_goes_on(name: str, run_dir: Path, tmp_path: Path) -> None:
    length, steps = STEPS[name]
    before = read_metrics(run_dir)
    saved = json.loads((last_checkpoint(run_dir) / "trainer.json").read_text())
    # What the call does not say is the checkpoint's.
    arguments = {key: value for key, value in given(name).items() if key not in saved["config"]}
    arguments |= {length: steps + 1, "run_dir": run_dir, "resume": True, "loggers": ["jsonl"]}
    result = textenv.train(**arguments)
    assert result.agent.iteration == steps + 1 and result.agent.resumed
    assert settings_since(result.agent.config, saved["config"]) == {**saved["config"], length: steps + 1}
    after = read_metrics(run_dir)
    assert after[:steps] == before and [row["step"] for row in after] == list(range(1, steps + 2))
    assert json.loads((run_dir / "run.json").read_text())["resumes"][0]["step"] == steps
    fresh = tmp_path / "fresh"
    textenv.train(**{**given(name), length: steps + 1}, run_dir=fresh, loggers=["jsonl"])
    assert [list(row) for row in read_metrics(fresh)][-1] == list(after[-1])
    assert sorted({key for row in read_metrics(fresh) for key in row}) == sorted(
        {key for row in after for key in row}
    )


def test_a_new_run_writes_the_same_files_and_keys(name: str, tmp_path: Path) -> None:
    fresh, earlier = tmp_path / "fresh", FOLDER / name
    textenv.train(**given(name), run_dir=fresh, loggers=["jsonl"])
    ours, theirs = read_metrics(fresh), read_metrics(earlier)
    assert [list(row) for row in ours] == [list(row) for row in theirs]
    for place in (".", last_checkpoint(earlier).relative_to(earlier)):
        for file in sorted((earlier / place).glob("*.json")):
            new, old = json.loads((fresh / place / file.name).read_text()), json.loads(file.read_text())
            assert new.keys() >= old.keys(), file.name
    for file in sorted(earlier.rglob("*.safetensors")):
        new, old = load_file(fresh / file.relative_to(earlier)), load_file(file)
        assert {key: (value.shape, value.dtype) for key, value in new.items()} == {
            key: (value.shape, value.dtype) for key, value in old.items()
        }, file.name


def test_its_report_can_be_written(name: str, run_dir: Path) -> None:
    from textenv.agents.reports.report import write_report

    page = write_report(run_dir).read_text(encoding="utf-8")
    assert name in page.lower() and "0.1.0" in page
