"""Turns written by a generation engine: a policy that asks the engine whenever a row needs a new turn.

Shape letters: N environment rows, n rows that need tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textenv.agents.rollouts.vllm_engine import EngineSampling, GenerationEngine


def engine_seeds(noise: np.ndarray) -> tuple[int, ...]:
    """Seeds of an engine from n noise keys, (n,) uint64: engines take unsigned numbers of at most 32 bits."""
    return tuple((noise >> np.uint64(33)).tolist())


@dataclass
class _Written:
    """What the engine wrote for a row, from column ``start`` on."""

    start: int
    tokens: list[int]
    log_probs: list[float]


class EngineTurns:
    """Returns an engine's tokens one by one; the engine writes a turn from everything before it.

    The rows that need a turn in the same step are written in one call.

    Args:
        engine: with the policy's weights.
        sampling: of a turn; its seeds are replaced.
        max_length: longest episode in tokens.
        settings: for ``EpisodeBatch.sampling``.
    """

    def __init__(
        self,
        engine: GenerationEngine,
        sampling: EngineSampling,
        max_length: int,
        settings: Mapping[str, Any],
    ) -> None:
        self._engine = engine
        self._turn = sampling
        self._max_length = max_length
        self._settings = dict(settings)
        self._rows: dict[int, _Written] = {}
        self.written = 0
        """Tokens that the engine wrote."""

    def sampling(self) -> dict[str, Any]:
        """Sampling settings of the turns."""
        return dict(self._settings)

    def act(self, obs: Mapping[str, Any], key: Any, *, active: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The next tokens (N,) int64 and their log-probs (N,), 0 in rows that do not act."""
        ids = torch.as_tensor(obs["input_ids"]).cpu()
        lengths = torch.as_tensor(obs["attention_mask"]).sum(-1).tolist()
        starts = torch.as_tensor(obs["prompt_length"]).tolist()
        keys = torch.as_tensor(key).tolist()
        acting = torch.as_tensor(active).nonzero().flatten().tolist()
        fresh = [row for row in acting if not self._has_next(row, lengths[row], ids)]
        if fresh:
            self._write(fresh, ids, lengths, starts, keys)
        tokens, log_probs = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.float32)
        for row in acting:
            written, at = self._rows[row], lengths[row] - self._rows[row].start
            tokens[row], log_probs[row] = written.tokens[at], written.log_probs[at]
        device = torch.as_tensor(obs["input_ids"]).device
        return torch.from_numpy(tokens).to(device), {"log_prob": torch.from_numpy(log_probs).to(device)}

    def _has_next(self, row: int, length: int, ids: Tensor) -> bool:
        """Whether the row has a token for this column, and its last tokens are those that were written."""
        written = self._rows.get(row)
        # At its first column a row is always new: another episode may have come there.
        if written is None or not written.start < length < written.start + len(written.tokens):
            return False
        said: list[int] = ids[row, written.start : length].tolist()
        return said == written.tokens[: length - written.start]

    def _write(
        self, rows: list[int], ids: Tensor, lengths: list[int], starts: list[int], keys: list[int]
    ) -> None:
        """Let the engine go on in ``rows`` (n,)."""
        # Rows whose turn has tokens already (after a stop string that the environment did not count) have a
        # smaller budget; rows of one budget are written together.
        groups: dict[tuple[int, int], list[int]] = {}
        for row in rows:
            t = lengths[row] - starts[row]
            room = min(self._turn.max_new_tokens - t, self._max_length - lengths[row])
            groups.setdefault((max(room, 1), max(self._turn.min_new_tokens - t, 0)), []).append(row)
        for (room, least), some in groups.items():
            seeds = engine_seeds(np.array([keys[row] for row in some]).view(np.uint64))
            sampling = replace(self._turn, max_new_tokens=room, min_new_tokens=min(least, room), seeds=seeds)
            prompts = [ids[row, : lengths[row]].tolist() for row in some]
            for row, response in zip(some, self._engine.generate(prompts, sampling), strict=True):
                if not response.tokens or len(response.tokens) != len(response.log_probs):
                    raise ValueError(
                        "an engine must write at least one token, and a log-prob for each, got "
                        f"{len(response.tokens)} tokens and {len(response.log_probs)} log-probs"
                    )
                self._rows[row] = _Written(lengths[row], list(response.tokens), list(response.log_probs))
                self.written += len(response.tokens)
