"""The partner "guess-number": it thinks of a number and says whether a guess is too high or too low."""

from __future__ import annotations

import re

import numpy as np

from textenv.partners.partner import Partner, Reply
from textenv.partners.registry import register_partner
from textenv.utils.checks import check_at_least, check_flag

WON, WRONG, MALFORMED = 1.0, -0.1, -0.2
"""Rewards of a turn: the number, another number, no number."""
_NUMBER = re.compile(r"(?<![\w.\-])[0-9]{1,9}(?![\w\-]|[.,][0-9])")
_LONGEST = 1000


@register_partner("guess-number")
class GuessNumber(Partner):
    """Thinks of a number from 1 to ``top``, each equally likely; says whether it is higher than a guess.

    The reward is 1 for the number, -0.1 for another one, and -0.2 for a turn that has not exactly one number
    (ASCII digits, at most nine; at most 1,000 characters in all).

    Example:
        >>> game = GuessNumber()
        >>> game.begin(np.random.default_rng(0), top=100)
        'Guess my number: 1 to 100'
        >>> game.reply("I say 50.")
        Reply(text='higher:50', reward=-0.1, done=False, role='user', ids=None, info={})
    """

    max_reply_tokens = 16

    def begin(self, rng: np.random.Generator, top: int = 100, repeat: bool = True) -> str:
        """Draw the number.

        Args:
            rng: of the episode.
            top: the largest number.
            repeat: replies repeat the guess ("lower:50"), else they are "lower" or "higher" alone.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if ``top`` is below 1.
        """
        check_at_least("guess-number: top", top, 1)
        check_flag("guess-number: repeat", repeat)
        self.top, self.repeat = top, repeat
        self.secret = int(rng.integers(1, top + 1))
        return opening(top)

    def reply(self, text: str) -> Reply:
        """Compare the guess with the number."""
        guess = parse_number(text)
        if guess is None:
            return Reply("number?", reward=MALFORMED, info={"malformed": True})
        if guess == self.secret:
            return Reply("right", reward=WON, done=True, info={"won": True})
        # What is repeated is one of the numbers, for which tokenizers of the game have tokens.
        repeat = self.repeat and 1 <= guess <= self.top
        return Reply(compared(guess, self.secret, repeat=repeat), reward=WRONG)


def opening(top: int) -> str:
    """What the partner says first."""
    return f"Guess my number: 1 to {top}"


def compared(guess: int, secret: int, *, repeat: bool) -> str:
    """The reply to a wrong guess.

    >>> compared(50, 7, repeat=True), compared(50, 7, repeat=False)
    ('lower:50', 'lower')
    """
    direction = "lower" if guess > secret else "higher"
    return f"{direction}:{guess}" if repeat else direction


def parse_number(text: str) -> int | None:
    """The number in a text; None if it has none, several, a negative one or one with decimals.

    >>> parse_number("It is 7!"), parse_number("7 or 8"), parse_number("-7"), parse_number("7.5")
    (7, None, None, None)
    """
    if len(text) > _LONGEST:
        return None
    found = _NUMBER.findall(text)
    others = sum(character.isdigit() for character in text) - sum(map(len, found))
    return int(found[0]) if len(found) == 1 and not others else None
