"""One step of the rows: append the tokens, ask partners, append the replies that are there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from textenv.envs.host_mirror import HostMirror
from textenv.envs.rows import Rows
from textenv.envs.termination import TerminationRule
from textenv.envs.turns import Turns
from textenv.utils.devices import to_device


class StepResult(NamedTuple):
    """The transitions that are complete after a step; (N,) each."""

    acting: Tensor
    """bool: rows that got a token and wait for no reply, or whose reply arrived."""
    terminated: Tensor
    truncated: Tensor
    ended_rows: np.ndarray
    """(F,) int64 on the CPU: the rows whose episode ended."""
    rewards: Tensor | None
    """float32: rewards of the replies; None without partners."""
    late: bool
    """Whether a reply arrived in a later step than its turn."""


def play_step(
    turns: Turns | None, termination: TerminationRule, rows: Rows, host: HostMirror, chosen: Tensor
) -> StepResult:
    """Append one token to every active row.

    Args:
        turns: the partners and their replies; None for episodes of one turn.
        termination: says which episodes or turns end.
        rows: changed in place.
        host: its mirror, changed in place.
        chosen: (N,) int64 tokens.
    """
    acting = rows.active.clone()
    if turns is not None:
        return _turn_step(turns, termination, rows, host, chosen, acting)
    terminated, truncated, ended = termination.check(chosen, rows)
    rows.append(chosen, acting)
    host.step(ended)
    return StepResult(acting, terminated, truncated, ended, None, late=False)


def _turn_step(
    turns: Turns, termination: TerminationRule, rows: Rows, host: HostMirror, chosen: Tensor, acting: Tensor
) -> StepResult:
    device = chosen.device
    check = termination.check_turns(chosen, rows, turns.limits)
    rows.append(chosen, acting)
    host.step(np.flatnonzero(check.spent & ~check.over))
    over = np.flatnonzero(check.over)
    last = np.flatnonzero(check.over | check.spent)
    said: dict[int, list[int]] = {}
    if len(last):
        tokens = rows.tokens.index_select(0, to_device(last, device)).cpu().numpy()
        bounds = zip(last.tolist(), host.turn_starts[last], host.lengths[last], strict=True)
        said = {row: tokens[i, start - 1 : end].tolist() for i, (row, start, end) in enumerate(bounds)}
        host.wait(over)
    step = turns.advance(check, said, host)
    if step.added:
        grown = np.array(sorted(step.added), dtype=np.int64)
        replies = [step.added[row] for row in grown.tolist()]
        rows.add(grown, host.lengths[grown], replies)
        host.add(grown, np.array([len(ids) for ids in replies]))
    ended = np.flatnonzero(step.terminated | step.truncated)
    host.deactivate(ended)
    flags = np.stack([step.completed, step.terminated, step.truncated, host.active])
    completed, terminated, truncated, active = to_device(flags, device)
    if len(over) or step.added or len(ended):
        rows.active.copy_(active)
    late = bool((step.completed & ~check.acting).any())
    return StepResult(completed, terminated, truncated, ended, to_device(step.rewards, device), late)
