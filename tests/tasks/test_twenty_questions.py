"""The game "twenty-questions": its rules by hand, its optimum, and the data of mixed quality."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import textenv
from textenv.tasks import make_task
from textenv.tasks.partners.twenty_questions import OPENING, PERSONS, THINGS, TwentyQuestions, has
from textenv.tasks.players import play
from textenv.tasks.twenty_questions import (
    best,
    best_return,
    build_twenty_questions,
    informative,
    twenty_questions_episodes,
    uniform_return,
    uniform_words,
)


def game(secret: int) -> TwentyQuestions:
    partner = TwentyQuestions()
    partner.begin(np.random.default_rng(0))
    partner.secret = secret
    return partner


def play_out(player, secret: int) -> tuple[float, list[str]]:
    """Return and turns of a player."""
    partner, words, total, turns = game(secret), OPENING.split(), 0.0, []
    rng = np.random.default_rng(secret)
    while True:
        turns.append(player(words, rng))
        reply = partner.reply(turns[-1])
        total += reply.reward
        if reply.done:
            return total, turns
        words = [*words, turns[-1], reply.text]


def test_the_table() -> None:
    assert len(PERSONS) == len(set(PERSONS)) == 64 and len(THINGS) == 24
    rows = {tuple(has(person, thing) for thing in THINGS) for person in range(64)}
    assert len(rows) == 64
    shares = {thing: bin(mask).count("1") for thing, mask in THINGS.items()}
    assert all(0 < share < 64 for share in shares.values())
    halves = [thing for thing, share in shares.items() if share == 32]
    assert len({tuple(has(person, thing) for thing in halves[:6]) for person in range(64)}) == 64


def test_rules_by_hand() -> None:
    secret = next(i for i in range(64) if has(i, "hat") and not has(i, "dog"))
    other = PERSONS[(secret + 1) % 64]
    partner = game(secret)
    texts = ("hat", " Has it a DOG?", other, f"hat {other}", "hello", PERSONS[secret].lower())
    replies = [partner.reply(text) for text in texts]
    assert [(reply.text, reply.reward, reply.done) for reply in replies] == [
        ("yes", -1.0, False),
        ("no", -1.0, False),
        ("no", -1.0, False),
        ("what?", -2.0, False),
        ("what?", -2.0, False),
        ("yes", 0.0, True),
    ]
    assert replies[3].info == {"malformed": True} and replies[5].info == {"won": True}


@pytest.mark.parametrize(
    "text", ["", "\n", "hat hat", "hats", "h\u0430t", "\x00", "\ud800", "x " * 9999 + "hat"]
)
def test_garbage_is_punished(text: str) -> None:
    reply = game(0).reply(text)
    assert (reply.text, reply.reward, reply.done) == ("what?", -2.0, False)


def test_the_person_is_drawn_from_the_generator() -> None:
    def persons(seed: int) -> list[int]:
        rng, partner, found = np.random.default_rng(seed), TwentyQuestions(), []
        for _ in range(800):
            partner.begin(rng)
            found.append(partner.secret)
        return found

    assert persons(1) == persons(1) != persons(2) and set(persons(1)) == set(range(64))


def test_the_optimal_player_attains_the_optimum() -> None:
    played = [play_out(best, secret) for secret in range(64)]
    assert sum(total for total, _ in played) / 64 == -5.5 == make_task("twenty-questions").build().optimum
    # Five questions leave two persons; a sixth would tell them apart, naming one is as good on average.
    assert all(len([turn for turn in turns if turn in THINGS]) == 5 for _, turns in played)


@pytest.mark.parametrize(
    ("persons", "turns", "expected"),
    [
        (1, 1, 0.0),
        (2, 20, -1 / 2),
        (3, 20, -(0 + 1 + 2) / 3),
        (4, 20, -(0 + 1 + 2 + 3) / 4),
        # Eight: one question, then four as above.
        (8, 20, -1 - 6 / 4),
        (8, 1, -7 / 8),
        (8, 2, -(7 + 6) / 8),
    ],
)
def test_optimum_by_hand(persons: int, turns: int, expected: float) -> None:
    assert best_return(persons, turns) == pytest.approx(expected)


def test_the_uniform_return_is_that_of_the_player() -> None:
    batch = play(build_twenty_questions(max_turns=6), [uniform_words], 400, seed=3)
    error = float(batch.returns.std()) / math.sqrt(400)
    assert abs(float(batch.returns.mean()) - uniform_return(6)) < 4 * error + 1e-3


def test_informative_questions_end() -> None:
    totals = [play_out(informative, secret)[0] for secret in range(64)]
    assert min(totals) > -20 and sum(totals) / 64 < -5.5


def test_an_episode_in_the_environment() -> None:
    envs = gym.make_vec("TextRLHF-v0", num_envs=2, partner="twenty-questions")
    base = envs.unwrapped
    obs, _ = envs.reset(seed=0)
    assert base.tokenizer.decode(obs["input_ids"][0][:4]) == "<bos> Guess my person"
    assert base.max_new_tokens == 20 and base.max_length == 4 + 40
    obs, rewards, *_ = envs.step(torch.full((2,), base.tokenizer.convert_tokens_to_ids("hat")))
    answer = "yes" if has(base._turns._partners[0].secret, "hat") else "no"
    assert base.tokenizer.decode(obs["input_ids"][0][4:6]) == f"hat {answer}" and rewards.tolist() == [-1, -1]


def test_data_are_a_mixture_and_the_same_for_a_seed() -> None:
    batch, again = (twenty_questions_episodes(150, seed=1) for _ in range(2))
    assert torch.equal(batch.input_ids, again.input_ids) and torch.equal(batch.rewards, again.rewards)
    batch.validate()
    assert batch.rewards[~batch.action_mask].abs().sum() == 0
    assert 0.15 < float((batch.returns == -20).float().mean()) < 0.45
    assert 0.4 < float((batch.returns >= -11).float().mean()) < 0.8


def test_every_token_is_an_action_that_cannot_crash() -> None:
    envs = gym.make_vec("TextRLHF-v0", num_envs=8, task="twenty-questions")
    rng = np.random.default_rng(0)

    def anything(obs, info):
        return torch.from_numpy(rng.integers(len(envs.unwrapped.tokenizer), size=8))

    batch = textenv.collect(envs, anything, 20, seed=0)
    assert float(batch.returns.min()) < -20
