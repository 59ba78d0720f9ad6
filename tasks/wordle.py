"""The task "wordle": find a secret word in six guesses; the best return is known for both word lists.

A word is one token, and so is each letter of a reply with its mark. A model of two layers need not learn how
words are spelled before it learns which words a mark excludes: the logits of words add up what the marks say.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from string import ascii_lowercase

import numpy as np

from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.game_settings import WORDLE
from textenv.tasks.models import small_gpt2
from textenv.tasks.partners.wordle import ABSENT, ELSEWHERE, OPENING, PLACE
from textenv.tasks.partners.wordle_words import WORDS
from textenv.tasks.players import Player, play
from textenv.tasks.registry import register_task
from textenv.tasks.task import TaskData
from textenv.tasks.wordle_values import Words, values_of
from textenv.tasks.words import word_tokenizer
from textenv.utils.checks import check_at_least, check_choice

MAX_TURNS = 6
SPLITS = ("train", "validation")
EPISODES = 3000
"""Of the data for offline agents."""
_LETTERS = 5
_START = len(OPENING.split())


@register_task("wordle", settings=WORDLE)
def build_wordle(
    split: str = "train", words: str = "small", max_turns: int = MAX_TURNS, data_seed: int = 0
) -> TaskData:
    """Find a word of five letters in six guesses of -1; 236 words, optimum -1.72 (431 words: -1.91).

    Args:
        split: "train" or "validation", which are the same.
        words: "small" or "large", the list of words.
        max_turns: most guesses.
        data_seed: of the data for offline agents.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_choice("split", split, SPLITS)
    check_choice("words", words, WORDS)
    check_at_least("max_turns", max_turns, 1)
    letters = [letter + mark for letter in ascii_lowercase for mark in (PLACE, ELSEWHERE, ABSENT)]
    tokenizer = word_tokenizer([*WORDS[words], *OPENING.split(), "word?", *letters])
    return TaskData(
        prompts=[tokenizer.bos_token],
        tokenizer=tokenizer,
        rewards=[],
        partner=["wordle", {"words": words}],
        max_turns=max_turns,
        max_turn_tokens=1,
        max_new_tokens=max_turns,
        max_length=1 + _START + (1 + _LETTERS) * max_turns,
        optimum=values_of(words).best_return(max_turns),
        model_config=partial(small_gpt2, tokenizer, layers=2, width=128, heads=4, positions=512),
        make_player=partial(best_words, words, max_turns),
        make_demonstrations=partial(wordle_episodes, EPISODES, words, max_turns, seed=data_seed),
    )


def wordle_episodes(
    episodes: int = EPISODES, words: str = "small", max_turns: int = MAX_TURNS, *, seed: int = 0
) -> EpisodeBatch:
    """Episodes of mixed quality: half guess any word, half one that no reply excludes.

    Args:
        episodes: how many.
        words: "small" or "large".
        max_turns: most guesses.
        seed: of secrets and guesses.
    """
    data = build_wordle(words=words, max_turns=max_turns)
    return play(data, [uniform_words(words), consistent_words(words)], episodes, seed=seed)


# -- players -----


def uniform_words(words: str) -> Player:
    """A player that guesses any word of the list, equally likely."""

    def guess(said: Sequence[str], rng: np.random.Generator) -> str:
        return WORDS[words][int(rng.integers(len(WORDS[words])))]

    return guess


def consistent_words(words: str) -> Player:
    """A player that guesses one of the words that no reply excludes, equally likely."""

    def guess(said: Sequence[str], rng: np.random.Generator) -> str:
        left = _left(said, words)
        return WORDS[words][left[int(rng.integers(len(left)))]]

    return guess


def best_words(words: str, max_turns: int = MAX_TURNS) -> Player:
    """The optimal player."""

    def guess(said: Sequence[str], rng: np.random.Generator) -> str:
        turns = max_turns - len(_turns(said))
        return WORDS[words][values_of(words).best(_left(said, words), max(1, turns))[1]]

    return guess


def _turns(said: Sequence[str]) -> list[tuple[str, str]]:
    """(guess, marks) of each turn with a word of the list."""
    found, at = [], _START
    while at + 1 < len(said):
        if said[at + 1] == "word?":
            at += 2
            continue
        found.append((said[at], "".join(letter[1] for letter in said[at + 1 : at + 1 + _LETTERS])))
        at += 1 + _LETTERS
    return found


def _left(said: Sequence[str], words: str) -> Words:
    """The words that no reply excludes."""
    values = values_of(words)
    left = tuple(range(len(values.words)))
    for guess, marked in _turns(said):
        left = values.after(left, guess, marked)
    return left
