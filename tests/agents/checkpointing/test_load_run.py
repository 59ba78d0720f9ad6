"""A checkpoint of ``textenv.train`` loads without the callbacks that ``train`` added."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import textenv
from textenv.agents import PPO, Agent, BestCheckpoint, EarlyStop, load_agent
from textenv.tasks.make import make_vec_env


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a callback of the user; ``train`` adds ``BestCheckpoint``."""
    folder = tmp_path_factory.mktemp("run") / "ppo"
    settings: dict[str, Any] = {"iterations": 1, "episodes_per_iteration": 8, "minibatches": 1}
    settings |= {"checkpoint_every": 1, "eval_every": 1, "eval_episodes": 4, "num_envs": 4}
    stop = EarlyStop("eval/return/mean", patience=7)
    textenv.train("ppo", task="probe-end", run_dir=folder, loggers=(), callbacks=[stop], **settings)
    return folder


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "step-00000001"


def envs() -> Any:
    return make_vec_env(4, task="probe-end")


@pytest.mark.parametrize("load", [PPO.load, Agent.load, load_agent])
def test_loading_needs_no_callbacks(run: Path, load: Any) -> None:
    agent = load(checkpoint(run), envs=envs())
    assert (agent.iteration, list(agent.callbacks)) == (1, [])
    best = load(run / "best", envs=envs())
    assert type(best) is PPO and best.config == agent.config


def test_given_callbacks_continue_from_their_states(run: Path) -> None:
    stop = EarlyStop("eval/return/mean", patience=7)
    PPO.load(checkpoint(run), envs=envs(), callbacks=[stop])
    assert math.isfinite(stop.best)
    best = BestCheckpoint()
    PPO.load(checkpoint(run), envs=envs(), callbacks=[EarlyStop("eval/return/mean"), best])
    assert best.best == stop.best
    with pytest.raises(ValueError, match="callbacks with a state must be those of the saved run"):
        PPO.load(checkpoint(run), envs=envs(), callbacks=[best])


def test_resuming_by_hand_says_that_the_best_agent_is_no_longer_kept(run: Path) -> None:
    saved = PPO.load(checkpoint(run), envs=envs())
    stop = EarlyStop("eval/return/mean", patience=7)
    model = saved.policy.model.config
    again = PPO(model, envs=envs(), eval_envs=envs(), config=saved.config, callbacks=[stop])
    with pytest.warns(UserWarning, match="this agent has no BestCheckpoint"):
        again.restore(run)
    assert again.iteration == 1 and math.isfinite(stop.best)
    for one, other in zip(again.policy.parameters(), saved.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    other_run = PPO(model, envs=envs(), eval_envs=envs(), config=saved.config)
    with (
        pytest.warns(UserWarning, match="no BestCheckpoint"),
        pytest.raises(ValueError, match="must be those of the saved run, \\['EarlyStop'\\], got \\[\\]"),
    ):
        other_run.restore(run)
