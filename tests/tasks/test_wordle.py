"""The game "wordle": its rules by hand, exact values, its optimal player, and the data of mixed quality."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import textenv
from textenv.tasks import make_task
from textenv.tasks.partners.wordle import OPENING, Wordle, marks
from textenv.tasks.partners.wordle_words import WORDS
from textenv.tasks.players import play
from textenv.tasks.wordle import best_words, build_wordle, consistent_words, uniform_words, wordle_episodes
from textenv.tasks.wordle_values import WordleValues, values_of


def game(secret: str, words: str = "small") -> Wordle:
    partner = Wordle()
    partner.begin(np.random.default_rng(0), words=words)
    partner.secret = secret
    return partner


def test_the_lists() -> None:
    assert {name: len(words) for name, words in WORDS.items()} == {"small": 236, "large": 431}
    assert set(WORDS["small"]) < set(WORDS["large"])
    for words in WORDS.values():
        assert list(words) == sorted(set(words))
        assert all(len(word) == 5 and word.isascii() and word.islower() for word in words)


@pytest.mark.parametrize(
    ("guess", "secret", "expected"),
    [
        ("apple", "apple", "+++++"),
        ("plane", "apple", "???-+"),
        # The secret has one e, and the guess has it in the right place: the first e is not there.
        ("eerie", "crane", "--?-+"),
        # The s in the right place is the only one; the others are too many.
        ("sassy", "house", "---+-"),
        ("geese", "eagle", "??--+"),
        ("train", "hello", "-----"),
    ],
)
def test_marks_by_hand(guess: str, secret: str, expected: str) -> None:
    assert marks(guess, secret) == expected


def test_rules_by_hand() -> None:
    first, second = WORDS["small"][:2]
    partner = game(second)
    replies = [partner.reply(text) for text in (f" {first.upper()}\n", "zzzzz", second)]
    assert [(reply.reward, reply.done) for reply in replies] == [(-1.0, False), (-2.0, False), (0.0, True)]
    assert replies[0].text.replace(" ", "")[::2] == first
    assert replies[0].text.replace(" ", "")[1::2] == marks(first, second)
    assert replies[1].text == "word?" and replies[1].info == {"malformed": True}


@pytest.mark.parametrize(
    "text", ["", "\n", "about about", "\x00", "\u0430bout", "\ud800", "abou", "a" * 99999]
)
def test_garbage_is_punished(text: str) -> None:
    reply = game(WORDS["small"][0]).reply(text)
    assert (reply.text, reply.reward, reply.done) == ("word?", -2.0, False)


def test_the_secret_is_drawn_from_the_generator() -> None:
    def secrets(seed: int) -> list[str]:
        rng, partner, found = np.random.default_rng(seed), Wordle(), []
        for _ in range(3000):
            partner.begin(rng)
            found.append(partner.secret)
        return found

    assert secrets(1) == secrets(1) != secrets(2) and set(secrets(1)) == set(WORDS["small"])


# -- exact values -----


def test_the_best_return_is_that_of_a_full_search() -> None:
    """On nine words, against a search without bounds, for each limit of turns."""
    words = WORDS["small"][::28]
    values = WordleValues(words)

    def cost(left: tuple[int, ...], turns: int) -> int:
        if turns == 0 or not left:
            return 0
        if len(left) == 1:
            return 0
        found = []
        for guess in range(len(words)):
            groups = values.split(left, guess)
            if groups == [left]:
                continue  # nothing is learned
            found.append(sum(len(group) + cost(group, turns - 1) for group in groups))
        return min(found)

    everything = tuple(range(len(words)))
    assert len(words) == 9
    for turns in (1, 2, 3, 6):
        assert values.best_return(turns) == pytest.approx(-cost(everything, turns) / 9)


def test_values_by_hand() -> None:
    # Each of three words tells the other two apart: 0, 1 and 1 wrong guesses.
    assert WordleValues(["apple", "bread", "storm"]).best_return(6) == pytest.approx(-2 / 3)
    # These say nothing of each other: one after the other.
    alike = ["batch", "catch", "match", "patch"]
    assert WordleValues(alike).best_return(6) == pytest.approx(-(0 + 1 + 2 + 3) / 4)
    assert WordleValues(alike).best_return(2) == pytest.approx(-(0 + 1 + 2 + 2) / 4)
    assert WordleValues(alike).consistent_return(6) == pytest.approx(-1.5)
    assert WordleValues(alike).uniform_return(2) == pytest.approx(-(3 / 4 + 9 / 16))


def test_documented_values() -> None:
    values = values_of("small")
    assert (
        values.best_return(6)
        == pytest.approx(-407 / 236)
        == pytest.approx(make_task("wordle").build().optimum)
    )
    assert values.consistent_return(6) == pytest.approx(-2.0938, abs=1e-4)
    assert values.uniform_return(6) == pytest.approx(-5.9116, abs=1e-4)
    assert values_of("large").best_return(6) == pytest.approx(-822 / 431)


def test_the_optimal_player_attains_the_optimum() -> None:
    player, wrong = best_words("small"), 0
    for secret in WORDS["small"]:
        partner, said = game(secret), OPENING.split()
        for _ in range(6):
            word = player(said, np.random.default_rng(0))
            reply = partner.reply(word)
            if reply.done:
                break
            said = [*said, word, *reply.text.split()]
            wrong += 1
    assert -wrong / 236 == pytest.approx(values_of("small").best_return(6))


@pytest.mark.parametrize("name", ["uniform_return", "consistent_return"])
def test_values_are_those_of_the_players(name: str) -> None:
    player = {"uniform_return": uniform_words, "consistent_return": consistent_words}[name]("small")
    batch = play(build_wordle(), [player], 300, seed=3)
    error = float(batch.returns.std()) / math.sqrt(300)
    assert abs(float(batch.returns.mean()) - getattr(values_of("small"), name)(6)) < 4 * error + 1e-6


# -- environment and data -----


def test_an_episode_in_the_environment() -> None:
    envs = gym.make_vec("TextRLHF-v0", num_envs=2, partner=["wordle", {"words": "large"}])
    base = envs.unwrapped
    obs, _ = envs.reset(seed=0)
    assert base.tokenizer.decode(obs["input_ids"][0][:4]) == "<bos> Guess my word"
    assert base.max_new_tokens == 6 and base.max_length == 4 + 36
    word = WORDS["large"][100]
    obs, rewards, *_ = envs.step(torch.full((2,), base.tokenizer.convert_tokens_to_ids(word)))
    secret = base._turns._partners[0].secret
    shown = " ".join(a + b for a, b in zip(word, marks(word, secret), strict=True))
    assert base.tokenizer.decode(obs["input_ids"][0][4:10]) == f"{word} {shown}" and rewards[0] == -1
    obs, rewards, *_ = envs.step(torch.full((2,), base.tokenizer.eos_token_id))
    assert rewards.tolist() == [-2.0, -2.0]


def test_data_are_a_mixture_and_the_same_for_a_seed() -> None:
    batch, again = (wordle_episodes(200, seed=1) for _ in range(2))
    assert torch.equal(batch.input_ids, again.input_ids) and torch.equal(batch.rewards, again.rewards)
    batch.validate()
    assert batch.rewards[~batch.action_mask].abs().sum() == 0
    assert 0.35 < float((batch.returns == -6).float().mean()) < 0.65
    assert 0.3 < float((batch.returns >= -3).float().mean()) < 0.6


def test_every_token_is_an_action_that_cannot_crash() -> None:
    envs = gym.make_vec("TextRLHF-v0", num_envs=8, task="wordle")
    rng = np.random.default_rng(0)

    def anything(obs, info):
        return torch.from_numpy(rng.integers(len(envs.unwrapped.tokenizer), size=8))

    batch = textenv.collect(envs, anything, 40, seed=0)
    assert float(batch.returns.min()) < -6
