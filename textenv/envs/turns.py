"""The turns of the running episodes: partners reply when a turn of the policy ends.

All decisions are made on the CPU, from the turns that ended in a step and the replies that arrived. Shape
letters: N rows, n of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from textenv.envs.host_mirror import HostMirror
from textenv.envs.scheduler import Assignment
from textenv.envs.turn_prompts import TurnPrompts
from textenv.envs.turn_times import TurnTimes
from textenv.episodes.conversations import TURN_EXTRAS
from textenv.partners.calls import Outcome, PartnerError, ReplyCalls, Turn
from textenv.partners.partner import Partner, Reply, ReplyError
from textenv.partners.registry import PartnerSpec

STOP_REASONS = ("done", "max_turns", "max_new_tokens", "max_length", "timeout", "error")
"""Why an episode of several turns ended; all but "done" truncate it."""
WAITING = ("block", "step")
RESERVED = ("episode_id",)
"""Argument of ``Partner.begin`` beside the columns of the prompt."""


@dataclass(frozen=True)
class TurnLimits:
    """Budgets of an episode."""

    max_turns: int
    max_turn_tokens: int
    max_new_tokens: int
    max_length: int


@dataclass
class Conversation:
    """What was said in one episode."""

    opening: Any = None
    """What ``Partner.begin`` returned."""
    turns: list[str] = field(default_factory=list)
    """The policy's turns, without the tokens that ended them. The last one may have been cut by a budget."""
    replies: list[dict[str, Any]] = field(default_factory=list)
    """Text, role, reward and info of each reply; they follow the turns one to one. A turn that a budget of
    the episode cut has none."""
    last_reply: str = ""
    """The reply that was not appended, because the episode ended."""
    stop_reason: str = ""
    partner_errors: int = 0
    partner_timeouts: int = 0

    def extras(self) -> dict[str, Any]:
        """Its columns of ``EpisodeBatch.extras``, copied."""
        opening = self.opening if self.opening is None or isinstance(self.opening, str) else [*self.opening]
        return {
            "opening": opening,
            "turns": [*self.turns],
            "replies": [dict(reply) for reply in self.replies],
            "last_reply": self.last_reply,
            "stop_reason": self.stop_reason,
            "partner_errors": self.partner_errors,
            "partner_timeouts": self.partner_timeouts,
        }


class TurnCheck(NamedTuple):
    """The rows whose turn or budget ended with the chosen tokens, on the CPU."""

    closed: np.ndarray
    """(N,) bool: the turn ended by a stop token."""
    over: np.ndarray
    """(N,) bool: the turn ended, by a stop token, a stop string or its budget."""
    spent: np.ndarray
    """(N,) bool: the budget of the episode is used up: "max_new_tokens" or "max_length"."""
    acting: np.ndarray
    """(N,) bool: rows that got a token."""


class TurnStep(NamedTuple):
    """What came of a step, for all rows whose transition is complete; (N,) each, on the CPU."""

    completed: np.ndarray
    """bool: the row acted and needs no reply, or its reply arrived."""
    terminated: np.ndarray
    truncated: np.ndarray
    rewards: np.ndarray
    """float32: rewards of the replies."""
    added: dict[int, list[int]]
    """Row -> token ids that follow the turn: the reply with the tokens around it."""


