"""Games of TextArena as partners."""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import textenv
from textenv.interop import TurnEnv
from textenv.partners import make_partner

textarena = pytest.importorskip("textarena", reason="the extra textarena is not installed")

GAMES = ("Mastermind-v0-raw", "TowerOfHanoi-v0-raw", "GuessTheNumber-v0-raw", "RushHour-v0-raw")


def character_tokenizer() -> Any:
    from tests.helpers.tokenizer_families import FAMILIES

    return FAMILIES["gpt-2"]()


def envs(game: str, **changes: Any) -> TurnEnv:
    made = {"max_turns": 6, "max_turn_tokens": 20, "max_length": 6000, "rewards": []}
    made |= {"tokenizer": character_tokenizer(), "partner": ["textarena", {"game": game}], **changes}
    return TurnEnv(gym.make("TextRLHF-v0", **made))


@pytest.mark.parametrize("game", GAMES)
def test_the_same_seed_gives_the_same_game(game: str) -> None:
    played = []
    state = random.getstate()
    for _ in range(2):
        env = envs(game)
        said = [env.reset(seed=4)[0]]
        for action in ("[1 2 3 4]", "[A B]", "[5]"):
            reply, _, terminated, truncated, _ = env.step(action)
            said.append(reply)
            if terminated or truncated:
                break
        played.append(said)
    assert played[0] == played[1] and len(played[0][0]) > 200
    assert random.getstate() == state


def test_a_game_is_won() -> None:
    partner = make_partner(["textarena", {"game": "TowerOfHanoi-v0-raw"}]).make()
    partner.begin(np.random.default_rng(0))
    moves = ["A C", "A B", "C B", "A C", "B A", "B C", "A C"]
    replies = [partner.reply(f"[{move}]") for move in moves]
    assert [reply.done for reply in replies] == [False] * 6 + [True]
    assert replies[-1].reward == 1.0 and replies[-1].info == {"invalid": False}


@pytest.mark.parametrize("game", ["Chess-v0-raw", "TwentyQuestions-v0-raw", "Mastermint-v0", 3])
def test_other_games_are_refused(game: Any) -> None:
    with pytest.raises(ValueError, match="game must be a single-player game"):
        make_partner(["textarena", {"game": game}]).make()


def test_several_rows_play_games_of_their_own() -> None:
    spec = ["textarena", {"game": "Mastermind-v0-raw"}]
    made = {"tokenizer": character_tokenizer(), "max_turns": 2, "max_turn_tokens": 4, "max_length": 3000}
    batches = []
    for rows in (1, 3):
        env = gym.make_vec("TextRLHF-v0", rows, partner=spec, rewards=[], max_new_tokens=8, **made)
        batches.append(textenv.collect(env, lambda obs, info: info["key"] % 50, 4, seed=0))
    assert batches[0].extras == batches[1].extras
    assert batches[0].input_ids.tolist() == batches[1].input_ids.tolist()
