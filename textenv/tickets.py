"""Tickets: every episode has a number, and its prompt and its sampling noise are functions of (seed,
ticket, t) alone.

So an episode is the same whatever row plays it, however many rows there are, and whenever its turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from textenv.hashing import hash_key, mix64

_STEP = -7046029254386353131  # odd (the golden ratio in 64 bits), so t -> t * _STEP never repeats
_FEISTEL_ROUNDS = 4


def noise_base(seed: np.ndarray, ticket: np.ndarray) -> Tensor:
    """The part of the noise key that is the same for a whole episode: (n,), (n,) -> (n,) int64."""
    return hash_key(torch.from_numpy(np.asarray(seed)), torch.from_numpy(np.asarray(ticket)))


def noise_key(base: Tensor, t: Tensor) -> Tensor:
    """Key of the draw at step t of an episode: (N,) base from ``noise_base``, (N,) steps -> (N,) int64."""
    return mix64(base + (t + 1) * _STEP)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64 arrays."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def permute(position: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Where a keyed random permutation of range(size) puts each position, in constant memory.

    A balanced Feistel network on the next even number of bits, walked along its cycles until the result is
    in range (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        position: (n,) integers in [0, size).
        size: length of the permuted range.
        key: (n,) uint64, one permutation per key.

    Returns:
        (n,) int64 in [0, size).

    Example:
        >>> sorted(permute(np.arange(20), 20, np.zeros(20, np.uint64)).tolist()) == list(range(20))
        True
    """
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    value = position.astype(np.uint64)
    todo = np.ones(len(value), dtype=bool)
    while todo.any():
        left, right, k = value[todo] >> half, value[todo] & mask, key[todo]
        for round_ in range(_FEISTEL_ROUNDS):
            with np.errstate(over="ignore"):
                mixed = _mix(
                    k + np.uint64(round_ + 1) * np.uint64(0x9E3779B97F4A7C15) ^ _mix(right + np.uint64(1))
                )
            left, right = right, left ^ (mixed & mask)
        value[todo] = (left << half) | right
        todo = value >= np.uint64(size)
    return value.astype(np.int64)


def prompt_index(
    seed: np.ndarray,
    ticket: np.ndarray,
    num_prompts: int,
    *,
    samples_per_prompt: int = 1,
    shuffle: bool = True,
) -> np.ndarray:
    """The prompt of each ticket: an endless run of epochs, each a fresh permutation of all prompts.

    Args:
        seed: (n,) int64.
        ticket: (n,) int64; ``samples_per_prompt`` consecutive tickets share a prompt.
        num_prompts: P.
        samples_per_prompt: tickets per prompt.
        shuffle: False deals the prompts in their own order.

    Returns:
        (n,) int64 in [0, P).
    """
    turn = np.asarray(ticket, dtype=np.int64) // samples_per_prompt
    epoch, position = turn // num_prompts, turn % num_prompts
    if not shuffle:
        return position
    key = _mix(_mix(np.asarray(seed, dtype=np.int64).astype(np.uint64)) + epoch.astype(np.uint64))
    return permute(position, num_prompts, key)


@dataclass
class TicketQueue:
    """Deals exactly the tickets of one rollout, first come first served.

    Rank r of W takes tickets first + r, first + r + W, ... of the ``episodes`` tickets of all ranks together.
    """

    seed: int
    first: int
    episodes: int
    rank: int = 0
    world_size: int = 1
    dealt: int = 0
    """Tickets that this rank has handed out."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"options['episodes'] must be >= 1, got {self.episodes}")
        if self.first < 0:
            raise ValueError(f"options['first_ticket'] must be >= 0, got {self.first}")
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"options['rank'] must lie in [0, world_size={self.world_size}), got {self.rank}"
            )

    @property
    def mine(self) -> int:
        """How many tickets this rank deals in all."""
        return len(range(self.rank, self.episodes, self.world_size))

    @property
    def end(self) -> int:
        """The first ticket after this rollout, over all ranks."""
        return self.first + self.episodes

    @property
    def left(self) -> int:
        """How many tickets this rank has still to deal."""
        return self.mine - self.dealt

    def draw(self, count: int) -> np.ndarray:
        """At most ``count`` next tickets: (m,) int64 with m <= count."""
        count = min(count, self.left)
        tickets = (
            self.first
            + self.rank
            + self.world_size * np.arange(self.dealt, self.dealt + count, dtype=np.int64)
        )
        self.dealt += count
        return tickets


class TicketStreams:
    """Who gets which ticket: each row its own stream (plain stepping), or all rows one queue (a rollout)."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.seed: int | None = None
        """Seed of the queue's stream; None before the first reset."""
        self.count = 0
        """The queue's next ticket."""
        self.queue: TicketQueue | None = None
        self._seeds = np.zeros(num_rows, dtype=np.int64)
        self._next = np.zeros(num_rows, dtype=np.int64)

    def start(self, seed: int | Sequence[int | None] | None, rows: np.ndarray) -> None:
        """Start the streams of ``rows`` over at ticket 0: row i with ``seed + i``, or ``seed[i]``; None
        goes on.

        Raises:
            ValueError: if a seed is negative or the list does not have one entry a row.
        """
        if seed is None:
            return
        single = isinstance(seed, int | np.integer)
        seeds = [int(seed) + i for i in range(self.num_rows)] if single else list(seed)  # type: ignore[arg-type]
        if len(seeds) != self.num_rows:
            raise ValueError(f"seed must be an integer or a list of {self.num_rows} seeds, got {len(seeds)}")
        for row in rows.tolist():
            value = seeds[row]
            if value is None and self.seed is None:
                value = int(np.random.SeedSequence().generate_state(1)[0])
            if value is None:
                continue
            if value < 0:
                raise ValueError(f"seed must be >= 0, got {value}")
            self._seeds[row], self._next[row] = value, 0
        if len(rows) == self.num_rows or self.seed is None:
            self.seed, self.count = int(self._seeds[0]), 0

    def open_queue(
        self, episodes: int, first_ticket: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        """Let all rows draw from the next ``episodes`` tickets of stream ``seed``."""
        first = self.count if first_ticket is None else first_ticket
        self.queue = TicketQueue(
            seed=self.seed or 0, first=first, episodes=episodes, rank=rank, world_size=world_size
        )
        self.count = self.queue.end

    def draw(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Next tickets for ``rows`` (n,): the m <= n rows that got one, their seeds and their tickets,
        (m,) each.
        """
        if self.queue is None:
            tickets = self._next[rows].copy()
            self._next[rows] += 1
            return rows, self._seeds[rows], tickets
        tickets = self.queue.draw(len(rows))
        rows = rows[: len(tickets)]
        return rows, np.full(len(rows), self.queue.seed, dtype=np.int64), tickets
