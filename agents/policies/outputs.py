"""The output of a teacher-forced pass, the cache of the last one, and the interface of references."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.log_probs import TokenLogProbs

if TYPE_CHECKING:
    from textenv.agents.distributed.batch_sharding import LocalRows

ReferenceMode = Literal["copy", "adapters-off", "shared-trunk"]


class PolicyOutput(NamedTuple):
    """A policy's pass over B episodes; (B, L) tensors are 0 outside the action mask, None = not requested."""

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


class ReferencePolicy(Protocol):
    """The frozen policy that the KL divergence is measured from; ``references.Reference`` is one."""

    @property
    def mode(self) -> ReferenceMode:
        """How the reference shares weights with the policy."""

    def forward_model(self, episodes: EpisodeBatch, *, entropy: bool = False) -> TokenLogProbs:
        """One teacher-forced pass over episodes, without gradient."""

    def evaluate(self, episodes: EpisodeBatch, *, entropy: bool = False) -> PolicyOutput:
        """Log-probs and, if requested, entropies; no gradient."""

    def log_prob(self, episodes: EpisodeBatch) -> Tensor:
        """Log-probs of the actions: (B, L), 0 elsewhere; no gradient."""

    def sharing(self) -> AbstractContextManager[None]:
        """In the block, a pass of the policy leaves its trunk's output to the reference's next pass."""

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that only the reference has."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore them."""


def in_parts(
    episodes: EpisodeBatch, max_tokens: int, run: Callable[[EpisodeBatch], PolicyOutput]
) -> PolicyOutput:
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
    return PolicyOutput(**whole)


def joined_output(local: LocalRows, own: PolicyOutput, whole: EpisodeBatch) -> PolicyOutput:
    """The output for the whole batch, from the outputs of all processes for their rows."""
    known = {name: value for name, value in own._asdict().items() if value is not None}
    return PolicyOutput(**local.assemble(known, whole))


class Memo:
    """The last evaluation, valid for the same episode tensors and the same state of the weights."""

    def __init__(self) -> None:
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._versions: tuple[Hashable, ...] = ()
        self._found: PolicyOutput | None = None
        self._expected: Tensor | None = None
        self._graph: PolicyOutput | None = None
        self._graph_versions: tuple[Hashable, ...] = ()

    def get(self, episodes: EpisodeBatch, state: Hashable) -> PolicyOutput | None:
        """The stored output for ``episodes``, or None; a result that was changed in place is not returned."""
        if self._found is None or not self._about(episodes):
            return None
        return self._found if self._versions == self._version(episodes, state, self._found) else None

    def put(self, episodes: EpisodeBatch, state: Hashable, found: PolicyOutput) -> PolicyOutput:
        """Store an output and return it."""
        self._inputs = (episodes.input_ids, episodes.action_mask)
        self._versions, self._found = self._version(episodes, state, found), found
        return found

    def forget(self) -> None:
        """Drop all stored outputs."""
        self._inputs = self._found = self._expected = self._graph = None

    def expect(self, episodes: EpisodeBatch) -> None:
        """Declare that the next optimizer step is on these episodes."""
        self._expected, self._graph = episodes.input_ids, None

    def expects(self, episodes: EpisodeBatch) -> bool:
        """Whether a pass over these episodes should have a gradient."""
        return self._expected is episodes.input_ids

    def put_graph(self, episodes: EpisodeBatch, state: Hashable, found: PolicyOutput) -> PolicyOutput:
        """Store a pass with gradient; returns its detached tensors."""
        self._expected, self._graph = None, found
        self._graph_versions = self._version(episodes, state, found)
        return found._replace(
            **{name: value.detach() for name, value in found._asdict().items() if isinstance(value, Tensor)}
        )

    def take_graph(self, episodes: EpisodeBatch, state: Hashable, wanted: set[str]) -> PolicyOutput | None:
        """The stored pass with gradient over these episodes if it has the wanted fields; at most once."""
        graph, self._graph = self._graph, None
        if graph is None or not graph.has(wanted) or not self._about(episodes):
            return None
        return graph if self._graph_versions == self._version(episodes, state, graph) else None

    def _about(self, episodes: EpisodeBatch) -> bool:
        """Whether the stored output belongs to these tensors."""
        if self._inputs is None:
            return False
        ids, mask = self._inputs
        return ids is episodes.input_ids and mask is episodes.action_mask

    @staticmethod
    def _version(episodes: EpisodeBatch, state: Hashable, found: PolicyOutput) -> tuple[Hashable, ...]:
        tensors = [episodes.input_ids, episodes.action_mask, episodes.attention_mask]
        tensors += [value for value in found if isinstance(value, Tensor)]
        rule = repr(sorted(episodes.sampling.items(), key=lambda item: item[0]))
        return state, rule, tuple(tensor._version for tensor in tensors)
