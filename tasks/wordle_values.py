"""Values of players of Wordle: exact for uniform and consistent guesses, and the best one by search.

Words are numbered as in the list. A state is the set of words that the replies leave, and the turns left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from textenv.tasks.partners.wordle import marks
from textenv.tasks.partners.wordle_words import WORDS

Words = tuple[int, ...]


class WordleValues:
    """Values and best guesses for one list of words; guesses are of the list, too.

    Args:
        words: distinct words of five letters.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._number: dict[str, int] = {}
        self.replies = [[self._reply(guess, secret) for secret in words] for guess in words]
        """Guess -> secret -> the number of the reply."""
        self._table = np.array(self.replies)
        self._best: dict[tuple[Words, int], tuple[int, int]] = {}
        self._consistent: dict[tuple[Words, int], float] = {}

    def _reply(self, guess: str, secret: str) -> int:
        return self._number.setdefault(marks(guess, secret), len(self._number))

    def uniform_return(self, max_turns: int) -> float:
        """Mean return of a player that draws every guess from the list."""
        missed = 1 - 1 / len(self.words)
        return -sum(missed**turn for turn in range(1, max_turns + 1))

    def consistent_return(self, max_turns: int) -> float:
        """Mean return of a player that draws from the words that no reply excludes."""
        everything = tuple(range(len(self.words)))
        return -self._consistent_cost(everything, max_turns) / len(everything)

    def best_return(self, max_turns: int) -> float:
        """Mean return of the best player."""
        everything = tuple(range(len(self.words)))
        return -self.best(everything, max_turns)[0] / len(everything)

    def split(self, left: Words, guess: int) -> list[Words]:
        """The words left after a guess, for each reply except that it is right."""
        row = self.replies[guess]
        groups: dict[int, list[int]] = {}
        for word in left:
            if word != guess:
                groups.setdefault(row[word], []).append(word)
        return [tuple(group) for group in groups.values()]

    def after(self, left: Words, guess: str, marked: str) -> Words:
        """The words of ``left`` whose reply to a guess is ``marked``; all if none is."""
        row = self.replies[self.words.index(guess)]
        found = tuple(word for word in left if row[word] == self._number.get(marked))
        return found or left

    def _consistent_cost(self, left: Words, turns: int) -> float:
        """Sum of wrong guesses over the secrets in ``left``."""
        if turns == 0 or len(left) == 1:
            return 0.0
        if len(left) == 2:
            return 1.0
        key = (left, turns)
        if key not in self._consistent:
            total = 0.0
            for guess in left:
                total += len(left) - 1
                total += sum(self._consistent_cost(group, turns - 1) for group in self.split(left, guess))
            self._consistent[key] = total / len(left)
        return self._consistent[key]

    def best(self, left: Words, turns: int, limit: float = float("inf")) -> tuple[int, int]:
        """The least sum of wrong guesses over the secrets in ``left``, and a guess that attains it.

        Branch and bound over all guesses of the list, those that give most different replies first.

        Args:
            left: possible secrets.
            turns: guesses left, at least 1.
            limit: a sum at which the search may stop; then a bound of at least ``limit`` is returned.
        """
        size = len(left)
        if size == 1:
            return 0, left[0]
        if turns == 1:
            return size - 1, left[0]
        if size == 2:
            return 1, left[0]
        key = (left, turns)
        if key in self._best:
            return self._best[key]
        ordered = np.sort(self._table[:, left], axis=1)
        kinds = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
        # A guess is wrong for all other secrets; of each group one at best is found next, the others later.
        hits = np.zeros(len(self.words), dtype=np.int64)
        hits[list(left)] = 1
        bounds = (size - hits) + (size - hits) - (kinds - hits)
        least, choice = limit, -1
        for guess in np.argsort(bounds, kind="stable").tolist():
            if bounds[guess] >= least:
                break
            groups = self.split(left, guess)
            if len(groups) == 1 and len(groups[0]) == size:
                continue
            cost = int(bounds[guess])
            for group in sorted(groups, key=len):
                cost += self.best(group, turns - 1, least - cost + len(group) - 1)[0] - (len(group) - 1)
                if cost >= least:
                    break
            if cost < least:
                least, choice = cost, guess
        if choice < 0:
            return int(least), left[0]
        self._best[key] = (int(least), choice)
        return self._best[key]


@cache
def values_of(words: str) -> WordleValues:
    """The values of a word list by name."""
    return WordleValues(WORDS[words])
