"""Which device a run computes on, what it says about it, and devices that are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from textenv.agents.checkpointing import fresh_folder
from textenv.agents.checkpointing.needs import check_policy_options
from textenv.agents.cli.main import main
from textenv.agents.distributed import devices
from textenv.agents.ppo import PPO
from textenv.agents.settings.policy_options import PolicyOptions
from textenv.agents.training import train
from textenv.rewards.registry import make_reward
from textenv.utils.checks import check_device

REAL_DEFAULT = devices.default_device
PLACE = r"device must be a device that this machine has \('cpu'.*\), got"


class WithoutPolicyArguments:
    """An agent's class that takes no ``policy_kwargs``."""

    def __init__(self, model: Any) -> None:
        self.model = model


def test_one_device_for_policy_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "default_device", REAL_DEFAULT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.default_device() == "cpu"
    assert devices.on_device(PPO, "gpt2", None, None) == ({}, {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu = {"device": "cuda"}
    assert devices.on_device(PPO, "gpt2", None, None) == (gpu, gpu)
    assert devices.on_device(PPO, None, {"max_new_tokens": 3}, {"device": None}) == (
        {**gpu, "max_new_tokens": 3},
        gpu,
    )
    cpu = {"device": "cpu"}
    assert devices.on_device(PPO, "gpt2", {}, cpu) == ({}, cpu)
    assert devices.on_device(PPO, "gpt2", cpu, {}) == (cpu, {})
    assert devices.on_device(PPO, "gpt2", cpu, gpu) == (cpu, gpu)
    assert devices.on_device(PPO, nn.Linear(1, 1), {}, {}) == ({}, {})  # where it is: on the CPU
    assert devices.on_device(WithoutPolicyArguments, "gpt2", {}, {}) == ({}, {})
    assert devices.device_kwargs(None) == gpu
    assert devices.device_kwargs("cpu") == {}


def test_a_run_says_where_it_computes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"iterations": 1, "episodes_per_iteration": 4, "minibatches": 1, "epochs": 1, "eval_episodes": 2}
    train("ppo", task="probe-end", run_dir=tmp_path / "run", num_envs=2, report=False, **small)
    where = devices.describe(devices.default_device())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["device"] == where
    assert f"PPO computes on {where}\n" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there(device: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^device must be a device .*got '{device}'"):
        check_device("device", device)
    with pytest.raises(ValueError, match=rf"policy\.{PLACE} '{device}'"):
        check_policy_options("policy", PolicyOptions(device=device))
    for given in ({"policy_kwargs": {"device": device}}, {"env_kwargs": {"device": device}}):
        for agent in ("ppo", "sft"):
            with pytest.raises(ValueError, match=f"^{PLACE} '{device}'"):
                train(agent, task="probe-end", run_dir=tmp_path / "run", **given)
    with pytest.raises(ValueError, match=f"reward-model: {PLACE} '{device}'"):
        make_reward(["reward-model", {"model": str(tmp_path), "device": device}])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command",
    [
        "train ppo --task probe-end --policy.device gpu",
        "reward-model --task reviews --policy.device gpu",
        "evaluate folder --task probe-end --policy.device gpu",
        "generate folder --task probe-end --policy.device gpu",
        "pipeline --task probe-end --device gpu",
    ],
)
def test_a_device_that_is_not_there_in_the_shell(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert main(command.split()) in (1, 2)
    errors = capsys.readouterr().err
    assert "device must be a device that this machine has ('cpu'" in errors
    assert errors.endswith("got 'gpu'\n") and errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_folders_of_runs_that_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fresh_folder.time, "strftime", lambda form: "20261130-145833")
    made = []
    for _ in range(3):
        with fresh_folder.fresh_folder("ppo") as folder:
            made.append(folder)
    stem = "runs/ppo-20261130-145833"
    assert made == sorted(made) == [stem, f"{stem}-02", f"{stem}-03"]
    with pytest.raises(RuntimeError), fresh_folder.fresh_folder("ppo") as folder:
        raise RuntimeError
    assert not Path(folder).exists() and Path(made[0]).is_dir()
    with pytest.raises(RuntimeError), fresh_folder.fresh_folder("ppo", "other"):
        raise RuntimeError
    assert not Path("other").exists()
    with pytest.raises(RuntimeError), fresh_folder.fresh_folder("ppo", "kept") as folder:
        (Path(folder) / "file").touch()
        raise RuntimeError
    assert (Path(folder) / "file").exists()
