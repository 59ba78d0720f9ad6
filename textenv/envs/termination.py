"""When an episode or a turn ends: at stop tokens, stop strings and budgets, checked for all rows at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from textenv.envs.rows import Rows
from textenv.envs.stop_strings import StopStrings
from textenv.envs.token_constraints import TokenConstraints
from textenv.envs.turns import TurnCheck, TurnLimits

_PLAIN, _STOP, _MAYBE, _OUTSIDE = range(4)


class Termination(NamedTuple):
    """Which rows end with the chosen tokens; False in rows that do not act."""

    terminated: Tensor
    """(N,) bool: a stop token or stop string ends the episode."""
    truncated: Tensor
    """(N,) bool: the budget is used up, and nothing else ends the episode."""
    done_rows: np.ndarray
    """(F,) int64 on the CPU: the rows whose episode ends."""


class TerminationRule:
    """Looks the chosen tokens up in a table over the vocabulary: plain, stop, may complete a string, outside.

    Args:
        legality: vocabulary, stop tokens and ``min_new_tokens``.
        stop_strings: strings that end an episode.
        max_new_tokens: the budget T.
        device: of rows and tokens.
    """

    def __init__(
        self, legality: TokenConstraints, stop_strings: StopStrings, max_new_tokens: int, device: torch.device
    ) -> None:
        self._legality = legality
        self._strings = stop_strings
        self._last_step = max_new_tokens - 1
        kinds = torch.full((legality.vocab_size + 1,), _PLAIN, dtype=torch.int8)
        if stop_strings:
            kinds[:-1][stop_strings.may_complete] = _MAYBE
        kinds[list(legality.stop_token_ids)] = _STOP
        kinds[-1] = _OUTSIDE  # ids that are too large or negative end up here
        self._kinds = kinds.to(device)

    def check(self, chosen: Tensor, rows: Rows) -> Termination:
        """Which rows end if the tokens ``chosen`` (N,) int64 are appended.

        Raises:
            ValueError: if the token of an active row is outside the vocabulary.
        """
        acting = rows.active
        kind = self._kinds.take(chosen.clamp(-1, self._legality.vocab_size))
        stops = kind == _STOP
        late = None
        if self._legality.min_new_tokens:
            late = rows.steps >= self._legality.min_new_tokens
            stops &= late
        out_of_budget = acting & (rows.steps >= self._last_step)
        terminated = acting & stops
        checks = [acting & (kind == _OUTSIDE), terminated | out_of_budget]
        if self._strings:
            maybe = acting & (kind == _MAYBE)
            checks.append(maybe if late is None else maybe & late)
        # The only place in a step where the host waits for the device.
        flags = torch.stack(checks).cpu().numpy()
        if flags[0].any():
            self._refuse(chosen, checks[0])
        done = flags[1]
        if len(flags) > 2 and flags[2].any():
            completed = self._completed(chosen, checks[2], rows)
            if len(completed):
                terminated[completed] = done[completed] = True
        return Termination(terminated, out_of_budget & ~terminated, done.nonzero()[0])

    def check_turns(self, chosen: Tensor, rows: Rows, limits: TurnLimits) -> TurnCheck:
        """Which turns and budgets end if the tokens ``chosen`` (N,) int64 are appended.

        Raises:
            ValueError: if the token of an active row is outside the vocabulary.
        """
        acting, t = rows.active, rows.turn_steps
        kind = self._kinds.take(chosen.clamp(-1, self._legality.vocab_size))
        late = acting & (t >= self._legality.min_new_tokens)
        outside, closed, maybe = acting & (kind == _OUTSIDE), late & (kind == _STOP), late & (kind == _MAYBE)
        over = closed | (acting & (t >= limits.max_turn_tokens - 1))
        spent = acting & ((rows.steps >= self._last_step) | (rows.lengths >= limits.max_length - 1))
        # The only place in a step where the host waits for the device, unless a turn ends.
        flags = torch.stack([outside, closed, over, spent, maybe, acting]).cpu().numpy()
        if flags[0].any():
            self._refuse(chosen, outside)
        if flags[4].any():
            flags[2][self._completed(chosen, maybe, rows)] = True
        return TurnCheck(flags[1], flags[2], flags[3], flags[5])

    def _completed(self, chosen: Tensor, candidates: Tensor, rows: Rows) -> list[int]:
        """Rows among ``candidates`` (N,) bool whose response completes a stop string by this token."""
        found = []
        for row in candidates.nonzero().squeeze(-1).tolist():
            start, length = int(rows.turn_starts[row]), int(rows.lengths[row])
            ids = [*rows.tokens[row, :length].tolist(), int(chosen[row])]
            if self._strings.completed(ids, start):
                found.append(row)
        return found

    def _refuse(self, chosen: Tensor, outside: Tensor) -> None:
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"actions[{row}] must be a token id in [0, {self._legality.vocab_size}), got {int(chosen[row])}"
        )