class Turns:
    """Partners, conversations and calls of N rows.

    Args:
        spec: makes a partner for each row.
        num_envs: N.
        prompts: encodes openings and replies.
        limits: budgets of an episode.
        waiting: "block" waits for every reply within the step; "step" lets the other rows go on.
    """

    def __init__(
        self, spec: PartnerSpec, num_envs: int, prompts: TurnPrompts, limits: TurnLimits, *, waiting: str
    ) -> None:
        self.spec = spec
        self.prompts = prompts
        self.limits = limits
        self.waiting = waiting
        self.calls = ReplyCalls(spec)
        self.times = TurnTimes()
        self.conversations = [Conversation() for _ in range(num_envs)]
        self._partners: list[Partner | None] = [None] * num_envs
        self._index = np.zeros(num_envs, dtype=np.int64)
        self._closed = np.zeros(num_envs, dtype=bool)
        self._spent = np.zeros(num_envs, dtype=bool)

    # -- episodes -----

    def begin(self, assigned: Assignment, samples_per_prompt: int) -> list[list[int]]:
        """Start the assigned episodes, and return the token ids of each prompt with the partner's opening.

        Args:
            assigned: rows, episodes, prompts and seeds.
            samples_per_prompt: so many consecutive episodes meet the same world.

        Raises:
            ValueError: if the prompt and the opening leave no room for a token of the policy.
        """
        found = []
        groups = assigned.episode_ids // samples_per_prompt
        each = np.stack(
            [assigned.rows, assigned.episode_ids, assigned.seeds, groups, assigned.prompts], axis=1
        )
        for row, episode, seed, group, index in each.tolist():
            partner = self._partners[row] = self._partners[row] or self.prompts.partner(self.spec)
            columns = {**self.prompts.columns(index), "episode_id": episode}
            arguments = self.spec.begin_arguments(columns)
            opening = partner.begin(world_generator(seed, group), **arguments)
            ids = self.prompts.start(index, opening)
            if len(ids) >= self.limits.max_length:
                raise ValueError(
                    f"max_length must be more than the {len(ids)} tokens of prompt {index} with the "
                    f"partner's opening, got {self.limits.max_length}"
                )
            self.conversations[row] = Conversation(opening)
            self._index[row] = index
            found.append(ids)
        return found

    def forget(self, rows: np.ndarray) -> None:
        """Drop the episodes of rows that are reset, with their calls; a partner that is busy is replaced."""
        busy = set(self.calls.pending)
        self.calls.forget(rows.tolist())
        for row in rows.tolist():
            if row in busy:
                self._partners[row] = None

    def close(self) -> None:
        """Close all partners and stop the threads."""
        self.calls.close()
        for partner in self._partners:
            if partner is not None:
                partner.close()
        self._partners = [None] * len(self._partners)

    def extras(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of ``TURN_EXTRAS`` for some rows."""
        parts = [self.conversations[row].extras() for row in rows]
        return {name: [part[name] for part in parts] for name in TURN_EXTRAS}

    # -- one step -----

    def advance(self, check: TurnCheck, ids: dict[int, list[int]], host: HostMirror) -> TurnStep:
        """Ask the partners of the rows whose turn ended, and take the replies that have arrived.

        Args:
            check: which turns and budgets ended.
            ids: row -> the last token before the turn, and the tokens of the turn; for rows whose turn or
                budget ended.
            host: lengths and activity of the rows after the token.

        Raises:
            PartnerError: if a call failed and ``on_error`` is "raise".
        """
        acting = check.acting
        self.times.steps += 1
        self.times.acted += int(acting.sum())
        step = TurnStep(
            acting & ~check.over,
            np.zeros_like(acting),
            acting & check.spent & ~check.over,
            np.zeros(len(acting), dtype=np.float32),
            {},
        )
        cut = np.flatnonzero(step.truncated).tolist()
        texts = self.prompts.turn_texts([ids[row] for row in cut]) if cut else []
        for row, text in zip(cut, texts, strict=True):
            self.conversations[row].turns.append(text)
            self._end(row, self._budget(row, host))
        rows = np.flatnonzero(check.over).tolist()
        self._closed[rows], self._spent[rows] = check.closed[rows], check.spent[rows]
        if rows:
            with self.times.measure():
                self._ask(rows, ids, check.closed)
        pending = self.calls.pending
        if rows or pending:
            idle = not (host.active & ~check.over & ~step.truncated).any()
            wait = "all" if self.waiting == "block" else "any" if idle else "none"
            with self.times.measure():
                outcomes = self.calls.collect(wait)
            for outcome in outcomes:
                self._take(outcome, host, step)
        return step

    def _ask(self, rows: list[int], ids: dict[int, list[int]], closed: np.ndarray) -> None:
        texts = self.prompts.turn_texts([ids[row][: -1 if closed[row] else None] for row in rows])
        turns = []
        for row, text in zip(rows, texts, strict=True):
            partner = self._partners[row]
            assert partner is not None
            self.conversations[row].turns.append(text)
            turns.append(Turn(row, partner, text, ids[row][1:]))
        self.calls.ask(turns)

    def _take(self, outcome: Outcome, host: HostMirror, step: TurnStep) -> None:
        """One reply: end the episode, or append the reply and go on."""
        row, talk = outcome.row, self.conversations[outcome.row]
        step.completed[row] = True
        reply, ids = self._read(outcome, talk)
        if reply is None:
            step.truncated[row] = True
            self._end(row, "timeout" if _timed_out(outcome) else "error")
            return
        step.rewards[row] = reply.reward
        said = {
            "text": reply.text,
            "role": reply.role,
            "reward": float(reply.reward),
            "info": dict(reply.info),
        }
        talk.replies.append(said if reply.ids is None else {**said, "ids": list(reply.ids)})
        if reply.done:
            step.terminated[row] = True
            self._end(row, "done", reply.text)
            return
        reason = "max_turns" if len(talk.turns) >= self.limits.max_turns else ""
        if not reason and self._spent[row]:
            reason = self._budget(row, host)
        if not reason and host.lengths[row] + len(ids) >= self.limits.max_length:
            reason = "max_length"  # no room for the reply and one more token
        if reason:
            step.truncated[row] = True
            self._end(row, reason, reply.text)
        else:
            step.added[row] = ids

    def _read(self, outcome: Outcome, talk: Conversation) -> tuple[Reply | None, list[int]]:
        """The reply and its token ids (none if it ends the episode), or what ``on_error`` makes of it."""
        reply = self._resolved(outcome, talk)
        if reply is None or reply.done:
            return reply, []
        try:
            ids = self._encoded(outcome.row, reply, talk)
            if not ids:  # without a token between them two turns would be one
                raise ValueError("a reply that does not end the episode must have a token, got none")
        except ValueError as error:
            reply = self._resolved(Outcome(outcome.row, error=error), talk)
            ids = [] if reply is None else self._encoded(outcome.row, reply, talk)
        return reply, ids

    def _encoded(self, row: int, reply: Reply, talk: Conversation) -> list[int]:
        """Token ids of a reply that does not end the episode."""
        closed, index = bool(self._closed[row]), int(self._index[row])
        return self.prompts.reply(index, reply, closed=closed, said=talk.turns[-1])

    def _resolved(self, outcome: Outcome, talk: Conversation) -> Reply | None:
        """The reply, or what ``on_error`` makes of a failed call; None ends the episode."""
        if outcome.reply is not None:
            return outcome.reply
        name, error = self.spec.cls.__name__, outcome.error
        if self.spec.on_error == "raise":
            raise PartnerError(
                f"partner {name} raised {type(error).__name__}: {error} (row {outcome.row}); "
                "on_error='reply' or 'end' goes on"
            ) from error
        talk.partner_timeouts += _timed_out(outcome)
        talk.partner_errors += not _timed_out(outcome)
        if outcome.timed_out:
            self._partners[outcome.row] = None  # it may still run
        if self.spec.on_error == "end" or outcome.timed_out:
            return None
        return error.reply if isinstance(error, ReplyError) else Reply(f"Error: {error}")

    def _budget(self, row: int, host: HostMirror) -> str:
        return "max_length" if host.lengths[row] >= self.limits.max_length else "max_new_tokens"

    def _end(self, row: int, reason: str, last_reply: str = "") -> None:
        talk = self.conversations[row]
        talk.stop_reason, talk.last_reply = reason, last_reply


def _timed_out(outcome: Outcome) -> bool:
    return outcome.timed_out or (isinstance(outcome.error, ReplyError) and outcome.error.timed_out)


def world_generator(seed: int, group: int) -> np.random.Generator:
    """The generator of a world: a function of the stream's seed and the group of episodes."""
    return np.random.Generator(np.random.PCG64([seed, group]))
