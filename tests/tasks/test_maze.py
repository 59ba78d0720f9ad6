"""The game "maze": its rules by hand, its exact values, its optimal player, and the data of mixed quality."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import textenv
from textenv.tasks import make_task
from textenv.tasks.maze import best_moves, build_maze, maze_episodes, uniform_moves
from textenv.tasks.maze_values import best_return, scaled, uniform_return
from textenv.tasks.partners.maze import (
    CELLS,
    GOAL,
    MOVES,
    OBSERVED,
    STARTS,
    Maze,
    after,
    observation,
    opening,
)
from textenv.tasks.players import play


def maze(cell: tuple[int, int], observed: str = "full") -> Maze:
    partner = Maze()
    partner.begin(np.random.default_rng(0), observed=observed)
    partner.cell = cell
    return partner


def test_the_maze_is_that_of_the_paper() -> None:
    assert len(CELLS) == 26 and len(STARTS) == 25 and GOAL == (8, 6)
    # Two Ts: bars of five cells in row 1, stems down to row 5, and one stem to the goal.
    bars = {(1, c) for c in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)}
    stems = {(r, c) for r in (2, 3, 4) for c in (3, 9)} | {(5, c) for c in range(3, 10)}
    assert set(CELLS) == bars | stems | {(6, 6), (7, 6), (8, 6)}


def test_rules_by_hand() -> None:
    partner = maze((6, 6))
    replies = [partner.reply(text) for text in ("left", " Move up.", "down", "jump", "down", "DOWN")]
    said = [(reply.text, reply.reward, reply.done) for reply in replies]
    assert said == [
        ("(6,6)", -1.0, False),  # a wall
        ("(5,6)", -1.0, False),
        ("(6,6)", -1.0, False),
        ("(6,6)", -4.0, False),  # no move
        ("(7,6)", -1.0, False),
        ("goal", 0.0, True),
    ]
    assert replies[3].info == {"malformed": True} and replies[5].info == {"won": True}


def test_what_is_seen() -> None:
    assert opening((5, 3), "full") == "goal (8,6) at (5,3)"
    assert opening((5, 3), "partial") == "maze walls:left,down"
    assert maze((1, 1), "partial").reply("left").text == "walls:left,up,down"
    assert observation((5, 6), "partial") == "walls:up"


@pytest.mark.parametrize(
    "text",
    *[
        [
            "",
            " ",
            "\n",
            "leftright",
            "left left",
            "lef",
            "\x00",
            "l\u0435ft",
            "\ud800",
            "up" * 9999,
            "up" + " " * 999,
        ]
    ],
)
def test_garbage_is_punished(text: str) -> None:
    reply = maze((5, 3)).reply(text)
    assert (reply.text, reply.reward, reply.done) == ("(5,3)", -4.0, False)


def test_every_start_is_drawn_from_the_generator() -> None:
    def starts(seed: int) -> list[tuple[int, int]]:
        rng, partner, found = np.random.default_rng(seed), Maze(), []
        for _ in range(300):
            partner.begin(rng)
            found.append(partner.cell)
        return found

    assert starts(1) == starts(1) != starts(2) and set(starts(1)) == set(STARTS)


# -- exact values -----


def test_the_optimum_is_the_mean_distance() -> None:
    """By breadth-first search from the goal: the last move costs nothing."""
    distance, edge = {GOAL: 0}, [GOAL]
    while edge:
        cell = edge.pop(0)
        for move in MOVES:
            other = after(cell, move)
            if other not in distance:
                distance[other] = distance[cell] + 1
                edge.append(other)
    assert max(distance.values()) == 12
    mean = -sum(distance[cell] - 1 for cell in STARTS) / 25
    assert mean == pytest.approx(-6.84) == pytest.approx(best_return("full", 30)) == best_return("full", 12)
    assert make_task("maze").build().optimum == pytest.approx(-6.84)
    assert best_return("full", 11) == pytest.approx(-6.84)  # 11 moves of -1, the twelfth would earn 0


def test_uniform_moves_by_hand() -> None:
    # One move: only (7, 6) has a neighbour that is the goal, in one direction of four.
    assert uniform_return(1) == pytest.approx(-(24 + 3 / 4) / 25)
    assert uniform_return(30) == pytest.approx(-27.9558, abs=1e-4)
    assert scaled(-6.84, "full", 30) == pytest.approx(100) and scaled(uniform_return(30), "full", 30) == 0


@pytest.mark.parametrize("observed", OBSERVED)
def test_the_optimal_player_attains_the_optimum(observed: str) -> None:
    player, total = best_moves(observed), 0.0
    for cell in STARTS:
        partner, words = maze(cell, observed), opening(cell, observed).split()
        for _ in range(30):
            move = player(words, np.random.default_rng(0))
            reply = partner.reply(move)
            total += reply.reward
            if reply.done:
                break
            words = [*words, move, reply.text]
    assert total / 25 == pytest.approx(best_return(observed, 30))


def test_seeing_less_is_worse() -> None:
    assert best_return("partial", 30) == pytest.approx(-7.24)
    # Under a short limit it is not known which way to go first.
    assert uniform_return(4) < best_return("partial", 4) <= best_return("full", 4)


def test_uniform_return_is_that_of_the_player() -> None:
    batch = play(build_maze(max_turns=8), [uniform_moves], 500, seed=3)
    error = float(batch.returns.std()) / math.sqrt(500)
    assert abs(float(batch.returns.mean()) - uniform_return(8)) < 4 * error


# -- environment and data -----


def test_an_episode_in_the_environment() -> None:
    envs = gym.make_vec("TextRLHF-v0", num_envs=2, partner=["maze", {"observed": "partial"}])
    base = envs.unwrapped
    obs, _ = envs.reset(seed=0)
    assert base.tokenizer.decode(obs["input_ids"][0][:3]).startswith("<bos> maze walls:")
    assert base.max_new_tokens == 30 and base.max_length == 3 + 60
    left = base.tokenizer.convert_tokens_to_ids("left")
    for _ in range(3):
        obs, rewards, *_ = envs.step(torch.full((2,), left))
        assert rewards.tolist() == [-1.0, -1.0]
    obs, rewards, *_ = envs.step(torch.full((2,), base.tokenizer.eos_token_id))
    assert rewards.tolist() == [-4.0, -4.0]


@pytest.mark.parametrize("observed", OBSERVED)
def test_data_are_a_mixture_and_the_same_for_a_seed(observed: str) -> None:
    batch, again = (maze_episodes(90, observed, seed=1) for _ in range(2))
    assert torch.equal(batch.input_ids, again.input_ids) and torch.equal(batch.rewards, again.rewards)
    batch.validate()
    assert batch.rewards[~batch.action_mask].abs().sum() == 0
    returns, lost = batch.returns, batch.truncated
    assert (returns[lost] == -30).all() and 0.3 < float(lost.float().mean()) < 0.9
    assert float((returns > -8).float().mean()) > 0.03
    assert float(returns.mean()) < best_return(observed, 30) - 10


def test_every_token_is_an_action_that_cannot_crash() -> None:
    envs = gym.make_vec("TextRLHF-v0", num_envs=8, task="maze")
    rng = np.random.default_rng(0)

    def anything(obs, info):
        return torch.from_numpy(rng.integers(len(envs.unwrapped.tokenizer), size=8))

    batch = textenv.collect(envs, anything, 20, seed=0)
    assert float(batch.returns.min()) < -60
