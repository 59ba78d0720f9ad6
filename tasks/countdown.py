"""The task "countdown": reach a target from some numbers, each used once, with + - * /.

The answer is an expression, so it can be checked: ``2,3,7:13=`` -> ``2*3+7``. All problems have a solution.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.partners.calculator import evaluate
from textenv.rewards.checks import check_column, column
from textenv.rewards.registry import register_reward
from textenv.rewards.term import RewardTerm
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.models import small_gpt2
from textenv.tasks.players import Player
from textenv.tasks.registry import register_task
from textenv.tasks.task import TaskData
from textenv.utils.checks import check_at_least, check_choice, check_number

LETTERS = "0123456789+-*/(),:="
SPLITS = ("train", "validation")
EPISODES = 3000
"""Of the data for offline agents."""
WELL_FORMED = 0.1
"""Reward of an expression that uses every number once and misses the target."""
_ALLOWED = re.compile(r"[0-9+\-*/() ]+")
_VALIDATION = 10
"""One problem in so many is for validation."""


@register_reward("countdown")
class Countdown(RewardTerm):
    """Reward 1 for an expression of the given numbers, each used once, with the target as its value.

    The text may have digits, + - * / and parentheses. Values between are exact, and need not be whole. In
    episodes with a partner the policy's last turn counts. The columns ``numbers`` and ``target`` are read.

    Args:
        well_formed: reward of an expression that uses the numbers and has another value.
    """

    def __init__(self, well_formed: float = WELL_FORMED) -> None:
        check_number("countdown: well_formed", well_formed)
        self.well_formed = well_formed

    def bind(self, env: object) -> None:
        """Bind to an environment that has the columns."""
        super().bind(env)
        for name in ("numbers", "target"):
            check_column(env, name, self.name)

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,): 1, ``well_formed`` or 0."""
        numbers = column(episodes, "numbers", self.name)
        targets = column(episodes, "target", self.name)
        texts = self.answer_texts(episodes)
        scores = [self._score(*one) for one in zip(texts, numbers, targets, strict=True)]
        return torch.tensor(scores, dtype=torch.float32, device=episodes.device)

    def _score(self, text: str, numbers: Sequence[int], target: int) -> float:
        value = expression_value(text, numbers)
        return 0.0 if value is None else 1.0 if value == target else self.well_formed


def expression_value(text: str, numbers: Sequence[int]) -> Fraction | None:
    """The value of an expression, or None if it does not use exactly these numbers, each once.

    >>> expression_value("2*3+7", [7, 2, 3]), expression_value("2+2", [2, 3]), expression_value("23", [2, 3])
    (Fraction(13, 1), None, None)
    """
    if not _ALLOWED.fullmatch(text) or sorted(map(int, re.findall("[0-9]+", text))) != sorted(numbers):
        return None
    try:
        return evaluate(text)
    except ValueError:
        return None


@register_task("countdown")
def build_countdown(
    split: str = "train", count: int = 3, top: int = 9, most: int = 50, data_seed: int = 0
) -> TaskData:
    """Reach a number from three others, each used once, with + - * /; the answer is checked; optimum 1.

    Args:
        split: "train" or "validation", which have different problems.
        count: how many numbers, 2 to 4.
        top: the largest of them, at most 12.
        most: the largest target; targets are whole and positive.
        data_seed: of the episodes for offline agents.

    Raises:
        ValueError: if the split is unknown or a number is out of range.
    """
    check_choice("split", split, SPLITS)
    for name, value, high in (("count", count, 4), ("top", top, 12), ("most", most, 1000)):
        check_at_least(name, value, 2)
        if value > high:
            raise ValueError(f"{name} must be at most {high}, got {value}")
    problems = _problems(count, top, most, split)
    tokenizer = letter_tokenizer(LETTERS)
    prompts = [prompt_of(numbers, target) for numbers, target in problems]
    solutions = [solve(numbers, target) for numbers, target in problems]
    return TaskData(
        prompts=prompts,
        columns={"numbers": [list(n) for n, _ in problems], "target": [target for _, target in problems]},
        tokenizer=tokenizer,
        rewards=[["countdown", {}]],
        max_new_tokens=max(map(len, solutions)) + 3,
        optimum=1.0,
        model_config=partial(small_gpt2, tokenizer, layers=3, width=96, heads=4, positions=64),
        texts=[prompt + solution for prompt, solution in zip(prompts, solutions, strict=True)],
        make_player=best_player,
        make_demonstrations=partial(countdown_episodes, EPISODES, count, top, most, seed=data_seed),
    )


