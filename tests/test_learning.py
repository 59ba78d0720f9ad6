"""Each agent learns: a short run on a problem whose optimum is known (all of them: ``benchmarks.probes``)."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch

from textenv.agents.ilql import ILQL, ILQLConfig
from textenv.agents.ppo import PPO, PPOConfig
from textenv.agents.sft import FilteredBC, FilteredBCConfig
from textenv.tasks.registry import make_task


def test_ppo_learns_to_stop_at_once() -> None:
    task = make_task("probe-end").build()
    envs = gym.make_vec("TextRLHF-v0", num_envs=64, task="probe-end")
    config = PPOConfig(
        iterations=12,
        episodes_per_iteration=64,
        epochs=4,
        minibatches=1,
        learning_rate=5e-3,
        kl_coef=0.0,
        value_clip_range=None,
    )
    agent = PPO(task.model_config(), envs=envs, config=config)
    before = agent.evaluate(envs, 128).metrics["return/mean"]
    agent.learn()
    assert before < 0.6
    assert agent.evaluate(envs, 128).metrics["return/mean"] >= 0.98


@pytest.mark.parametrize(("beta", "least"), [(0.0, 0.0), (100.0, 0.98)])
def test_ilql_learns_from_random_episodes_to_stop_at_once(beta: float, least: float) -> None:
    task = make_task("probe-end").build()
    config = ILQLConfig(
        steps=120, batch_size=128, learning_rate=5e-3, gamma=1.0, head="linear", target_alpha=0.1
    )
    agent = ILQL(task.model_config(), dataset=task.demonstrations, tokenizer=task.tokenizer, config=config)
    agent.learn()
    agent.policy.beta = beta
    envs = gym.make_vec("TextRLHF-v0", num_envs=64, task="probe-end")
    found = agent.evaluate(envs, 128).metrics["return/mean"]
    logged = float(task.demonstrations.returns.mean())
    # Without the values it is a clone of the random policy.
    assert found >= least and (beta > 0 or abs(found - logged) < 0.15)


def test_cloning_the_best_beats_the_data() -> None:
    task = make_task("probe-end").build()
    config = FilteredBCConfig(steps=60, batch_size=64, learning_rate=5e-3, percentile=0.9)
    data = task.demonstrations
    agent = FilteredBC(task.model_config(), dataset=data, tokenizer=task.tokenizer, config=config)
    agent.learn()
    envs = gym.make_vec("TextRLHF-v0", num_envs=64, task="probe-end")
    found = agent.evaluate(envs, 128).metrics["return/mean"]
    assert found > float(data.returns.mean()) + 0.3
    assert torch.isfinite(torch.tensor(agent.history[-1]["sft/nll"]))
