"""The task "maze": find the goal of LMRL-Gym's double T maze, seeing where one is or only the walls around.

Moves and observations are one token each, so that a model of two layers learns it on a CPU. LMRL-Gym allows
100 moves and shows one observation at a time; here the whole history is kept, and the limit is 30.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.game_settings import MAZE
from textenv.tasks.maze_values import belief_after, best_move, best_return
from textenv.tasks.models import small_gpt2
from textenv.tasks.partners.maze import CELLS, GOAL, MOVES, OBSERVED, STARTS, observation, opening, walls
from textenv.tasks.players import Player, play
from textenv.tasks.registry import register_task
from textenv.tasks.task import TaskData
from textenv.tasks.words import word_tokenizer
from textenv.utils.checks import check_at_least, check_choice

MAX_TURNS = 30
SPLITS = ("train", "validation")
EPISODES = 2000
"""Of the data for offline agents."""


@register_task("maze", settings=MAZE)
def build_maze(
    split: str = "train", observed: str = "full", max_turns: int = MAX_TURNS, data_seed: int = 0
) -> TaskData:
    """Find the goal of a maze in 30 moves of -1; optimum -6.84 if cells are seen, -7.24 if only walls.

    Args:
        split: "train" or "validation", which are the same.
        observed: "full" says the cell, "partial" only which neighbours are walls.
        max_turns: most moves.
        data_seed: of the data for offline agents.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_choice("split", split, SPLITS)
    check_choice("observed", observed, OBSERVED)
    check_at_least("max_turns", max_turns, 1)
    seen = [observation(cell, "full") for cell in CELLS]
    if observed == "partial":
        seen = sorted({walls(cell) for cell in STARTS})
    tokenizer = word_tokenizer([*MOVES, "goal", "at", "maze", *seen])
    return TaskData(
        prompts=[tokenizer.bos_token],
        tokenizer=tokenizer,
        rewards=[],
        partner=["maze", {"observed": observed}],
        max_turns=max_turns,
        max_turn_tokens=1,
        max_new_tokens=max_turns,
        max_length=1 + _opening_words(observed) + 2 * max_turns,
        optimum=best_return(observed, max_turns),
        model_config=partial(small_gpt2, tokenizer, layers=2, width=64, heads=4, positions=1024),
        make_player=partial(best_moves, observed, max_turns),
        make_demonstrations=partial(maze_episodes, EPISODES, observed, max_turns, seed=data_seed),
    )


def maze_episodes(
    episodes: int = EPISODES, observed: str = "full", max_turns: int = MAX_TURNS, *, seed: int = 0
) -> EpisodeBatch:
    """Episodes of mixed quality: two thirds move at random, in one third every second move is the best one.

    Args:
        episodes: how many.
        observed: "full" or "partial".
        max_turns: most moves.
        seed: of starts and moves.
    """
    data = build_maze(observed=observed, max_turns=max_turns)
    players = [uniform_moves, uniform_moves, half_best(observed, max_turns)]
    return play(data, players, episodes, seed=seed)


# -- players -----


def uniform_moves(words: Sequence[str], rng: np.random.Generator) -> str:
    """One of the four moves, equally likely."""
    return [*MOVES][int(rng.integers(len(MOVES)))]


def best_moves(observed: str, max_turns: int = MAX_TURNS) -> Player:
    """The optimal player, which remembers where it may be."""
    start = _opening_words(observed)

    def move(words: Sequence[str], rng: np.random.Generator) -> str:
        left = max(1, max_turns - (len(words) - start) // 2)
        return best_move(belief_after(words, observed, start), observed, left)

    return move


def half_best(observed: str, max_turns: int = MAX_TURNS) -> Player:
    """The optimal player's move or any one, equally likely."""
    best = best_moves(observed, max_turns)

    def move(words: Sequence[str], rng: np.random.Generator) -> str:
        return (best if rng.random() < 0.5 else uniform_moves)(words, rng)

    return move


def _opening_words(observed: str) -> int:
    return len(opening(GOAL, observed).split())
