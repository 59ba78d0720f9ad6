"""The partner "twenty-questions": which of 64 persons? Who has what is in a table."""

from __future__ import annotations

import re

import numpy as np

from textenv.partners.partner import Partner, Reply
from textenv.partners.registry import register_partner

_NAMES = """
Adam Alice Amy Anna Ben Bella Bob Carl Cara Clara Dan Dora Ed Ella Emma Eric
Eva Fay Finn Fred Gina Grace Hal Hana Hugo Ian Ida Iris Ivan Jack Jane Joan
Joe Karl Kate Kim Lara Leo Lily Lou Luke Max Mia Mona Nick Nina Noah Nora
Olga Otto Owen Paul Pia Rob Rosa Ruth Sam Sara Ted Tess Tom Una Vera Will
"""
PERSONS: tuple[str, ...] = tuple(_NAMES.split())
THINGS: dict[str, int] = {
    "hat": 0x041270081400A908,
    "glasses": 0xA7C7126002855004,
    "scarf": 0x0002162160D58006,
    "coat": 0xE23C35CBDB42586A,
    "gloves": 0x328F9259DC9ABD41,
    "boots": 0x0088A40001614904,
    "ring": 0x98920A0080A18A52,
    "watch": 0xBF04F13B8F5421B1,
    "bag": 0x5B418C07DB9C4E79,
    "umbrella": 0x00C8005211062008,
    "dog": 0x0134A1787D204D41,
    "cat": 0x8180002040200000,
    "bicycle": 0x04000004C4200410,
    "car": 0xD966C7494AA933E2,
    "guitar": 0x4101040202832800,
    "piano": 0xE7C780D4097E09EE,
    "garden": 0xC6A00A10B2075CF2,
    "boat": 0x1504102010000900,
    "tent": 0x0249420180A00000,
    "camera": 0x1C29ACAD3D290591,
    "lamp": 0xA4A4A3A6564A07C0,
    "clock": 0xC00735240022AAA8,
    "map": 0x0A1018A164E3A2A1,
    "kite": 0x0290710A03010A83,
}
"""Thing -> who has it: bit i is the i-th person. Bag, car, coat, gloves, piano and watch tell all
apart."""
RIGHT, ASKED, MALFORMED = 0.0, -1.0, -2.0
"""Rewards of a turn: the right person; a question or another person; anything else."""
OPENING = "Guess my person"
_LONGEST = 200
_PERSONS = {name.lower(): i for i, name in enumerate(PERSONS)}
_WORD = re.compile(r"\w+")


@register_partner("twenty-questions")
class TwentyQuestions(Partner):
    """Thinks of one of 64 persons, each equally likely, and says what the person has.

    A turn names one of 24 things ("hat", or "Has it a hat?") or one person. The reply is "yes" or "no". The
    reward is 0 for the right person, -1 for a thing or another person, and -2 for a turn without exactly one
    of these words.

    Example:
        >>> game = TwentyQuestions()
        >>> game.begin(np.random.default_rng(0))
        'Guess my person'
        >>> game.secret = 0
        >>> [game.reply(text).text for text in ("hat?", "Is it Anna?", "Adam")]
        ['no', 'no', 'yes']
    """

    max_reply_tokens = 8

    def begin(self, rng: np.random.Generator) -> str:
        """Draw the person."""
        self.secret = int(rng.integers(len(PERSONS)))
        return OPENING

    def reply(self, text: str) -> Reply:
        """Say yes or no."""
        word = parse_question(text)
        if word is None:
            return Reply("what?", MALFORMED, info={"malformed": True})
        if word in THINGS:
            return Reply("yes" if has(self.secret, word) else "no", ASKED)
        if _PERSONS[word] == self.secret:
            return Reply("yes", RIGHT, done=True, info={"won": True})
        return Reply("no", ASKED)


def has(person: int, thing: str) -> bool:
    """Whether a person, by number, has a thing."""
    return bool(THINGS[thing] >> person & 1)


def parse_question(text: str) -> str | None:
    """The only thing or person in a text, in small letters; None if there is none or more than one.

    >>> parse_question("Is it Anna?"), parse_question("hat or coat")
    ('anna', None)
    """
    words = _WORD.findall(text.lower()) if len(text) <= _LONGEST else []
    found = [word for word in words if word in THINGS or word in _PERSONS]
    return found[0] if len(found) == 1 else None
