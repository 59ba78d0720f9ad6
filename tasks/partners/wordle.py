"""The partner "wordle": a secret word of five letters, of which every guess shows some."""

from __future__ import annotations

import numpy as np

from textenv.partners.partner import Partner, Reply
from textenv.partners.registry import register_partner
from textenv.tasks.partners.wordle_words import WORDS
from textenv.utils.checks import check_choice

PLACE, ELSEWHERE, ABSENT = "+", "?", "-"
"""Marks of a letter: in the right place, in another place, not there (so often)."""
RIGHT, WRONG, MALFORMED = 0.0, -1.0, -2.0
"""Rewards of a turn: the secret, another word of the list, anything else."""
OPENING = "Guess my word"
_LONGEST = 100


@register_partner("wordle")
class Wordle(Partner):
    """Has a secret word, each equally likely; replies the letters of a guess with a mark each.

    "+" is a letter in the right place, "?" one in another place, "-" one that is not there. A letter that is
    guessed more often than it is there gets "-" for the last ones. The reward is 0 for the secret, -1 for
    another word of the list, and -2 for anything else.

    Example:
        >>> game = Wordle()
        >>> game.begin(np.random.default_rng(0))
        'Guess my word'
        >>> game.secret = "apple"
        >>> game.reply("plane").text
        'p? l? a? n- e+'
    """

    max_reply_tokens = 24

    def begin(self, rng: np.random.Generator, words: str = "small") -> str:
        """Draw the secret.

        Args:
            rng: of the episode.
            words: "small" (236 words) or "large" (431).

        Raises:
            ValueError: if ``words`` is neither.
        """
        check_choice("wordle: words", words, WORDS)
        self.words = words
        self.secret = WORDS[words][int(rng.integers(len(WORDS[words])))]
        return OPENING

    def reply(self, text: str) -> Reply:
        """Compare the guess with the secret."""
        guess = text.strip().lower() if len(text) <= _LONGEST else ""
        if guess not in WORDS[self.words]:
            return Reply("word?", MALFORMED, info={"malformed": True})
        if guess == self.secret:
            return Reply(guess, RIGHT, done=True, info={"won": True})
        return Reply(shown_letters(guess, marks(guess, self.secret)), WRONG)


def marks(guess: str, secret: str) -> str:
    """The mark of each letter of a guess.

    >>> marks("sassy", "glass"), marks("eerie", "every")
    ('??-+-', '+??--')
    """
    found = [PLACE if a == b else ABSENT for a, b in zip(guess, secret, strict=True)]
    left = [b for a, b in zip(guess, secret, strict=True) if a != b]
    for i, letter in enumerate(guess):
        if found[i] == ABSENT and letter in left:
            found[i] = ELSEWHERE
            left.remove(letter)
    return "".join(found)


def shown_letters(guess: str, marked: str) -> str:
    """Letters with their marks, as a reply has them."""
    return " ".join(letter + mark for letter, mark in zip(guess, marked, strict=True))