def prompt_of(numbers: Sequence[int], target: int) -> str:
    """The text of a problem.

    >>> prompt_of([2, 3, 7], 13)
    '2,3,7:13='
    """
    return f"{','.join(map(str, numbers))}:{target}="


# -- players -----


def solve(numbers: Sequence[int], target: int) -> str:
    """The optimal player: a shortest expression with the target as its value.

    Raises:
        ValueError: if there is none.

    >>> solve([2, 3, 7], 13)
    '2*3+7'
    """
    found = _expressions(tuple(sorted(numbers))).get(Fraction(target))
    if found is None:
        raise ValueError(f"{target} cannot be reached from {list(numbers)}")
    return found[0]


def best_player() -> Player:
    """The optimal player."""
    return _solve_words


def _solve_words(words: Sequence[str], rng: np.random.Generator) -> str:
    numbers, _, target = "".join(words).rstrip("=").partition(":")
    return solve([int(text) for text in numbers.split(",")], int(target))


def any_expression(numbers: Sequence[int], rng: np.random.Generator) -> str:
    """A player that puts the numbers into a random order, with random operators and no parentheses."""
    shuffled = [str(number) for number in rng.permutation(list(numbers))]
    signs = rng.choice(list("+-*/"), size=len(shuffled) - 1)
    return shuffled[0] + "".join(f"{sign}{text}" for sign, text in zip(signs, shuffled[1:], strict=True))


@lru_cache(maxsize=4096)
def _expressions(numbers: tuple[int, ...]) -> dict[Fraction, tuple[str, int]]:
    """Value -> (a shortest expression of all the numbers, its last operator's rank: 1 + -, 2 * /, 3 none)."""
    if len(numbers) == 1:
        return {Fraction(numbers[0]): (str(numbers[0]), 3)}
    found: dict[Fraction, tuple[str, int]] = {}
    places = range(len(numbers))
    for size in range(1, len(numbers)):
        for chosen in itertools.combinations(places, size):
            left = tuple(numbers[i] for i in chosen)
            right = tuple(numbers[i] for i in places if i not in chosen)
            for (a, one), (b, other) in itertools.product(
                _expressions(left).items(), _expressions(right).items()
            ):
                for sign, value in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a / b if b else None)):
                    if value is None:
                        continue
                    text, rank = _joined(one, sign, other), 1 if sign in "+-" else 2
                    if value not in found or (len(text), text) < (len(found[value][0]), found[value][0]):
                        found[value] = text, rank
    return found


def _joined(left: tuple[str, int], sign: str, right: tuple[str, int]) -> str:
    """Two expressions with an operator between them; parentheses only where they are needed."""
    rank = 1 if sign in "+-" else 2
    a = f"({left[0]})" if left[1] < rank else left[0]
    # a-(b+c) and a/(b*c) need them on the right even at the same rank.
    b = f"({right[0]})" if right[1] < rank or (right[1] == rank and sign in "-/") else right[0]
    return f"{a}{sign}{b}"


@lru_cache(maxsize=8)
def _problems(count: int, top: int, most: int, split: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """All problems with a solution; a hash tells which are for validation."""
    held_out = split == "validation"
    return tuple(
        (numbers, target)
        for numbers in itertools.combinations_with_replacement(range(1, top + 1), count)
        for target in range(1, most + 1)
        if Fraction(target) in _expressions(numbers)
        and (zlib.crc32(prompt_of(numbers, target).encode()) % _VALIDATION == 0) == held_out
    )


def countdown_episodes(
    episodes: int = EPISODES, count: int = 3, top: int = 9, most: int = 50, *, seed: int = 0
) -> EpisodeBatch:
    """Episodes of mixed quality: a third are solutions, the others random expressions.

    Args:
        episodes: how many.
        count: of numbers.
        top: the largest number.
        most: the largest target.
        seed: of the problems and expressions.
    """
    data = build_countdown(count=count, top=top, most=most)
    problems = _problems(count, top, most, "train")
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(problems), size=episodes)
    texts, rewards = [], []
    for index in chosen.tolist():
        numbers, target = problems[index]
        texts.append(solve(numbers, target) if rng.random() < 1 / 3 else any_expression(numbers, rng))
        value = expression_value(texts[-1], numbers)
        rewards.append(0.0 if value is None else 1.0 if value == target else WELL_FORMED)
    return EpisodeBatch.from_texts(
        [data.prompts[index] for index in chosen],
        texts,
        data.tokenizer,
        rewards=rewards,
        prompt_index=torch.from_numpy(chosen),
        extras={name: [values[index] for index in chosen] for name, values in data.columns.items()},
    )
