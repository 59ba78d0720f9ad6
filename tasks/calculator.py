"""The task "calculator": products of two numbers, with a tool that computes them.

A small model cannot learn the products, but it can copy two numbers into a call and the result into its
answer: ``12*34=`` -> ``calc(12*34)`` -> ``408=`` -> ``408``. So the tool decides whether it answers right.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from textenv.episodes.batch import EpisodeBatch
from textenv.partners.calculator import calc
from textenv.tasks.calculator_settings import SETTINGS
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.models import small_gpt2
from textenv.tasks.players import Player, play
from textenv.tasks.registry import register_task
from textenv.tasks.task import TaskData
from textenv.utils.checks import check_at_least, check_choice, check_number

LETTERS = "0123456789*()=?"
SPLITS = ("train", "validation")
EPISODES = 4000
"""Of the data for offline agents."""
TOOL_SHARE = 0.1
"""Episodes of the data whose player calls the tool."""
MAX_TURNS = 3
_VALIDATION = 10
"""One problem in so many is for validation."""


@register_task("calculator", settings=SETTINGS)
def build_calculator(
    split: str = "train", digits: int = 2, tool_share: float = TOOL_SHARE, data_seed: int = 0
) -> TaskData:
    """Products of two numbers that a tool computes, if it is called; optimum 1, trains on a CPU.

    The prompt is ``12*34=``. A turn is a call, ``calc(12*34)``, to which the tool replies ``408=``, or the
    answer. The reward is 1 for the right answer. A call that fails gets the reply ``?=``.

    Args:
        split: "train" or "validation", which have different problems.
        digits: of each number.
        tool_share: share of the episodes for offline agents in which the tool is called.
        data_seed: of these episodes.

    Raises:
        ValueError: if the split is unknown or a number is out of range.
    """
    check_choice("split", split, SPLITS)
    check_at_least("digits", digits, 1)
    check_number("tool_share", tool_share, 0.0, 1.0)
    if digits > 3:
        raise ValueError(f"digits must be at most 3, got {digits}")
    problems = _problems(digits, split)
    tokenizer = calculator_tokenizer()
    turn = 2 * digits + 5
    return TaskData(
        prompts=[f"{problem}=" for problem in problems],
        columns={"answer": [calc(problem) for problem in problems]},
        tokenizer=tokenizer,
        rewards=[["exact-match", {"column": "answer"}]],
        partner=[
            "tools",
            {
                "tools": ["calculator"],
                "call_format": "python",
                "describe": False,
                "result_format": "{}=",
                "error_text": "?",
            },
        ],
        max_turns=MAX_TURNS,
        max_turn_tokens=turn,
        max_new_tokens=MAX_TURNS * turn,
        max_length=2 * digits + 2 + MAX_TURNS * (turn + 2 * digits + 2),
        optimum=1.0,
        model_config=partial(small_gpt2, tokenizer, layers=2, width=64, heads=4, positions=128),
        make_player=best_player,
        make_demonstrations=partial(
            calculator_episodes, EPISODES, digits, tool_share=tool_share, seed=data_seed
        ),
    )


@lru_cache(maxsize=1)
def calculator_tokenizer() -> PreTrainedTokenizerFast:
    """Digits and signs as tokens, and ``calc``."""
    return letter_tokenizer(LETTERS, ["calc"])


@lru_cache(maxsize=8)
def _problems(digits: int, split: str) -> tuple[str, ...]:
    """All products of two numbers with so many digits; a hash tells which are for validation."""
    numbers = range(10 ** (digits - 1), 10**digits)
    held_out = split == "validation"
    if digits == 3:
        numbers = range(100, 1000, 7)  # 16,641 problems are enough
    texts = (f"{a}*{b}" for a in numbers for b in numbers)
    return tuple(text for text in texts if (zlib.crc32(text.encode()) % _VALIDATION == 0) == held_out)


# -- players -----


def tool_user(words: Sequence[str], rng: np.random.Generator) -> str:
    """The optimal player: call the tool with the problem, then answer with its result."""
    problem, *results = _parts(words)
    return results[-1] if results else f"calc({problem})"


def best_player() -> Player:
    """The optimal player."""
    return tool_user


def guesser(words: Sequence[str], rng: np.random.Generator) -> str:
    """Answer at once with a product of numbers that have one other digit."""
    a, b = _parts(words)[0].split("*")
    return str(int(_changed(a, rng)) * int(b))


def careless_user(words: Sequence[str], rng: np.random.Generator) -> str:
    """Call the tool with a wrong digit, and answer with its result."""
    problem, *results = _parts(words)
    if results:
        return results[-1]
    a, b = problem.split("*")
    return f"calc({_changed(a, rng)}*{b})"


def doubter(words: Sequence[str], rng: np.random.Generator) -> str:
    """Call the tool with the problem, and answer something else."""
    problem, *results = _parts(words)
    return guesser(words, rng) if results else f"calc({problem})"


def _parts(words: Sequence[str]) -> list[str]:
    """The problem and the results that the tool gave: ``12*34=calc(12*34)408=`` has 12*34 and 408."""
    text = "".join(words)
    problem, _, rest = text.partition("=")
    return [problem, *(part.rpartition(")")[2] for part in rest.split("=")[:-1])]


def _changed(number: str, rng: np.random.Generator) -> str:
    """The number with another digit at one place; the first digit is not 0."""
    place = int(rng.integers(len(number)))
    least = int(place == 0 and len(number) > 1)
    digit = int(rng.choice([d for d in range(least, 10) if str(d) != number[place]]))
    return f"{number[:place]}{digit}{number[place + 1 :]}"


def players(tool_share: float) -> list[Player]:
    """A hundred players to draw from; half of those that call the tool are right (rounded up)."""
    users: list[Player] = [tool_user, tool_user, careless_user, doubter]
    count = round(100 * tool_share)
    return [users[i % 4] for i in range(count)] + [guesser] * (100 - count)


def calculator_episodes(
    episodes: int = EPISODES, digits: int = 2, *, tool_share: float = TOOL_SHARE, seed: int = 0
) -> EpisodeBatch:
    """Episodes of mixed quality: most players guess, and a few call the tool, not all of them well.

    Args:
        episodes: how many.
        digits: of each number.
        tool_share: share of the players that call the tool, in hundredths.
        seed: of the problems and turns.

    Returns:
        The episodes, with the reward at their last token.
    """
    data = build_calculator(digits=digits)
    batch = play(data, players(tool_share), episodes, seed=seed)
    said = zip(batch.extras["turns"], batch.extras["answer"], strict=True)
    right = torch.tensor([float(turns[-1] == answer) for turns, answer in said])
    batch.rewards = batch.at_last_action(right)
    return batch


SCRIPTED: dict[str, Callable[..., str]] = {
    "tool-user": tool_user,
    "guesser": guesser,
    "careless-user": careless_user,
    "doubter": doubter,
}
"""Name -> player; the first one is optimal."""
