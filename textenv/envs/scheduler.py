"""Which episode and prompt each row plays next, and the noise keys of its actions.

Every episode has a number, its ``episode_id`` (also called its ticket). Prompt and noise keys are functions
of (seed, episode id, step) only, so an episode does not depend on its row, on the number of rows or on
timing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from textenv.utils.checks import MAX_SEED, check_at_least, row_seeds
from textenv.utils.hashing import hash_key_array, mix64_array
from textenv.utils.host_memory import check_fits
from textenv.utils.names import shown
from textenv.utils.permutation import permute

_STEP = 0x9E3779B97F4A7C15  # odd (the golden ratio in 64 bits), so t -> t * _STEP never repeats
_QUEUE_BLOCK, _STREAM_BLOCK = 256, 16


def noise_base(seed: np.ndarray, episode_id: np.ndarray) -> np.ndarray:
    """The part of the noise keys that an episode's steps share: (n,) int64, (n,) int64 -> (n,) uint64."""
    return hash_key_array(seed, episode_id)


def noise_keys(base: np.ndarray, max_steps: int) -> np.ndarray:
    """Noise keys of all steps: (n,) uint64 from ``noise_base`` -> (n, max_steps) int64."""
    with np.errstate(over="ignore"):
        counter = base[:, None] + np.arange(1, max_steps + 1, dtype=np.uint64) * np.uint64(_STEP)
    return mix64_array(counter).view(np.int64)


def prompt_index(
    seed: np.ndarray,
    episode_id: np.ndarray,
    num_prompts: int,
    *,
    samples_per_prompt: int = 1,
    shuffle: bool = True,
) -> np.ndarray:
    """The prompt of each episode. Each epoch goes through all prompts, in a new permutation if ``shuffle``.

    Args:
        seed: (n,) int64.
        episode_id: (n,) int64; ``samples_per_prompt`` consecutive episodes share a prompt.
        num_prompts: P.
        samples_per_prompt: episodes per prompt.
        shuffle: False keeps the order of the prompts.

    Returns:
        (n,) int64 in [0, P).
    """
    turn = np.asarray(episode_id, dtype=np.int64) // samples_per_prompt
    epoch, position = turn // num_prompts, turn % num_prompts
    if not shuffle:
        return position
    key = hash_key_array(np.asarray(seed, dtype=np.int64), epoch)
    return permute(position, num_prompts, key)


class Assignment(NamedTuple):
    """New episodes of m rows."""

    rows: np.ndarray
    """(m,) int64: the rows that got an episode."""
    episode_ids: np.ndarray
    """(m,) int64."""
    prompts: np.ndarray
    """(m,) int64: index into the prompt set."""
    noise: np.ndarray
    """(m,) uint64: argument of ``noise_keys``."""
    seeds: np.ndarray
    """(m,) int64: of their streams."""


@dataclass
class EpisodeQueue:
    """The episodes of one rollout, assigned to rows in order.

    ``episodes`` counts those of all ranks. Rank r of W plays every W-th episode, or every W-th group of
    episodes that share a prompt.

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if a number is out of range.
    """

    seed: int
    first: int
    episodes: int
    rank: int = 0
    world_size: int = 1
    group: int = 1
    """Number of consecutive episodes that share a prompt and a rank; groups start at multiples of it."""
    assigned: int = 0
    """Episodes of this rank that rows have got so far."""
    episode_ids: np.ndarray = field(init=False)
    """(n,) int64: the episodes of this rank."""

    def __post_init__(self) -> None:
        check_at_least("options['episodes']", self.episodes, 1)
        check_at_least("options['first_ticket']", self.first, 0)
        check_at_least("options['world_size']", self.world_size, 1)
        check_at_least("options['rank']", self.rank, 0)
        if self.end > MAX_SEED:
            raise ValueError(
                f"options['first_ticket'] + options['episodes'] must be <= {MAX_SEED}, "
                f"got {shown(self.first)} + {shown(self.episodes)}"
            )
        check_fits(f"options['episodes'] = {self.episodes} episodes", 8 * int(self.episodes))
        if self.rank >= self.world_size:
            raise ValueError(
                f"options['rank'] must lie in [0, world_size={self.world_size}), got {self.rank}"
            )
        every = np.arange(self.first, self.end, dtype=np.int64)
        turn = every // self.group - self.first // self.group
        self.episode_ids = every[turn % self.world_size == self.rank]

    @property
    def size(self) -> int:
        """Episodes of this rank."""
        return len(self.episode_ids)

    @property
    def end(self) -> int:
        """The first episode id after this rollout, over all ranks."""
        return self.first + self.episodes

    @property
    def remaining(self) -> int:
        """Episodes of this rank that no row has got yet."""
        return self.size - self.assigned

    def peek(self, count: int) -> np.ndarray:
        """Ids of the next episodes, which stay in the queue: (m,) int64 with m <= count."""
        return self.episode_ids[self.assigned : self.assigned + count]


