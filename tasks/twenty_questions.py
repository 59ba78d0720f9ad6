"""The task "twenty-questions": find one of 64 persons by what they have, from a table; the optimum is known.

A question is one token and so is its answer. What is to be learned is the table and the order of questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.game_settings import TWENTY_QUESTIONS
from textenv.tasks.models import small_gpt2
from textenv.tasks.partners.twenty_questions import OPENING, PERSONS, THINGS, has
from textenv.tasks.players import Player, play
from textenv.tasks.registry import register_task
from textenv.tasks.task import TaskData
from textenv.tasks.words import word_tokenizer
from textenv.utils.checks import check_at_least, check_choice

MAX_TURNS = 20
SPLITS = ("train", "validation")
EPISODES = 3000
"""Of the data for offline agents."""
_START = len(OPENING.split())
_ANSWERS = ("yes", "no", "what?")
_WORDS = (*THINGS, *PERSONS)


@register_task("twenty-questions", settings=TWENTY_QUESTIONS)
def build_twenty_questions(split: str = "train", max_turns: int = MAX_TURNS, data_seed: int = 0) -> TaskData:
    """Find one of 64 persons by yes-no questions of -1; six of 24 tell all apart, optimum -5.5.

    Args:
        split: "train" or "validation", which are the same.
        max_turns: most questions and names.
        data_seed: of the data for offline agents.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_choice("split", split, SPLITS)
    check_at_least("max_turns", max_turns, 1)
    tokenizer = word_tokenizer([*_WORDS, *_ANSWERS, *OPENING.split()])
    return TaskData(
        prompts=[tokenizer.bos_token],
        tokenizer=tokenizer,
        rewards=[],
        partner=["twenty-questions", {}],
        max_turns=max_turns,
        max_turn_tokens=1,
        max_new_tokens=max_turns,
        max_length=1 + _START + 2 * max_turns,
        optimum=best_return(len(PERSONS), max_turns),
        model_config=partial(small_gpt2, tokenizer, layers=2, width=128, heads=4, positions=512),
        make_player=best_player,
        make_demonstrations=partial(twenty_questions_episodes, EPISODES, max_turns, seed=data_seed),
    )


def best_return(persons: int, max_turns: int) -> float:
    """Mean return of the best player if every question can split the persons as one likes.

    No table allows more, and the one of the partner, which can always be halved, allows as much.

    >>> best_return(2, 20), best_return(64, 20)
    (-0.5, -5.5)
    """
    return -_least(persons, max_turns) / persons


@cache
def _least(persons: int, turns: int) -> int:
    """The least number of turns that are not right, in sum over the persons."""
    if turns == 0 or persons <= 1:
        return 0
    named = persons - 1 + _least(persons - 1, turns - 1)
    asked = [_least(k, turns - 1) + _least(persons - k, turns - 1) for k in range(1, persons // 2 + 1)]
    return min(named, persons + min(asked))


def uniform_return(max_turns: int) -> float:
    """Mean return of a player that draws each turn from all things and persons.

    >>> round(uniform_return(20), 2)
    -17.78
    """
    missed = 1 - 1 / len(_WORDS)
    return -sum(missed**turn for turn in range(1, max_turns + 1))


def twenty_questions_episodes(
    episodes: int = EPISODES, max_turns: int = MAX_TURNS, *, seed: int = 0
) -> EpisodeBatch:
    """Episodes of mixed quality: a third each of uniform, informative and half optimal turns.

    Args:
        episodes: how many.
        max_turns: most turns.
        seed: of persons and turns.
    """
    data = build_twenty_questions(max_turns=max_turns)
    return play(data, [uniform_words, informative, half_best], episodes, seed=seed)


# -- players -----


def uniform_words(words: Sequence[str], rng: np.random.Generator) -> str:
    """Any thing or person, equally likely."""
    return _WORDS[int(rng.integers(len(_WORDS)))]


def informative(words: Sequence[str], rng: np.random.Generator) -> str:
    """Any thing that some of the possible persons have; the person if only one is left."""
    left = _left(words)
    if len(left) == 1:
        return PERSONS[left[0]]
    useful = [thing for thing in THINGS if 0 < sum(has(person, thing) for person in left) < len(left)]
    return useful[int(rng.integers(len(useful)))]


def best(words: Sequence[str], rng: np.random.Generator) -> str:
    """The optimal player: the thing that divides the possible persons best, or one of the last two."""
    left = _left(words)
    if len(left) <= 2:
        return PERSONS[left[0]]
    return min(THINGS, key=lambda thing: abs(2 * sum(has(person, thing) for person in left) - len(left)))


def best_player() -> Player:
    """The optimal player."""
    return best


def half_best(words: Sequence[str], rng: np.random.Generator) -> str:
    """The optimal player's turn or an informative one, equally likely."""
    return (best if rng.random() < 0.5 else informative)(words, rng)


def _left(words: Sequence[str]) -> list[int]:
    """Numbers of the persons that no answer excludes; all if answers contradict each other."""
    everybody = list(range(len(PERSONS)))
    left = everybody
    for word, answer in zip(words[_START::2], words[_START + 1 :: 2], strict=False):
        if word in THINGS and answer != "what?":
            left = [person for person in left if has(person, word) == (answer == "yes")]
        elif word in PERSONS:
            left = [person for person in left if PERSONS[person] != word]
    return left or everybody
