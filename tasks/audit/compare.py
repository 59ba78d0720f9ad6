"""Comparison of episodes that must be equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from textenv.envs.step_buffer import counts
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.conversations import OPENING, REPLIES, STOP_REASON
from textenv.utils.names import shown

_CLOSE = {"rel_tol": 1e-4, "abs_tol": 1e-5}
"""Reward models give slightly different numbers in batches of different sizes."""


def parts(batch: EpisodeBatch, row: int) -> dict[str, Any]:
    """What an episode consists of, in the order in which it came about."""
    length, start = int(batch.lengths[row]), int(batch.prompt_lengths[row])
    ids = batch.input_ids[row, :length].tolist()
    found: dict[str, Any] = {"prompt": ids[:start]}
    if OPENING in batch.extras:
        found["opening of the partner"] = batch.extras[OPENING][row]
        for i, reply in enumerate(batch.extras[REPLIES][row], start=1):
            found[f"reply {i} of the partner"] = reply["text"], reply["role"]
            found[f"reward of turn {i}"] = reply["reward"]
        found["reason to stop"] = batch.extras[STOP_REASON][row]
    found["tokens"] = ids[start:]
    found["end"] = bool(batch.terminated[row]), bool(batch.truncated[row])
    for name in sorted(filter(counts, batch.reward_terms)):
        found[f"reward {name!r}"] = batch.reward_terms[name][row].sum().item()
    return found


def first_difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """Name and values of the first part that is not equal; None if all are."""
    for name in dict.fromkeys([*one, *other]):
        a, b = one.get(name), other.get(name)
        close = isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, **_CLOSE)
        if not close and a != b:
            return name, a, b
    return None


def difference(one: EpisodeBatch, other: EpisodeBatch, rows: Sequence[tuple[int, int]] | None = None) -> str:
    """How two batches differ, as a sentence; "" if they do not.

    Args:
        one: B episodes.
        other: episodes that must be equal to them.
        rows: pairs of rows to compare; by default (0, 0), (1, 1), ...
    """
    pairs = [(i, i) for i in range(len(one))] if rows is None else rows
    found = [(a, first_difference(parts(one, a), parts(other, b))) for a, b in pairs]
    different = [(int(one.episode_id[a]), *what) for a, what in found if what is not None]
    if not different:
        return ""
    episode, name, a, b = different[0]
    return (
        f"{len(different)} of {len(pairs)} episodes differ, first episode {episode}: "
        f"the {name} is {shown(a)} and then {shown(b)}"
    )
