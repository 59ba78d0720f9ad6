"""The game "guess-number": its rules by hand, its optimum, and the data for offline agents."""

from __future__ import annotations

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import textenv
from textenv.partners.registry import make_partner
from textenv.tasks import make_task
from textenv.tasks.guess_number import (
    best_return,
    binary_search,
    build_guess_number,
    consistent_random,
    consistent_return,
    guess_number_episodes,
    uniform_random,
    uniform_return,
)
from textenv.tasks.partners.guess_number import GuessNumber, parse_number
from textenv.tasks.players import play

GARBAGE = (
    "",
    " ",
    "fifty",
    "50 51",
    "5 0",
    "-50",
    "50.5",
    "1e2",
    "\u0665\u0660",
    "\uff15\uff10",
    "\u00b2",
    "\x00",
    "\n\t",
    "9" * 5000,
)


def game(secret: int, top: int = 100, repeat: bool = True) -> GuessNumber:
    partner = GuessNumber()
    partner.begin(np.random.default_rng(0), top=top, repeat=repeat)
    partner.secret = secret
    return partner


def play_out(player, secret: int, top: int = 100) -> int:
    """Number of guesses of a player."""
    partner, words = game(secret, top), f"Guess my number: 1 to {top}".split()
    for turn in itertools.count(1):
        guess = player(words, np.random.default_rng([secret, turn]))
        reply = partner.reply(guess)
        if reply.done:
            return turn
        words = [*words, guess, reply.text]
    raise AssertionError


def test_rules_by_hand() -> None:
    partner = game(42)
    replies = [partner.reply(text) for text in ("50", " 25", "I say 41!", "500", "what", "42")]
    said = [(reply.text, reply.reward, reply.done) for reply in replies]
    assert said == [
        ("lower:50", -0.1, False),
        ("higher:25", -0.1, False),
        ("higher:41", -0.1, False),
        ("lower", -0.1, False),
        ("number?", -0.2, False),
        ("right", 1.0, True),
    ]
    assert [dict(reply.info) for reply in replies[-2:]] == [{"malformed": True}, {"won": True}]


def test_replies_need_not_repeat_the_guess() -> None:
    assert [game(42, repeat=False).reply(text).text for text in ("50", "41")] == ["lower", "higher"]
    batch = guess_number_episodes(20, 20, repeat=False, seed=0)
    said = {reply["text"] for replies in batch.extras["replies"] for reply in replies}
    assert said == {"lower", "higher", "right"}


@pytest.mark.parametrize("text", [*GARBAGE, "50" + " " * 10_000, "\ud800", "50\u202e7"])
def test_garbage_is_punished(text: str) -> None:
    reply = game(50).reply(text)
    assert (reply.text, reply.reward, reply.done) == ("number?", -0.2, False)


def test_numbers_are_read() -> None:
    texts = ["7", " 7 ", "007", "It's 7.", "(7)", "7,"]
    assert [parse_number(text) for text in texts] == [7] * len(texts)


def test_the_number_is_drawn_from_the_generator() -> None:
    def secrets(seed: int) -> list[int]:
        rng, partner = np.random.default_rng(seed), GuessNumber()
        found = []
        for _ in range(200):
            partner.begin(rng, top=5)
            found.append(partner.secret)
        return found

    assert secrets(1) == secrets(1) != secrets(2)
    assert set(secrets(1)) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("top", "turns", "expected"),
    [
        (1, 3, 1.0),
        (2, 3, (1.0 + 0.9) / 2),
        (3, 2, (1.0 + 0.9 * 2) / 3),
        # One number is found at once, two in the second turn, and four are not found.
        (7, 2, (1.0 + 2 * 0.9 + 4 * -0.2) / 7),
        # 1 + 2 * 2 + 4 * 3 + 8 * 4 + 16 * 5 + 32 * 6 + 37 * 7 = 580 guesses for 100 numbers.
        (100, 10, 1.0 - 0.1 * (5.80 - 1)),
    ],
)
def test_optimum_by_hand(top: int, turns: int, expected: float) -> None:
    assert best_return(top, turns) == pytest.approx(expected)


def test_binary_search_attains_the_optimum() -> None:
    guesses = [play_out(binary_search, secret) for secret in range(1, 101)]
    assert sum(guesses) == 580 and max(guesses) == 7
    mean = sum(1 - 0.1 * (count - 1) for count in guesses) / 100
    assert mean == pytest.approx(make_task("guess-number").build().optimum) == pytest.approx(0.52)


