"""Exact values of the maze under a limit of moves, by dynamic programming, and its optimal player.

Where only walls are seen, a state is a belief: the cells where one may be, each with the number of starts
that lead there. Starts are equally likely, and moves and observations are deterministic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

from textenv.tasks.partners.maze import (
    ARRIVED,
    CELLS,
    GOAL,
    MOVED,
    MOVES,
    STARTS,
    Cell,
    after,
    observation,
)

Belief: TypeAlias = tuple[tuple[Cell, int], ...]
"""(cell, number of starts), sorted."""


@cache
def uniform_return(max_turns: int) -> float:
    """Mean return of a player that draws each move from the four with equal chances.

    >>> round(uniform_return(100), 1)
    -85.1
    """
    value = dict.fromkeys(CELLS, 0.0)
    for _ in range(max_turns):
        value = {cell: sum(_gain(after(cell, move), value) for move in MOVES) / 4 for cell in STARTS}
    return sum(value.values()) / len(STARTS)


def best_return(observed: str, max_turns: int) -> float:
    """Mean return of the best player.

    >>> round(best_return("full", 100), 2)
    -6.84
    """
    total = sum(_value(belief, observed, max_turns) for belief in beliefs(observed))
    return total / len(STARTS)


def beliefs(observed: str) -> list[Belief]:
    """The beliefs after the opening."""
    return _by_observation(Counter(STARTS), observed)


def best_move(belief: Belief, observed: str, max_turns: int) -> str:
    """A move of the best player, the first of equally good ones.

    Args:
        belief: where one may be.
        observed: "full" or "partial".
        max_turns: moves that are left, at least 1.
    """
    return max(MOVES, key=lambda move: round(_move_value(belief, move, observed, max_turns), 9))


def updated(belief: Belief, move: str, seen: str, observed: str) -> Belief:
    """The belief after a move and its observation; the one before if they contradict each other."""
    for following in _by_observation(_moved(belief, move), observed):
        if observation(following[0][0], observed) == seen:
            return following
    return belief


def scaled(mean_return: float, observed: str, max_turns: int) -> float:
    """100 (G - U) / (O - U): 0 is uniform moves and 100 the optimum.

    >>> scaled(uniform_return(30), "full", 30), scaled(best_return("full", 30), "full", 30)
    (0.0, 100.0)
    """
    low, high = uniform_return(max_turns), best_return(observed, max_turns)
    return 100 * (mean_return - low) / (high - low)


def _gain(cell: Cell, value: dict[Cell, float]) -> float:
    return ARRIVED if cell == GOAL else MOVED + value[cell]


def _moved(belief: Belief, move: str) -> Counter[Cell]:
    """Cells after a move, without those that have reached the goal."""
    found: Counter[Cell] = Counter()
    for cell, count in belief:
        found[after(cell, move)] += count
    del found[GOAL]
    return found


def _by_observation(cells: Counter[Cell], observed: str) -> list[Belief]:
    groups: dict[str, list[tuple[Cell, int]]] = {}
    for cell, count in sorted(cells.items()):
        groups.setdefault(observation(cell, observed), []).append((cell, count))
    return [tuple(group) for group in groups.values()]


@cache
def _value(belief: Belief, observed: str, turns: int) -> float:
    """Sum of the best returns over the starts of a belief."""
    if turns == 0:
        return 0.0
    return max(_move_value(belief, move, observed, turns) for move in MOVES)


def _move_value(belief: Belief, move: str, observed: str, turns: int) -> float:
    following = _by_observation(_moved(belief, move), observed)
    moved = MOVED * sum(count for group in following for _, count in group)
    return moved + sum(_value(group, observed, turns - 1) for group in following)


def belief_after(words: Sequence[str], observed: str, opening_words: int) -> Belief:
    """The belief after the words of an episode.

    Args:
        words: of opening, moves and observations.
        observed: "full" or "partial".
        opening_words: number of words of the opening; the last one is an observation.
    """
    seen = words[opening_words - 1]
    belief = next(group for group in beliefs(observed) if observation(group[0][0], observed) == seen)
    turns = zip(words[opening_words::2], words[opening_words + 1 :: 2], strict=False)
    for move, seen in turns:
        if move in MOVES:
            belief = updated(belief, move, seen, observed)
    return belief
