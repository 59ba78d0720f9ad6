"""AdamW with 8-bit moments: it finds the optimum, its state survives a checkpoint to the bit; errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config

import textenv
from tests.helpers.models import TOKENIZER, tiny
from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.optim.optimizer import make_optimizer
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.sft import SFT, SFTConfig

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'textenv[quantized]'")

ROWS = [{"prompt": "ab", "completion": text} for text in ("a", "b", "cd", "d")]


def config() -> GPT2Config:
    """Its feed-forward matrices have 4,096 numbers, as many as 8-bit moments begin at."""
    return tiny(width=32, positions=16)


def distances(kind: Any, device: str, steps: int = 150) -> tuple[list[float], Any]:
    """Squared distances to the optimum of a quadratic on the way, and the optimizer."""
    torch.manual_seed(0)
    layer, goal = nn.Linear(128, 64).to(device), torch.randn(64, 128, device=device)
    optimizer = make_optimizer(layer, learning_rate=0.05, betas=(0.9, 0.95), kind=kind)
    found = []
    for _ in range(steps):
        loss = (layer.weight - goal).square().mean() + layer.bias.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found, optimizer


def check_quadratic(device: str) -> None:
    whole, _ = distances("adamw", device)
    small, optimizer = distances("adamw_8bit", device)
    assert whole[0] == small[0] > 0.5
    assert small[-1] < 1e-3 and whole[-1] < 1e-3
    # Rounded moments, hence another way there, but nearly the same.
    assert small != whole and small[20] == pytest.approx(whole[20], rel=0.2)
    matrix, vector = (optimizer.state[group["params"][0]] for group in optimizer.param_groups)
    assert matrix["state1"].dtype == matrix["state2"].dtype == torch.uint8
    assert vector["state1"].dtype == torch.float32


def test_it_finds_the_optimum() -> None:
    check_quadratic("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_finds_the_optimum_on_cuda() -> None:
    check_quadratic("cuda")


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    settings = {"steps": 4, "batch_size": 2, "checkpoint_every": 1, "keep_checkpoints": 4, "report": False}
    settings |= {"learning_rate": 1e-2, "optimizer": "adamw_8bit"}
    whole = textenv.train(
        "sft", config(), run_dir=tmp_path, dataset=ROWS, tokenizer=TOKENIZER, loggers=(), **settings
    ).agent
    assert any(state["state1"].dtype == torch.uint8 for state in whole.optimizer.state.values())
    checkpoints = dict(RunFolder(tmp_path).checkpoints())
    half = SFT.load(checkpoints[2], dataset=ROWS, tokenizer=TOKENIZER)
    assert half.config.optimizer == "adamw_8bit" and half.optimizer_steps == 2
    before = [p.clone() for p in half.parameters]
    half.learn()
    for one, other, old in zip(whole.parameters, half.parameters, before, strict=True):
        assert torch.equal(one, other) and not torch.equal(one, old)
        mine, theirs = whole.optimizer.state[one], half.optimizer.state[other]
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[name])), name


def test_the_policy_sees_that_weights_moved() -> None:
    policy = LanguagePolicy(config())
    optimizer = make_optimizer(policy, learning_rate=1e-2, kind="adamw_8bit")
    before = policy.weights_version
    policy.model(torch.tensor([[1, 2]])).logits.sum().backward()
    optimizer.step()
    assert policy.weights_version > before


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    layer: Any = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"optimizer must be one of \['adamw', 'adamw_8bit'\], got 'sgd'"):
        make_optimizer(layer, learning_rate=0.1, kind="sgd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="optimizer must be one of 'adamw', 'adamw_8bit', got 'sgd'"):
        SFTConfig(optimizer="sgd")
    with pytest.raises(ValueError, match=r"needs cpu, cuda or xpu, got weights on \['meta'\]"):
        make_optimizer(layer.to("meta"), learning_rate=0.1, kind="adamw_8bit")
    monkeypatch.delitem(sys.modules, "textenv.agents.optim.adamw_8bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"pip install 'textenv\[quantized\]'"):
        make_optimizer(nn.Linear(2, 2), learning_rate=0.1, kind="adamw_8bit")
