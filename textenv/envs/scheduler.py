"""Tickets: every episode has a number, and (seed, ticket, t) alone decide its prompt and its sampling noise.

So an episode is the same whatever row plays it, however many rows there are, and whenever its turn comes.
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


def noise_base(seed: np.ndarray, ticket: np.ndarray) -> np.ndarray:
    """What the noise keys of an episode have in common: (n,) int64, (n,) int64 -> (n,) uint64."""
    return hash_key_array(seed, ticket)


def noise_keys(base: np.ndarray, max_steps: int) -> np.ndarray:
    """The key of every draw of some episodes: (n,) uint64 from ``noise_base`` -> (n, max_steps) int64."""
    with np.errstate(over="ignore"):
        counter = base[:, None] + np.arange(1, max_steps + 1, dtype=np.uint64) * np.uint64(_STEP)
    return mix64_array(counter).view(np.int64)


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
    key = hash_key_array(np.asarray(seed, dtype=np.int64), epoch)
    return permute(position, num_prompts, key)


class Hand(NamedTuple):
    """What some rows were dealt; m rows."""

    rows: np.ndarray
    """(m,) int64: the rows that got a ticket."""
    tickets: np.ndarray
    """(m,) int64."""
    prompts: np.ndarray
    """(m,) int64: index into the prompt set."""
    noise: np.ndarray
    """(m,) uint64: what ``noise_keys`` makes the keys of."""


@dataclass
class TicketQueue:
    """Exactly the tickets of one rollout, dealt first come first served.

    Rank r of W takes every W-th ticket, or every W-th group of tickets that share a prompt, of the
    ``episodes`` tickets of all ranks together.

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
    """Consecutive tickets that share a prompt and a rank; a new group starts at each multiple of it."""
    dealt: int = 0
    """Tickets that this rank has handed out."""
    tickets: np.ndarray = field(init=False)
    """(n,) int64: the tickets of this rank."""

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
        check_fits(f"options['episodes'] = {self.episodes} tickets", 8 * int(self.episodes))
        if self.rank >= self.world_size:
            raise ValueError(
                f"options['rank'] must lie in [0, world_size={self.world_size}), got {self.rank}"
            )
        every = np.arange(self.first, self.end, dtype=np.int64)
        turn = every // self.group - self.first // self.group
        self.tickets = every[turn % self.world_size == self.rank]

    @property
    def mine(self) -> int:
        """How many tickets this rank deals in all."""
        return len(self.tickets)

    @property
    def end(self) -> int:
        """The first ticket after this rollout, over all ranks."""
        return self.first + self.episodes

    @property
    def left(self) -> int:
        """How many tickets this rank has still to deal."""
        return self.mine - self.dealt

    def coming(self, count: int) -> np.ndarray:
        """At most ``count`` next tickets, without dealing them: (m,) int64 with m <= count."""
        return self.tickets[self.dealt : self.dealt + count]


class Dealer:
    """Deals tickets and their prompts to rows: each row its own stream, or all rows one queue.

    Works in blocks ahead of time: a lookup costs about as much for a block of tickets as for one.

    Args:
        num_rows: N.
        num_prompts: P.
        samples_per_prompt: consecutive tickets that share a prompt.
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
        """Seed of the queue's stream, which is the first row's; None before the first reset."""
        self.count = 0
        """The queue's next ticket."""
        self.queue: TicketQueue | None = None
        self._ahead = self._look_up(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
        self._seeds = np.zeros(num_rows, dtype=np.int64)
        self._next = np.zeros(num_rows, dtype=np.int64)
        self._block = np.full(num_rows, -1, dtype=np.int64)
        self._prompts = np.zeros((num_rows, _STREAM_BLOCK), dtype=np.int64)
        self._noise = np.zeros((num_rows, _STREAM_BLOCK), dtype=np.uint64)

    def start(self, seed: int | Sequence[int | None] | None, rows: np.ndarray) -> None:
        """Start streams over at ticket 0: row i with ``seed + i``, or with ``seed[i]``; None goes on.

        Raises:
            TypeError: if a seed is not an integer.
            ValueError: if a seed is out of range or the list does not have one entry a row.
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
        """Let all rows draw from the next ``episodes`` tickets of stream ``seed``."""
        first = self.count if first_ticket is None else first_ticket
        self.queue = TicketQueue(
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
        """Let every row draw from its own stream again."""
        self.queue = None

    def deal(self, rows: np.ndarray) -> Hand:
        """Deal each of ``rows`` (n,) its next ticket; the last of them get none when the queue runs out."""
        return self._from_streams(rows) if self.queue is None else self._from_queue(self.queue, rows)

    def upcoming(self, count: int) -> np.ndarray:
        """Prompts of at most ``count`` next tickets of the queue, not dealt yet: (m,) int64, m <= count."""
        if self.queue is None:
            return np.zeros(0, dtype=np.int64)
        tickets = self.queue.coming(count)
        if len(self._ahead[0]) >= len(tickets):
            return self._ahead[0][: len(tickets)]
        return self._look_up(np.full(len(tickets), self.queue.seed, dtype=np.int64), tickets)[0]

    def _from_queue(self, queue: TicketQueue, rows: np.ndarray) -> Hand:
        count = min(len(rows), queue.left)
        tickets = queue.coming(max(count, _QUEUE_BLOCK))
        if len(self._ahead[0]) < count:
            self._ahead = self._look_up(np.full(len(tickets), queue.seed, dtype=np.int64), tickets)
        prompts, noise = (part[:count] for part in self._ahead)
        self._ahead = tuple(part[count:] for part in self._ahead)
        queue.dealt += count
        return Hand(rows[:count], tickets[:count], prompts, noise)

    def _from_streams(self, rows: np.ndarray) -> Hand:
        tickets = self._next[rows]
        block, place = np.divmod(tickets, _STREAM_BLOCK)
        stale = rows[self._block[rows] != block]
        if len(stale):
            self._block[stale] = self._next[stale] // _STREAM_BLOCK
            ahead = self._block[stale][:, None] * _STREAM_BLOCK + np.arange(_STREAM_BLOCK)
            found = self._look_up(np.repeat(self._seeds[stale], _STREAM_BLOCK), ahead.reshape(-1))
            self._prompts[stale], self._noise[stale] = (part.reshape(ahead.shape) for part in found)
        self._next[rows] += 1
        return Hand(rows, tickets, self._prompts[rows, place], self._noise[rows, place])

    def _look_up(self, seeds: np.ndarray, tickets: np.ndarray) -> tuple[np.ndarray, ...]:
        """Prompts and noise of some tickets: (n,), (n,) -> (n,) int64 and (n,) uint64."""
        prompts = prompt_index(
            seeds,
            tickets,
            self.num_prompts,
            samples_per_prompt=self.samples_per_prompt,
            shuffle=self.shuffle,
        )
        return prompts, noise_base(seeds, tickets)
