"""Agents on games: episodes with a partner reach training with all their rewards."""

from __future__ import annotations

import importlib

import pytest
import torch

import textenv
from textenv.agents.base.registry import get_agent
from textenv.agents.train_setup.task_start import start_config
from textenv.tasks import make_task


def test_rewards_and_kl_are_added_to_those_of_the_partner() -> None:
    result = textenv.train(
        "ppo",
        task="guess-number",
        reward=[["length", {"coef": 0.5}]],
        iterations=1,
        episodes_per_iteration=8,
        minibatches=1,
        eval_episodes=4,
        kl_coef=0.1,
        kl_placement="reward",
        start=False,
        loggers=(),
    )
    batch = result.agent.last_batch.episodes
    terms = {name: values for name, values in batch.reward_terms.items() if not name.startswith("raw/")}
    assert set(terms) == {"partner", "length", "kl"}
    assert (batch.reward_terms["length"].sum(-1) > 0).all()
    torch.testing.assert_close(batch.rewards, sum(terms.values()))


def test_a_partner_with_the_name_of_a_task_brings_its_model_and_arguments() -> None:
    result = textenv.train(
        "ppo",
        partner=["guess-number", {"top": 5}],
        iterations=1,
        episodes_per_iteration=8,
        minibatches=1,
        eval_episodes=4,
        start=False,
        loggers=(),
    )
    assert len(result.agent.envs.unwrapped.tokenizer) == 5 + 7 + 10 + 3
    assert result.agent.policy.model.config.vocab_size == 25


@pytest.mark.parametrize("task", ["guess-number", "maze", "wordle", "twenty-questions"])
def test_settings_of_the_games_fit_their_agents(task: str) -> None:
    for agent, found in make_task(task).agent_settings.items():
        config = get_agent(agent).config_class(**found["settings"])
        assert config.idle() == {} and config.given().keys() == found["settings"].keys()
        if "start" in found:
            assert start_config(found["start"], True) is not None


@pytest.mark.parametrize("task", ["guess-number", "maze"])
def test_offline_agents_learn_from_the_games_data(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"textenv.tasks.{task.replace('-', '_')}")
    monkeypatch.setattr(module, "EPISODES", 24)
    settings = {"steps": 1, "batch_size": 8, "eval_episodes": 4, "loggers": ()}
    result = textenv.train("ilql", task=task, **settings)
    assert len(result.agent.dataset) == 24
    assert result.evaluation.metrics["return/mean"] < 0
