"""The task "guess-number": find a number by asking whether it is higher or lower; the optimum is known.

Each number is one token, and so is a turn and a reply. A reply repeats the guess: otherwise a model must look
up its guess before the reply, and one of two layers learns that much more slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.game_settings import GUESS_NUMBER
from textenv.tasks.models import small_gpt2
from textenv.tasks.partners.guess_number import WON, WRONG, opening
from textenv.tasks.players import Player, play
from textenv.tasks.registry import register_task
from textenv.tasks.task import TaskData
from textenv.tasks.words import word_tokenizer
from textenv.utils.checks import check_at_least, check_choice

MAX_TURNS = 10
SPLITS = ("train", "validation")
EPISODES = 5000
"""Of the data for offline agents."""
_WORDS = ("Guess", "my", "number:", "to", "higher", "lower", "number?")
_MOST = 10_000


@register_task("guess-number", settings=GUESS_NUMBER)
def build_guess_number(
    split: str = "train",
    top: int = 100,
    repeat: bool = True,
    max_turns: int = MAX_TURNS,
    data_seed: int = 0,
) -> TaskData:
    """Find a number from 1 to 100 by asking whether it is higher or lower; optimum 0.52 (5.8 guesses).

    The return is 1 - 0.1 for each wrong guess, and without the 1 if the number is not found in ten turns.

    Args:
        split: "train" or "validation", which are the same.
        top: the largest number.
        repeat: replies repeat the guess.
        max_turns: maximum number of guesses.
        data_seed: seed of the data for offline agents.

    Raises:
        ValueError: if the split is unknown or a number is out of range.
    """
    check_choice("split", split, SPLITS)
    check_at_least("top", top, 1)
    check_at_least("max_turns", max_turns, 1)
    if top > _MOST:
        raise ValueError(f"top must be <= {_MOST}, for each number is a token, got {top}")
    numbers = [str(number) for number in range(1, top + 1)]
    replies = [f"{reply}:{number}" for reply in ("lower", "higher") for number in numbers] if repeat else []
    tokenizer = word_tokenizer([*numbers, *_WORDS, *replies])
    start = 1 + len(opening(top).split())
    return TaskData(
        prompts=[tokenizer.bos_token],
        tokenizer=tokenizer,
        rewards=[],
        partner=["guess-number", {"top": top, "repeat": repeat}],
        max_turns=max_turns,
        max_turn_tokens=1,
        max_new_tokens=max_turns,
        max_length=start + 2 * max_turns,
        optimum=best_return(top, max_turns),
        model_config=partial(small_gpt2, tokenizer, layers=2, width=64, heads=4, positions=512),
        make_player=best_player,
        make_demonstrations=partial(
            guess_number_episodes, EPISODES, top, max_turns, repeat=repeat, seed=data_seed
        ),
    )


def best_return(top: int, max_turns: int) -> float:
    """Mean return of the best player over all numbers from 1 to ``top``.

    At most 2^(t-1) numbers can be found by the t-th guess. Binary search attains this at every t.

    >>> round(best_return(100, 10), 4)
    0.52
    """
    total, left = 0.0, top
    for turn in range(max_turns):
        found = min(2**turn, left)
        total += found * (WON + turn * WRONG)
        left -= found
    return (total + left * max_turns * WRONG) / top


def uniform_return(top: int, max_turns: int) -> float:
    """Mean return of a player that draws every guess from 1 to ``top``.

    >>> round(uniform_return(100, 10), 4)
    -0.851
    """
    missed = 1 - 1 / top
    return sum(missed**turn * (WON / top + missed * WRONG) for turn in range(max_turns))


def consistent_return(top: int, max_turns: int) -> float:
    """Mean return of a player that draws from the numbers that no reply excludes.

    >>> round(consistent_return(100, 10), 4), round(consistent_return(3, 1), 4)
    (0.2354, 0.2667)
    """
    value = [0.0] * (top + 1)  # by how many numbers are possible
    for _ in range(max_turns):
        # Each of n guesses k leaves k - 1 numbers with chance (k - 1) / n, and likewise above.
        after = [n * (WRONG + value[n]) for n in range(top + 1)]
        sums = np.concatenate([[0.0], np.cumsum(after)])
        value = [0.0, *((WON + 2 * sums[n] / n) / n for n in range(1, top + 1))]
    return float(value[top])


# -- players -----


def binary_search(words: Sequence[str], rng: np.random.Generator) -> str:
    """The optimal player: the middle of the numbers that are possible."""
    low, high = _bounds(words)
    return str((low + high) // 2)


def best_player() -> Player:
    """The optimal player."""
    return binary_search


def consistent_random(words: Sequence[str], rng: np.random.Generator) -> str:
    """Any number that no reply excludes, equally likely."""
    low, high = _bounds(words)
    return str(rng.integers(low, high + 1))


def uniform_random(words: Sequence[str], rng: np.random.Generator) -> str:
    """Any number, equally likely."""
    return str(rng.integers(1, int(words[_TOP]) + 1))


def noisy_search(words: Sequence[str], rng: np.random.Generator) -> str:
    """Binary search in two of three turns, else any possible number."""
    return (binary_search if rng.random() < 2 / 3 else consistent_random)(words, rng)


PLAYERS: tuple[Player, ...] = (
    uniform_random,
    *(consistent_random, consistent_random),
    *(noisy_search, noisy_search),
)
"""Of the data for offline agents, each equally likely."""
_TOP = len(opening(1).split()) - 1


def _bounds(words: Sequence[str]) -> tuple[int, int]:
    """The smallest and largest number that the replies leave; all if they contradict each other."""
    low, high = 1, int(words[_TOP])
    for guess, reply in zip(words[_TOP + 1 :: 2], words[_TOP + 2 :: 2], strict=False):
        if reply.startswith("higher"):
            low = max(low, int(guess) + 1)
        elif reply.startswith("lower"):
            high = min(high, int(guess) - 1)
    return low, high


def guess_number_episodes(
    episodes: int = EPISODES,
    top: int = 100,
    max_turns: int = MAX_TURNS,
    *,
    repeat: bool = True,
    seed: int = 0,
) -> EpisodeBatch:
    """Episodes of mixed quality: a fifth guess any number, two fifths a possible one, two search.

    Args:
        episodes: number of episodes.
        top: the largest number.
        max_turns: maximum number of guesses.
        repeat: replies repeat the guess.
        seed: of the numbers and guesses.
    """
    data = build_guess_number(top=top, repeat=repeat, max_turns=max_turns)
    return play(data, PLAYERS, episodes, seed=seed)
