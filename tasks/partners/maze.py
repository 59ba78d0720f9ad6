"""The partner "maze": the double T maze of LMRL-Gym (Abdulhai et al. 2023, arXiv:2311.18232), in short texts.

26 cells, of which one is the goal; every other cell is a start. A cell is written as row and column.
"""

from __future__ import annotations

import re
from typing import TypeAlias

import numpy as np

from textenv.partners.partner import Partner, Reply
from textenv.partners.registry import register_partner
from textenv.utils.checks import check_choice

Cell: TypeAlias = tuple[int, int]
GRID = (
    "#############",
    "#.....#.....#",
    "###.#####.###",
    "###.#####.###",
    "###.#####.###",
    "###.......###",
    "######.######",
    "######.######",
    "######G######",
    "#############",
)
CELLS: tuple[Cell, ...] = tuple(
    (row, column) for row, line in enumerate(GRID) for column, mark in enumerate(line) if mark != "#"
)
GOAL: Cell = next(cell for cell in CELLS if GRID[cell[0]][cell[1]] == "G")
STARTS: tuple[Cell, ...] = tuple(cell for cell in CELLS if cell != GOAL)
MOVES: dict[str, Cell] = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""Word -> change of row and column."""
OBSERVED = ("full", "partial")
MOVED, ARRIVED, MALFORMED = -1.0, 0.0, -4.0
"""Rewards of a turn: a move, the move to the goal, no move."""
_MOVE = re.compile(r"\s*(?:move )?(left|right|up|down)\.?\s*", re.IGNORECASE | re.ASCII)
_LONGEST = 100


@register_partner("maze")
class Maze(Partner):
    """Moves through the maze; says where one is ("full"), or only which neighbours are walls ("partial").

    The reward is -1 for a move (against a wall, too), 0 for the one that reaches the goal, and -4 for a turn
    that is not one of "left", "right", "up", "down" (or "move left").

    Example:
        >>> maze = Maze()
        >>> maze.begin(np.random.default_rng(0))
        'goal (8,6) at (5,8)'
        >>> maze.reply("left")
        Reply(text='(5,7)', reward=-1.0, done=False, role='user', ids=None, info={})
    """

    max_reply_tokens = 16

    def begin(self, rng: np.random.Generator, observed: str = "full") -> str:
        """Draw the start.

        Args:
            rng: of the episode.
            observed: "full" or "partial".

        Raises:
            ValueError: if ``observed`` is neither.
        """
        check_choice("maze: observed", observed, OBSERVED)
        self.observed = observed
        self.cell = STARTS[int(rng.integers(len(STARTS)))]
        return opening(self.cell, observed)

    def reply(self, text: str) -> Reply:
        """Move."""
        move = parse_move(text)
        if move is None:
            return Reply(observation(self.cell, self.observed), MALFORMED, info={"malformed": True})
        self.cell = after(self.cell, move)
        if self.cell == GOAL:
            return Reply("goal", ARRIVED, done=True, info={"won": True})
        return Reply(observation(self.cell, self.observed), MOVED)


def parse_move(text: str) -> str | None:
    """The move in a text, or None.

    >>> parse_move(" Move left."), parse_move("left right")
    ('left', None)
    """
    found = _MOVE.fullmatch(text) if len(text) <= _LONGEST else None
    return None if found is None else found[1].lower()


def after(cell: Cell, move: str) -> Cell:
    """The cell after a move; the same one if a wall is in the way."""
    row, column = cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]
    return cell if GRID[row][column] == "#" else (row, column)


def opening(cell: Cell, observed: str) -> str:
    """What the partner says first."""
    return f"goal {_name(GOAL)} at {_name(cell)}" if observed == "full" else f"maze {walls(cell)}"


def observation(cell: Cell, observed: str) -> str:
    """What is said of a cell.

    >>> observation((5, 3), "full"), observation((5, 3), "partial")
    ('(5,3)', 'walls:left,down')
    """
    return _name(cell) if observed == "full" else walls(cell)


def walls(cell: Cell) -> str:
    """The directions in which a cell has a wall, as one word."""
    return "walls:" + ",".join(move for move in MOVES if after(cell, move) == cell)


def _name(cell: Cell) -> str:
    return f"({cell[0]},{cell[1]})"
