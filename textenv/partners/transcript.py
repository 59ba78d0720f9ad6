"""`Transcript` replies what was replied in recorded episodes, without the partner that they came from."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from textenv.episodes.batch import EpisodeBatch
from textenv.partners.partner import Opening, Partner, Reply
from textenv.partners.registry import register_partner
from textenv.utils.names import shown


@register_partner("transcript")
class Transcript(Partner):
    """Replays the partner of recorded episodes, by their ``episode_id``.

    With a policy that repeats the recorded tokens (``textenv.generation.replay.Replay``) the same episodes
    come back, also those whose partner was not deterministic or timed out.

    Args:
        episodes: recorded episodes with a partner, or the path of their file.
        strict: refuse a turn that is not the recorded one; else the recorded reply follows any turn.

    Raises:
        ValueError: if the episodes had no partner, or two have the same id.
    """

    on_error = "end"

    def __init__(self, episodes: EpisodeBatch | str | os.PathLike[str], strict: bool = True) -> None:
        if not isinstance(episodes, EpisodeBatch):
            path = os.path.abspath(episodes)
            episodes = _loaded(path, os.stat(path).st_mtime_ns)
        missing = [name for name in ("opening", "turns", "replies") if name not in episodes.extras]
        if missing:
            raise ValueError(f"episodes must be of an environment with a partner; they lack extras {missing}")
        ids = episodes.episode_id.tolist()
        if len(set(ids)) != len(ids):
            raise ValueError("episodes must have distinct episode ids")
        names = ("opening", "turns", "replies", "stop_reason")
        rows = zip(*(episodes.extras[name] for name in names), strict=True)
        self._episodes = {i: dict(zip(names, row, strict=True)) for i, row in zip(ids, rows, strict=True)}
        self._strict = strict
        self._now: Mapping[str, Any] = {}
        self._turn = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Transcript:
        return copy.copy(self)  # the record does not change

    def begin(self, rng: np.random.Generator, episode_id: int = 0) -> Opening:
        """The recorded opening."""
        if episode_id not in self._episodes:
            raise ValueError(f"episode {episode_id} is not recorded; known: {shown(sorted(self._episodes))}")
        self._now, self._turn = self._episodes[episode_id], 0
        opening: Opening = self._now["opening"]
        return opening

    def reply(self, text: str) -> Reply:
        """The recorded reply."""
        turn, self._turn = self._turn, self._turn + 1
        turns, replies = self._now["turns"], self._now["replies"]
        if turn >= len(turns):
            raise ValueError(f"the recorded episode has {len(turns)} turns, got another one: {shown(text)}")
        if self._strict and text != turns[turn]:
            raise ValueError(f"turn {turn} must be the recorded {shown(turns[turn])}, got {shown(text)}")
        last = turn == len(turns) - 1
        if turn >= len(replies):
            timed_out = self._now["stop_reason"] == "timeout"
            raise (TimeoutError if timed_out else RuntimeError)("no reply was recorded")
        return Reply(**replies[turn], done=last and self._now["stop_reason"] == "done")


@lru_cache(maxsize=2)
def _loaded(path: str, changed: int) -> EpisodeBatch:
    """The episodes of a file, read once for all rows of an environment."""
    return EpisodeBatch.load(path)