def test_no_strategy_is_better() -> None:
    """By dynamic programming over intervals: the fewest guesses in sum over all numbers."""
    best = [0.0, 1.0]
    for size in range(2, 101):
        best.append(size + min(best[left] + best[size - 1 - left] for left in range(size)))
    assert best[100] == 580


def test_consistent_guesses_need_as_many_as_a_random_search_tree() -> None:
    """Without a limit in effect: 2 (1 + 1/n) H_n - 3 guesses, the mean depth in a random search tree."""
    guesses = 2 * 1.1 * sum(1 / k for k in range(1, 11)) - 3
    assert consistent_return(10, 10) == pytest.approx(1 - 0.1 * (guesses - 1))
    # One guess: 1 with chance 1/3.
    assert consistent_return(3, 1) == pytest.approx((1 - 0.1 * 2) / 3)


@pytest.mark.parametrize(
    ("player", "exact"), [(uniform_random, uniform_return), (consistent_random, consistent_return)]
)
def test_values_are_those_of_the_players(player, exact) -> None:
    batch = play(build_guess_number(top=10, max_turns=4), [player], 600, seed=3)
    error = float(batch.returns.std()) / math.sqrt(600)
    assert abs(float(batch.returns.mean()) - exact(10, 4)) < 4 * error


def test_the_environment_as_users_write_it() -> None:
    envs = gym.make_vec(
        "TextRLHF-v0", num_envs=4, partner=["guess-number", {"top": 100}], max_turns=10, max_turn_tokens=4
    )
    base = envs.unwrapped
    # The budgets are those of ten turns of four tokens, not those of the task's turns of one.
    assert base.max_new_tokens == 40 and base.max_length == 1 + 40 + 10 * GuessNumber.max_reply_tokens
    tokenizer = base.tokenizer
    obs, _ = envs.reset(seed=0)
    assert tokenizer.decode(obs["input_ids"][0][:7]) == "<bos> Guess my number: 1 to 100"
    for token in ("50", "<eos>"):
        obs, rewards, *_ = envs.step(torch.full((4,), tokenizer.convert_tokens_to_ids(token)))
    assert rewards.tolist() == pytest.approx([-0.1] * 4)
    assert tokenizer.decode(obs["input_ids"][0][7:10]) in ("50 <eos> lower:50", "50 <eos> higher:50")


def test_arguments_of_the_partner_are_those_of_the_task() -> None:
    envs = gym.make_vec("TextRLHF-v0", num_envs=1, partner=["guess-number", {"top": 8}])
    assert len(envs.unwrapped.tokenizer) == 8 + 7 + 16 + 3  # numbers, words, replies, BOS, EOS and PAD
    assert make_partner(["guess-number", {"top": 8}]).begin == {"top": 8}
    with pytest.raises(ValueError, match="guess-number: top must be >= 1, got 0"):
        make_partner(["guess-number", {"top": 0}]).make().begin(np.random.default_rng(0), top=0)


def test_data_are_a_mixture_and_the_same_for_a_seed() -> None:
    batch = guess_number_episodes(240, seed=1)
    again = guess_number_episodes(240, seed=1)
    assert torch.equal(batch.input_ids, again.input_ids) and torch.equal(batch.rewards, again.rewards)
    assert not torch.equal(batch.rewards, guess_number_episodes(240, seed=2).rewards)
    batch.validate()
    assert batch.rewards[~batch.action_mask].abs().sum() == 0
    returns = batch.returns
    assert float(returns.min()) == pytest.approx(-1.0) and float(returns.max()) > 0.5
    assert 0.15 < float((returns < -0.9).float().mean()) < 0.45
    assert float((returns > 0.35).float().mean()) > 0.4


def test_data_do_not_depend_on_the_rows() -> None:
    data, players = build_guess_number(top=20), [uniform_random, binary_search]
    few, many = (play(data, players, 30, seed=4, num_envs=rows) for rows in (3, 16))
    assert few.input_ids.tolist() == many.input_ids.tolist()
    assert few.extras == many.extras


def test_every_token_is_an_action_that_cannot_crash() -> None:
    envs = gym.make_vec("TextRLHF-v0", num_envs=8, task="guess-number")
    rng = np.random.default_rng(0)

    def anything(obs, info):
        return torch.from_numpy(rng.integers(len(envs.unwrapped.tokenizer), size=8))

    batch = textenv.collect(envs, anything, 60, seed=0)
    assert float(batch.returns.min()) < -1.0  # malformed turns
    assert set(batch.extras["stop_reason"]) <= {"done", "max_turns"}
