"""Tianshou, skrl and RL Zoo beyond the blocks of docs/works_with.md."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import flatten

import textenv  # noqa: F401 - registers the environment

ID = "TextRLHF-v0"


def test_tianshous_subprocesses_say_what_single_environments_say() -> None:
    from tianshou.env import DummyVectorEnv, SubprocVectorEnv

    makers = [lambda: gym.make(f"textenv:{ID}", task="probe-end") for _ in range(2)]
    for kind in (DummyVectorEnv, SubprocVectorEnv):
        envs = kind(makers)
        observations, _ = envs.reset(seed=3)
        for row in range(2):
            expected, _ = gym.make(ID, task="probe-end").reset(seed=3)
            for name, value in expected.items():
                assert np.array_equal(observations[row][name], value)
        envs.step(np.array([0, 1]))
        envs.close()


@pytest.mark.parametrize("vectorized", [False, True])
def test_skrl_reads_flattened_observations(vectorized: bool) -> None:
    from skrl.envs.wrappers.torch import wrap_env

    def make() -> Any:
        return gym.make_vec(ID, num_envs=3, arrays="numpy") if vectorized else gym.make(ID)

    env, known = wrap_env(make()), make()
    rows = 3 if vectorized else 1
    assert env.num_envs == rows
    space = known.single_observation_space if vectorized else known.observation_space
    observation, _ = env.reset()
    for _ in range(12):
        raw = env._env.unwrapped._observe() if vectorized else env._env.unwrapped.rows._observe()
        expected = [flatten(space, {name: value[i] for name, value in raw.items()}) for i in range(rows)]
        length = space["input_ids"].shape[0]
        # Gymnasium's flattening makes the prompt's length one-hot, skrl's keeps the number.
        assert np.array_equal(observation[:, : 2 * length].numpy(), np.stack(expected)[:, : 2 * length])
        assert np.array_equal(observation[:, -1].numpy(), raw["prompt_length"])
        observation, reward, terminated, truncated, _ = env.step(torch.ones((rows, 1), dtype=torch.int64))
        assert reward.shape == terminated.shape == truncated.shape == (rows, 1)
        if not vectorized and bool(terminated | truncated):
            observation, _ = env.reset()


@pytest.mark.parametrize("render", [True, False])
def test_rl_zoo_makes_its_test_environment(render: bool, capsys: pytest.CaptureFixture[str]) -> None:
    from rl_zoo3.utils import create_test_env

    rows = create_test_env(ID, should_render=render, hyperparams={}, env_kwargs={"task": "probe-end"})
    rows.reset()
    rows.step(np.array([0]))
    rows.close()
    assert ("[0] " in capsys.readouterr().out) == render
