"""Environments of other libraries as partners, and turns as steps of strings."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import textenv
from tests.helpers.partners import TALKER, Guess
from textenv.interop import TurnEnv, from_step

MADE: dict[str, Any] = {"tokenizer": TALKER, "rewards": [], "max_turns": 4, "max_turn_tokens": 2}


class Game:
    """A game that uses all global generators, by the rules of Gymnasium."""

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        self.secret = (random.randrange(5) + int(np.random.randint(5))) % 10
        return "w", {}

    def judged(self, action: str) -> tuple[str, float, bool]:
        if random.random() < 0.2:
            return "hh", 0.0, False
        return ("w", 1.0, True) if action == str(self.secret) else ("l", -0.5, False)

    def step(self, action: str) -> Any:
        said, reward, done = self.judged(action)
        return said, reward, done, False, {}


class OldGym(Game):
    def reset(self) -> str:  # type: ignore[override]
        return super().reset()[0]

    def step(self, action: str) -> Any:
        return (*self.judged(action), {})


class SkyRL(Game):
    def init(self) -> tuple[list[dict[str, str]], dict[str, Any]]:
        super().reset()
        return [{"role": "user", "content": "w"}], {}

    reset = None  # type: ignore[assignment]

    def step(self, action: str) -> Any:
        said, reward, done = self.judged(action)
        return {"observations": [{"role": "user", "content": said}], "reward": reward, "done": done}


@dataclass
class Result:
    observation: Any
    reward: float | None
    done: bool


@dataclass
class Seen:
    message: str


class OpenEnv(Game):
    def reset(self) -> Result:  # type: ignore[override]
        super().reset()
        return Result(Seen("w"), None, False)

    def step(self, action: str) -> Any:
        said, reward, done = self.judged(action)
        return Result(Seen(said), reward, done)


def by_key(obs: dict[str, Any], info: dict[str, Any]) -> Any:
    key = torch.as_tensor(info["key"])
    return torch.where(key % 3 == 0, TALKER.eos_token_id, (key >> 8) % 10)


@pytest.mark.parametrize("kind", [Game, OldGym, SkyRL, OpenEnv])
def test_episodes_are_a_function_of_the_seed(kind: Any) -> None:
    batches = []
    before = random.getstate(), np.random.get_state()[1].tolist()
    for rows in (1, 4):
        envs = gym.make_vec("TextRLHF-v0", rows, partner=from_step(kind), **MADE)
        batches.append(textenv.collect(envs, by_key, 10, seed=2))
    assert before == (random.getstate(), np.random.get_state()[1].tolist())
    assert batches[0].input_ids.tolist() == batches[1].input_ids.tolist()
    assert batches[0].extras == batches[1].extras
    assert {"done", "max_turns"} == set(batches[0].extras["stop_reason"])
    said = [[reply["reward"] for reply in replies] for replies in batches[0].extras["replies"]]
    assert batches[0].returns.tolist() == [sum(rewards) for rewards in said]


def test_all_four_shapes_give_the_same_episodes() -> None:
    found = []
    for kind in (Game, OldGym, SkyRL, OpenEnv):
        envs = gym.make_vec("TextRLHF-v0", 2, partner=from_step(kind), **MADE)
        found.append(textenv.collect(envs, by_key, 6, seed=3).input_ids.tolist())
    assert found[0] == found[1] == found[2] == found[3]


def test_actions_and_observations_can_be_converted() -> None:
    class Numbers:
        def reset(self) -> int:
            return 4

        def step(self, action: int) -> Any:
            return action + 1, float(action), False, False, {}

    partner = from_step(Numbers, action=int, observation=str)
    assert partner.begin(np.random.default_rng(0)) == "4"
    assert (partner.reply("6").text, partner.reply("6").reward) == ("7", 6.0)
    with pytest.raises(TypeError, match="give observation="):
        from_step(Numbers).begin(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make_env", "message"), [(3, "make_env must be a function"), (dict, "an object with reset and step")]
)
def test_bad_environments(make_env: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        from_step(make_env).begin(np.random.default_rng(0))


def test_an_unknown_result_is_refused() -> None:
    class Odd(Game):
        def step(self, action: str) -> Any:
            return "w", 1.0

    partner = from_step(Odd)
    partner.begin(np.random.default_rng(0))
    with pytest.raises(TypeError, match="step must return"):
        partner.reply("1")


# -- strings -----


def game(**changes: Any) -> TurnEnv:
    return TurnEnv(gym.make("TextRLHF-v0", partner=Guess, **{**MADE, **changes}))


def test_a_turn_is_a_step() -> None:
    env = game()
    text, _ = env.reset(seed=0)
    secret = env._base.rows._turns._partners[0].secret
    assert text == "w9"
    reply, reward, terminated, truncated, _ = env.step(str((secret + 1) % 10))
    assert reply in ("l", "h") and reward == -0.125 and not terminated and not truncated
    assert env.step("33")[:2] == ("ww", -0.25)
    reply, reward, terminated, truncated, _ = env.step(str(secret))
    assert (reply, reward, terminated, truncated) == ("w", 1.0, True, False)
    record = env._base.finished_with_rewards
    assert record.extras["turns"] == [[str((secret + 1) % 10), "33", str(secret)]]
    assert record.returns.tolist() == [0.625]


def test_the_facade_is_a_gymnasium_environment() -> None:
    env = game()
    env.reset(seed=1)
    rewards = []
    for _ in range(4):
        observation, reward, terminated, truncated, _ = env.step("5")
        assert env.observation_space.contains(observation) and env.action_space.contains("5")
        rewards.append(reward)
        if terminated or truncated:
            break
    assert rewards and (terminated or truncated)


@pytest.mark.parametrize(("action", "message"), [("123", "got 3 tokens"), (5, "action must be a string")])
def test_bad_turns(action: Any, message: str) -> None:
    env = game()
    env.reset(seed=0)
    with pytest.raises((ValueError, TypeError), match=message):
        env.step(action)


def test_it_needs_a_partner() -> None:
    with pytest.raises(ValueError, match="env must have a partner"):
        TurnEnv(gym.make("TextRLHF-v0", prompts=["h"], tokenizer=TALKER, rewards=[], max_new_tokens=3))
    with pytest.raises(TypeError, match="must be a single environment"):
        TurnEnv(gym.make_vec("TextRLHF-v0", 2, partner=Guess, **MADE))  # type: ignore[arg-type]
