"""A reward must not play the environment whose episodes it is asked about; another one it may."""

from __future__ import annotations

from typing import Any

import pytest

import textenv
from tests.helpers.reward_helpers import TOKENIZER
from textenv.scoring import RewardError
from textenv.tasks.make import make_env, make_vec_env


def _policy(obs: Any, info: Any) -> list[int]:
    return [0] * len(info["key"])


def _envs(reward: Any, **options: Any) -> Any:
    return make_vec_env(
        2, prompts=["ab", "b"], tokenizer=TOKENIZER, max_new_tokens=2, rewards=[reward], **options
    )


@pytest.mark.parametrize("scoring", ["immediate", "deferred"])
@pytest.mark.parametrize("method", ["collect", "reset", "step", "close"])
def test_a_reward_may_not_play_its_own_environment(scoring: str, method: str) -> None:
    def greedy(completions: list[str]) -> list[float]:
        calls = {
            "collect": lambda: textenv.collect(envs, _policy, 2, seed=1),
            "reset": lambda: envs.reset(seed=1),
            "step": lambda: envs.unwrapped.step([0, 0]),
            "close": envs.close,
        }
        calls[method]()
        return [0.0] * len(completions)

    envs = _envs(greedy)
    message = rf"{method}\(\) was called on the environment for which reward 'greedy' is being computed"
    with pytest.raises(RewardError, match=message):
        textenv.collect(envs, _policy, 4, seed=0, scoring=scoring)
    # Nothing is left locked.
    envs.reset(seed=0)
    envs.step([0, 0])
    envs.close()


def test_a_single_environment_refuses_it_too() -> None:
    def greedy(completions: list[str]) -> list[float]:
        env.reset(seed=1)
        return [0.0] * len(completions)

    env = make_env(prompts=["ab"], tokenizer=TOKENIZER, max_new_tokens=1, rewards=[greedy])
    env.reset(seed=0)
    with pytest.raises(RewardError, match=r"reset\(\) was called on the environment for which"):
        env.step(0)
    env.reset(seed=0)


@pytest.mark.parametrize("scoring", ["immediate", "deferred"])
def test_a_reward_may_play_another_environment(scoring: str) -> None:
    other = _envs("length")

    def simulated(completions: list[str]) -> list[float]:
        played = textenv.collect(other, _policy, 2, seed=3)
        return [float(played.returns.sum())] * len(completions)

    batch = textenv.collect(_envs(simulated), _policy, 2, seed=0, scoring=scoring)
    assert batch.returns.tolist() == pytest.approx([-0.04, -0.04])
