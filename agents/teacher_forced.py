"""What a teacher-forced pass says about episodes, computed in parts, remembered while nothing changes.

Scoring, advantages and metrics of one iteration ask the same of the same episodes; the memo answers the
second time. Shape letters: B episodes, L tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from textenv.episodes import EpisodeBatch


class Evaluation(NamedTuple):
    """About B episodes; (B, L) are 0 off the action mask, None = not asked for."""

    log_probs: Tensor
    """(B, L) log-prob of each action."""
    values: Tensor | None = None
    """(B, L) V of the state before each action."""
    entropy: Tensor | None = None
    """(B, L) entropy in nats of the distribution that each action was drawn from."""
    final_values: Tensor | None = None
    """(B,) V after the last token."""
    ref_log_probs: Tensor | None = None
    """(B, L) log-prob of each action under the reference."""
    hidden: Tensor | None = None
    """(B, L, d) input of the LM head; column p is the state after token p."""

    def has(self, wanted: set[str]) -> bool:
        """Whether all these fields are there."""
        return all(getattr(self, name) is not None for name in wanted)


def in_parts(
    episodes: EpisodeBatch, max_tokens: int, run: Callable[[EpisodeBatch], Evaluation]
) -> Evaluation:
    """Run on length-sorted parts of at most ``max_tokens`` padded tokens and put the rows back in order.

    A batch that fits runs as it is, so that a training step on it is the same computation.
    """
    rows, length = episodes.input_ids.shape
    if rows * length <= max_tokens:
        return run(episodes)
    whole: dict[str, Tensor] = {}
    for index, part in episodes.token_budget_batches(max_tokens):
        for name, found in run(part)._asdict().items():
            if found is None:
                continue
            if name not in whole:
                whole[name] = found.new_zeros(rows, length) if found.dim() == 2 else found.new_zeros(rows)
            place = index.to(found.device)
            if found.dim() == 2:
                whole[name][place, : found.shape[1]] = found
            else:
                whole[name][place] = found
    return Evaluation(**whole)


class Memo:
    """The last evaluation, valid for the very same tensors of episodes and the same state of the weights."""

    def __init__(self) -> None:
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._versions: tuple[Hashable, ...] = ()
        self._found: Evaluation | None = None

    def get(self, episodes: EpisodeBatch, state: Hashable) -> Evaluation | None:
        """What is known about ``episodes``, or None; a result that was changed in place is forgotten."""
        if self._found is None or self._inputs is None:
            return None
        ids, mask = self._inputs
        if ids is not episodes.input_ids or mask is not episodes.action_mask:
            return None
        return self._found if self._versions == self._version(episodes, state, self._found) else None

    def put(self, episodes: EpisodeBatch, state: Hashable, found: Evaluation) -> Evaluation:
        """Remember and give back."""
        self._inputs = (episodes.input_ids, episodes.action_mask)
        self._versions, self._found = self._version(episodes, state, found), found
        return found

    def forget(self) -> None:
        """Know nothing."""
        self._inputs = self._found = None

    @staticmethod
    def _version(episodes: EpisodeBatch, state: Hashable, found: Evaluation) -> tuple[Hashable, ...]:
        tensors = [episodes.input_ids, episodes.action_mask, episodes.attention_mask]
        tensors += [value for value in found if isinstance(value, Tensor)]
        rule = repr(sorted(episodes.sampling.items(), key=lambda item: item[0]))
        return state, rule, tuple(tensor._version for tensor in tensors)


def filters(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """What keeps actions from being drawn from the distribution that log-probs are of; {} = nothing."""
    neutral = {"top_k": 0, "top_p": 1.0, "greedy": False}
    return {name: sampling[name] for name, off in neutral.items() if sampling.get(name, off) != off}
