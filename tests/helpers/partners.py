"""Partners for tests: a number game, and slow, failing and hanging ones."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np

from textenv.partners import Partner, Reply
from textenv.tasks.letters import letter_tokenizer

TALKER = letter_tokenizer("0123456789lhw ")
"""Digits, and the words of the game: l(ower), h(igher), w(rong)."""
DIGITS = list(range(10))


class Guess(Partner):
    """Guess a digit; the reply says whether the number is lower or higher."""

    max_reply_tokens = 4

    def begin(self, rng: np.random.Generator, top: int = 9) -> str:
        self.secret = int(rng.integers(0, top + 1))
        return f"w{top}"

    def reply(self, text: str) -> Reply:
        if text == str(self.secret):
            return Reply("w", reward=1.0, done=True)
        if len(text) != 1 or not text.isdigit():
            return Reply("ww", reward=-0.25)
        return Reply("l" if int(text) > self.secret else "h", reward=-0.125, info={"asked": text})


class Slow(Guess):
    """Replies after some milliseconds that depend on the text."""

    workers = 3

    def reply(self, text: str) -> Reply:
        time.sleep(0.001 * (len(text) + ord(text[-1]) % 7 if text else 1))
        return super().reply(text)


class Waiting(Guess):
    """A coroutine that replies after some milliseconds."""

    async def reply(self, text: str) -> Reply:  # type: ignore[override]
        await asyncio.sleep(0.001 * (ord(text[-1]) % 7 if text else 1))
        return super().reply(text)


class Failing(Guess):
    """Raises an exception for digits below five."""

    def reply(self, text: str) -> Reply:
        if text[:1] in "01234":
            raise ZeroDivisionError("below five")
        return super().reply(text)


class Hanging(Guess):
    """Never replies to digits below three, until it is closed."""

    workers = 2
    timeout = 0.05
    on_error = "end"

    def __init__(self) -> None:
        self.stop: Any = None

    def begin(self, rng: np.random.Generator, top: int = 9) -> str:
        self.stop = threading.Event()
        return super().begin(rng, top)

    def reply(self, text: str) -> Reply:
        if text[:1] in "012":
            self.stop.wait(30)
        return super().reply(text)

    def close(self) -> None:
        if self.stop is not None:
            self.stop.set()


class Endless(Guess):
    """Is never done."""

    def reply(self, text: str) -> Reply:
        return Reply("h", reward=0.5)


class Repeat(Partner):
    """Shows a digit before each of two turns; the reward comes at the end, one half per digit repeated."""

    max_reply_tokens = 1

    def begin(self, rng: np.random.Generator, digits: int = 3) -> str:
        self.shown = [int(digit) for digit in rng.integers(0, digits, 2)]
        self.said: list[str] = []
        return str(self.shown[0])

    def reply(self, text: str) -> Reply:
        self.said.append(text)
        if len(self.said) < 2:
            return Reply(str(self.shown[1]))
        right = sum(said == str(shown) for said, shown in zip(self.said, self.shown, strict=True))
        return Reply(reward=right / 2, done=True)
