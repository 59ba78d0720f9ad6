"""Stable-Baselines3's PPO as an agent: what it learns, what it counts, what it refuses, and in a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import textenv
from tests.agents.study.study_helpers import tiny
from textenv.agents.sb3 import SB3
from textenv.agents.settings.ray_rollouts import RayRollouts
from textenv.agents.settings.sb3 import SB3Config
from textenv.agents.study.outputs import write_outputs
from textenv.agents.study.runner import run_study

SHORT: dict[str, Any] = {"iterations": 2, "n_steps": 8, "epochs": 2, "minibatches": 2, "learning_rate": 1e-2}


def train(**changes: Any) -> Any:
    settings = {**SHORT, "num_envs": 4, "eval_episodes": 4, "loggers": (), **changes}
    return textenv.train("sb3", task="probe-end", **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(run_dir=tmp_path_factory.mktemp("runs") / "sb3", kl_coef=0.1)


def test_the_cost_is_counted(run: Any) -> None:
    agent, rows = run.agent, run.history
    assert agent.env_tokens == 2 * 8 * 4 == rows[-1]["env_tokens"]
    # Two passes of two minibatches a rollout, or a few more where whole episodes do not fit.
    assert run.optimizer_steps == rows[-1]["optimizer_steps"] >= 2 * 2 * 2
    # Each pass trains on every token of the rollout, and on the prompts of its episodes.
    assert agent.gradient_tokens > 2 * agent.env_tokens
    assert 0 < run.episodes == agent.reward_calls == rows[-1]["episodes"] <= agent.env_tokens
    assert {"time/rollout", "time/update", "throughput/rollout_tokens_s", "sb3/loss"} <= rows[-1].keys()
    assert 0.0 <= rows[-1]["episode/eos_rate"] <= 1.0 and rows[-1]["episode/length"] >= 1.0


def test_a_run_is_a_function_of_its_seed(run: Any) -> None:
    again, other = train(kl_coef=0.1), train(kl_coef=0.1, seed=1)
    one, two, three = (list(found.agent.policy.parameters()) for found in (run, again, other))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_the_schedule_and_the_optimizer_are_those_of_the_settings(run: Any) -> None:
    agent = train(
        iterations=1, n_steps=8, epochs=1, minibatches=1, lr_schedule="linear", warmup_steps=0
    ).agent
    # One planned step, made: the rate has come down to its end.
    assert set(agent.schedule.get_last_lr()) == {0.0}
    assert agent.optimizer.state and isinstance(agent.optimizer, torch.optim.AdamW)
    still = train(iterations=1, learning_rate=0.0).agent
    start = type(still)(still.envs.unwrapped.task_data.model_config(), envs=still.envs, config=still.config)
    pairs = zip(still.policy.parameters(), start.policy.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_run_resumes_from_its_weights_and_counters(run: Any) -> None:
    result = train(run_dir=run.run_dir, kl_coef=0.1, iterations=3, resume=True)
    assert [row["env_tokens"] for row in result.history] == [32.0, 64.0, 96.0]
    assert result.agent.env_tokens == 3 * 8 * 4 and result.agent.iteration == 3
    assert "exact resume" in SB3.cannot


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(
        ValueError, match="SB3 takes no rollouts=: Stable-Baselines3 plays its episodes itself"
    ):
        train(rollouts=RayRollouts(num_actors=1))
    with pytest.raises(ValueError, match=r"minibatches must split n_steps \* num_envs \(32\) .*, got 5"):
        train(minibatches=5)
    with pytest.raises(ValueError, match="max_tokens_per_microbatch has no effect"):
        SB3Config(max_tokens_per_microbatch=64)
    with pytest.raises(ValueError, match="kl_coef has no effect where the environment has a KL reward"):
        train(kl_coef=0.1, reward=[["probe-end", {"budget": 8}], ["kl", {"coef": 0.1}]])


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match="not finite in iteration 1"):
        train(learning_rate=1e30, max_grad_norm=None, kl_coef=0.0)


def test_it_stands_in_a_study_with_its_cost(tmp_path: Path) -> None:
    online = {"iterations": 2, "episodes_per_iteration": 8, "minibatches": 1, "epochs": 1}
    study = tiny(agents={"ppo": {"settings": online}, "sb3": {"settings": SHORT}}, seeds=1, best_of=[])
    results = {result["label"]: result for result in run_study(study, tmp_path)}
    assert [results[label]["status"] for label in ("ppo", "sb3")] == ["done", "done"], results["sb3"]
    figures = results["sb3"]["figures"]
    assert figures["env_tokens"] == 2 * 8 * 16 and figures["reward_calls"] == figures["episodes"] > 0
    assert figures["gradient_tokens"] > 2 * figures["env_tokens"] and figures["seconds"] > 0
    assert "sb3" in [row[0] for row in write_outputs(study, tmp_path).costs[1]]
    assert json.loads((tmp_path / "results.json").read_text())["arms"][-1]["label"] == "sb3"


def test_a_budget_ends_it(tmp_path: Path) -> None:
    study = tiny(
        agents={"sb3": {"settings": {**SHORT, "iterations": 50}}},
        seeds=1,
        best_of=[],
        budget={"env_tokens": 256},
    )
    (result,) = [found for found in run_study(study, tmp_path) if found["label"] == "sb3"]
    assert result["status"] == "done" and result["figures"]["env_tokens"] == 256
