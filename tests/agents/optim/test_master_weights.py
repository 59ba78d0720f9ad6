"""16-bit weights: steps and averages are made in float32. Steps that the scaler skips do not count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import textenv.agents.checkpointing.checkpoint as checkpoint
from tests.helpers.agents import make, rollout
from tests.helpers.models import TOKENIZER, tiny
from textenv.agents.ilql import ILQL
from textenv.agents.optim.master_weights import MasterWeights
from textenv.agents.optim.optimizer import make_optimizer
from textenv.agents.optim.weight_average import WeightAverage
from textenv.agents.policies.heads import ILQLHeads
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.sft import SFT, SFTConfig

ROWS = [{"prompt": "ab", "completion": text} for text in ("a", "b", "cd", "d")]
HALF = [torch.bfloat16, torch.float16]


def policy(dtype: torch.dtype = torch.bfloat16) -> LanguagePolicy:
    return LanguagePolicy(tiny(positions=16), tokenizer=TOKENIZER, dtype=dtype)


def sft(dtype: torch.dtype = torch.bfloat16, **settings: Any) -> SFT:
    config = SFTConfig(**{"steps": 4, "batch_size": 2, "learning_rate": 1e-5, "report": False, **settings})
    return SFT(policy(dtype), dataset=ROWS, tokenizer=TOKENIZER, config=config)


def state(agent: Any) -> dict[str, torch.Tensor]:
    weights = {name: p.detach().clone() for name, p in agent.policy.named_parameters()}
    masters = {f"{index}/master": master for index, master in agent.backend.masters.tensors().items()}
    kept = masters | agent.training_state().tensors
    return weights | {name: tensor.clone() for name, tensor in kept.items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", HALF)
def test_small_steps_add_up_as_in_float32(dtype: torch.dtype) -> None:
    half, whole = nn.Linear(3, 2, dtype=dtype), nn.Linear(3, 2)
    with torch.no_grad():
        half.weight.fill_(1.0)
        half.bias.fill_(-1.0)
        whole.load_state_dict(half.state_dict())
    optimizer = make_optimizer(half, learning_rate=1e-5, weight_decay=0.1)
    expected = make_optimizer(whole, learning_rate=1e-5, weight_decay=0.1)
    masters = MasterWeights(optimizer)
    for _ in range(300):
        for parameter, other in zip(half.parameters(), whole.parameters(), strict=True):
            parameter.grad = torch.full_like(parameter, 0.5)
            other.grad = parameter.grad.float()
        masters.take_gradients()
        assert all(parameter.grad is None for parameter in half.parameters())
        optimizer.step()
        expected.step()
        masters.give_weights()
    for parameter, master, other in zip(
        half.parameters(), masters.moved(half.parameters()), whole.parameters(), strict=True
    ):
        assert torch.equal(master, other)
        assert torch.equal(parameter, other.to(dtype))
    # 300 steps of 1e-5 with one gradient: AdamW moves by the rate in each.
    assert half.bias[0].item() == pytest.approx(-1.0 - 300e-5, abs=4e-3)
    assert whole.bias[0].item() == pytest.approx(-1.0 - 300e-5, abs=1e-5)


def test_float32_weights_have_no_copies() -> None:
    module = nn.Linear(3, 2)
    optimizer = make_optimizer(module, learning_rate=1e-3)
    masters = MasterWeights(optimizer)
    assert masters.tensors() == {}
    assert all(a is b for a, b in zip(masters.moved(module.parameters()), module.parameters(), strict=True))


def test_a_weight_that_was_set_elsewhere_is_where_the_next_step_starts() -> None:
    module = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    optimizer = make_optimizer(module, learning_rate=0.0)
    masters = MasterWeights(optimizer)
    with torch.no_grad():
        module.weight.fill_(3.0)
    module.weight.grad = torch.ones_like(module.weight)
    masters.take_gradients()
    optimizer.step()
    masters.give_weights()
    assert module.weight.item() == 3.0


def test_steps_of_a_fine_tuning_rate_are_not_lost() -> None:
    agent = sft(learning_rate=1e-5, steps=6)
    before = {name: master.clone() for name, master in agent.backend.masters.tensors().items()}
    agent.learn()
    after = agent.backend.masters.tensors()
    moved = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
    assert float(moved.max()) > 3e-5  # six steps of up to 1e-5
    for weight, master in agent.backend.masters._pairs.values():
        assert torch.equal(weight, master.to(torch.bfloat16))


@pytest.mark.parametrize("lr_schedule", ["constant", "cosine"])
def test_resumed_bit_for_bit(tmp_path: Path, lr_schedule: str) -> None:
    settings = {"lr_schedule": lr_schedule, "checkpoint_every": 2, "learning_rate": 1e-4}
    whole = sft(**settings)
    whole.run_dir = tmp_path / "run"
    whole.learn()
    (tmp_path / "run" / "checkpoints" / "step-00000004").rename(tmp_path / "last")
    resumed = sft(**settings)
    resumed.resume(tmp_path / "run")
    assert resumed.optimizer_steps == 4
    assert_same(state(resumed), state(whole))
    loaded = SFT.load(tmp_path / "last", dataset=ROWS, tokenizer=TOKENIZER)
    assert_same(state(loaded), state(whole))


def test_a_checkpoint_without_copies_is_read(tmp_path: Path) -> None:
    agent = sft(learning_rate=1e-3)
    agent.learn()
    agent.save(tmp_path / "saved")
    path = tmp_path / "saved" / "optimizer.safetensors"
    old = {
        name: tensor if name.endswith("/step") else tensor.bfloat16()
        for name, tensor in load_file(path).items()
        if not name.endswith("/master")
    }
    save_file(old, path)
    other = sft(learning_rate=1e-3)
    with torch.no_grad():
        for parameter, saved in zip(other.policy.parameters(), agent.policy.parameters(), strict=True):
            parameter.copy_(saved)
    other.load_training_state(checkpoint.read_state(tmp_path / "saved"))
    assert other.optimizer_steps == agent.optimizer_steps
    other.optimizer_step(other.batch(torch.tensor([0, 1])))
    for own, saved in zip(other.policy.parameters(), agent.policy.parameters(), strict=True):
        assert float((own - saved).detach().abs().max()) < 1e-2


def test_an_average_of_bfloat16_weights_moves_as_far_as_it_should() -> None:
    actor = policy()
    average = WeightAverage(actor, 0.999)
    parameter = actor.model.get_input_embeddings().weight
    with torch.no_grad():
        start = parameter[0, 0].fill_(1.0).item()
        average = WeightAverage(actor, 0.999)
        parameter[0, 0] = 2.0
    for _ in range(9):
        average.update()
    name = next(n for n, p in actor.named_parameters() if p is parameter)
    moved = average.state_tensors()[f"average/{name}"][0, 0].item() - start
    assert moved == pytest.approx(1 - 0.999**9, rel=1e-4)  # 0.00896; in bfloat16 1.0 is followed by 1.0078


def test_an_average_of_bfloat16_weights_goes_on_bit_for_bit(tmp_path: Path) -> None:
    settings = {"ema_decay": 0.99, "policy_kwargs": {"dtype": torch.bfloat16}, "iterations": 2}
    whole = make("reinforce", **settings)
    whole.learn()
    whole.save(tmp_path / "saved")
    other = make("reinforce", **settings)
    other.load_training_state(checkpoint.read_state(tmp_path / "saved"))
    loaded = type(whole).load(tmp_path / "saved", envs=other.envs)
    assert_same(state(loaded), state(whole))


@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_a_step_that_the_scaler_skips_counts_for_nothing(kind: str) -> None:
    agent = sft(torch.float32, autocast="float16", lr_schedule=kind, learning_rate=1e-2)
    agent.backend.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    calls: list[int] = []
    agent.after_step = lambda: calls.append(agent.optimizer_steps)  # type: ignore[method-assign]
    before, rate = state(agent), agent.schedule.get_last_lr()
    batch = agent.batch(torch.tensor([0, 1]))
    stats = agent.optimizer_step(batch)
    assert stats["grad_norm"] != stats["grad_norm"]
    assert agent.backend.scaler.get_scale() == 2.0**59
    assert (agent.optimizer_steps, calls, agent.schedule.get_last_lr()) == (0, [], rate)
    assert agent.schedule.state_dict()["last_epoch"] == 0
    assert_same(state(agent), before)
    agent.backend.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    stats = agent.optimizer_step(batch)
    assert stats["grad_norm"] > 0
    assert (agent.optimizer_steps, calls, agent.schedule.state_dict()["last_epoch"]) == (1, [1], 1)


def test_a_skipped_step_moves_no_target_and_no_average() -> None:
    rows = [{"prompt": "ab", "completion": text, "reward": 1.0} for text in ("a", "b", "cd", "d")]
    agent = ILQL(
        policy(torch.float32).model,
        dataset=rows,
        tokenizer=TOKENIZER,
        config=ILQL.config_class(autocast="float16", steps=2, batch_size=2),
    )
    agent.backend.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before = state(agent)
    agent.optimizer_step(agent.batch(torch.tensor([0, 1])))
    assert agent.optimizer_steps == 0
    assert_same(state(agent), before)
    averaging = make("reinforce", ema_decay=0.5, autocast="float16")
    averaging.backend.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    kept = state(averaging)
    averaging.optimizer_step(rollout(averaging))
    assert averaging.optimizer_steps == 0
    assert_same(state(averaging), kept)


def test_infinite_gradients_without_a_scaler_are_an_error() -> None:
    agent = sft(torch.float32)
    batch = agent.batch(torch.tensor([0, 1]))
    hook = next(agent.policy.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(Exception, match="gradient"):
        agent.optimizer_step(batch)
    hook.remove()
    assert agent.optimizer_steps == 0


def test_target_heads_in_16_bits_are_refused() -> None:
    heads = ILQLHeads(4, 6).bfloat16()
    with pytest.raises(ValueError, match="target Q heads must be in float32, got bfloat16"):
        heads.sync(0.005)