class EpisodeScheduler:
    """Assigns episodes and their prompts to rows: each row has its own stream, or all rows share a queue.

    Prompts are computed in blocks ahead of time: a block costs about as much as a single one.

    Args:
        num_rows: N.
        num_prompts: P.
        samples_per_prompt: consecutive episodes that share a prompt.
        shuffle: see ``prompt_index``.
    """

    def __init__(
        self, num_rows: int, num_prompts: int, *, samples_per_prompt: int = 1, shuffle: bool = True
    ) -> None:
        self.num_rows = num_rows
        self.num_prompts = num_prompts
        self.samples_per_prompt = samples_per_prompt
        self.shuffle = shuffle
        self.seed: int | None = None
        """Seed of the queue, which is the first row's; None before the first reset."""
        self.count = 0
        """Id of the next episode of the queue."""
        self.queue: EpisodeQueue | None = None
        self._ahead = self._look_up(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
        self._seeds = np.zeros(num_rows, dtype=np.int64)
        self._next = np.zeros(num_rows, dtype=np.int64)
        self._block = np.full(num_rows, -1, dtype=np.int64)
        self._prompts = np.zeros((num_rows, _STREAM_BLOCK), dtype=np.int64)
        self._noise = np.zeros((num_rows, _STREAM_BLOCK), dtype=np.uint64)

    def start(self, seed: int | Sequence[int | None] | None, rows: np.ndarray) -> None:
        """Restart streams at episode 0: row i with ``seed + i``, or with ``seed[i]``; None continues.

        Raises:
            TypeError: if a seed is not an integer.
            ValueError: if a seed is out of range or the list does not have one entry per row.
        """
        if seed is None:
            return
        seeds = row_seeds(seed, self.num_rows)
        for row in rows.tolist():
            value = seeds[row]
            if value is None and self.seed is None:
                value = int(np.random.SeedSequence().generate_state(1)[0])
            if value is not None:
                self._seeds[row], self._next[row], self._block[row] = value, 0, -1
        if self.seed is None or (len(rows) == self.num_rows and seeds[0] is not None):
            self.seed, self.count = int(self._seeds[0]), 0

    def open_queue(
        self, episodes: int, first_ticket: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        """Let all rows play the next ``episodes`` episodes of stream ``seed``."""
        first = self.count if first_ticket is None else first_ticket
        self.queue = EpisodeQueue(
            seed=self.seed or 0,
            first=first,
            episodes=episodes,
            rank=rank,
            world_size=world_size,
            group=self.samples_per_prompt,
        )
        self.count = self.queue.end
        self._ahead = tuple(part[:0] for part in self._ahead)

    def close_queue(self) -> None:
        """Let every row play its own stream again."""
        self.queue = None

    def assign(self, rows: np.ndarray) -> Assignment:
        """Assign the next episode to each of ``rows`` (n,); if the queue runs out, the last rows get none."""
        return self._from_streams(rows) if self.queue is None else self._from_queue(self.queue, rows)

    def upcoming(self, count: int) -> np.ndarray:
        """Prompts of the next episodes of the queue, which stay there: (m,) int64, m <= count."""
        if self.queue is None:
            return np.zeros(0, dtype=np.int64)
        episode_ids = self.queue.peek(count)
        if len(self._ahead[0]) >= len(episode_ids):
            return self._ahead[0][: len(episode_ids)]
        return self._look_up(np.full(len(episode_ids), self.queue.seed, dtype=np.int64), episode_ids)[0]

    def _from_queue(self, queue: EpisodeQueue, rows: np.ndarray) -> Assignment:
        count = min(len(rows), queue.remaining)
        episode_ids = queue.peek(max(count, _QUEUE_BLOCK))
        if len(self._ahead[0]) < count:
            self._ahead = self._look_up(np.full(len(episode_ids), queue.seed, dtype=np.int64), episode_ids)
        prompts, noise = (part[:count] for part in self._ahead)
        self._ahead = tuple(part[count:] for part in self._ahead)
        queue.assigned += count
        seeds = np.full(count, queue.seed, dtype=np.int64)
        return Assignment(rows[:count], episode_ids[:count], prompts, noise, seeds)

    def _from_streams(self, rows: np.ndarray) -> Assignment:
        episode_ids = self._next[rows]
        block, place = np.divmod(episode_ids, _STREAM_BLOCK)
        stale = rows[self._block[rows] != block]
        if len(stale):
            self._block[stale] = self._next[stale] // _STREAM_BLOCK
            ahead = self._block[stale][:, None] * _STREAM_BLOCK + np.arange(_STREAM_BLOCK)
            found = self._look_up(np.repeat(self._seeds[stale], _STREAM_BLOCK), ahead.reshape(-1))
            self._prompts[stale], self._noise[stale] = (part.reshape(ahead.shape) for part in found)
        self._next[rows] += 1
        prompts, noise = self._prompts[rows, place], self._noise[rows, place]
        return Assignment(rows, episode_ids, prompts, noise, self._seeds[rows])

    def _look_up(self, seeds: np.ndarray, episode_ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """Prompts and noise of some episodes: (n,), (n,) -> (n,) int64 and (n,) uint64."""
        prompts = prompt_index(
            seeds,
            episode_ids,
            self.num_prompts,
            samples_per_prompt=self.samples_per_prompt,
            shuffle=self.shuffle,
        )
        return prompts, noise_base(seeds, episode_ids)
