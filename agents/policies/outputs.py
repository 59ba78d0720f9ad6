"""What a policy remembers of its last teacher-forced pass: the results, and the graph where a step is due."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from torch import Tensor

from textenv.episodes.batch import EpisodeBatch

if TYPE_CHECKING:
    from textenv.agents.policies.teacher_forced import Evaluation


class Memo:
    """The last evaluation, valid for the very same tensors of episodes and the same state of the weights."""

    def __init__(self) -> None:
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._versions: tuple[Hashable, ...] = ()
        self._found: Evaluation | None = None
        self._expected: Tensor | None = None
        self._graph: Evaluation | None = None
        self._graph_versions: tuple[Hashable, ...] = ()

    def get(self, episodes: EpisodeBatch, state: Hashable) -> Evaluation | None:
        """What is known about ``episodes``, or None; a result that was changed in place is forgotten."""
        if self._found is None or not self._about(episodes):
            return None
        return self._found if self._versions == self._version(episodes, state, self._found) else None

    def put(self, episodes: EpisodeBatch, state: Hashable, found: Evaluation) -> Evaluation:
        """Remember and give back."""
        self._inputs = (episodes.input_ids, episodes.action_mask)
        self._versions, self._found = self._version(episodes, state, found), found
        return found

    def forget(self) -> None:
        """Know nothing."""
        self._inputs = self._found = self._expected = self._graph = None

    # -- a pass with gradient, for the optimizer step that follows -------------------------------------------

    def expect(self, episodes: EpisodeBatch) -> None:
        """The next optimizer step is on these episodes."""
        self._expected, self._graph = episodes.input_ids, None

    def expects(self, episodes: EpisodeBatch) -> bool:
        """Whether a pass over these episodes should have a gradient."""
        return self._expected is episodes.input_ids

    def put_graph(self, episodes: EpisodeBatch, state: Hashable, found: Evaluation) -> Evaluation:
        """Keep a pass with gradient, and give back its numbers."""
        self._expected, self._graph = None, found
        self._graph_versions = self._version(episodes, state, found)
        return found._replace(
            **{name: value.detach() for name, value in found._asdict().items() if isinstance(value, Tensor)}
        )

    def take_graph(self, episodes: EpisodeBatch, state: Hashable, wanted: set[str]) -> Evaluation | None:
        """The pass with gradient over these episodes, if there is one with what is wanted; only once."""
        graph, self._graph = self._graph, None
        if graph is None or not graph.has(wanted) or not self._about(episodes):
            return None
        return graph if self._graph_versions == self._version(episodes, state, graph) else None

    def _about(self, episodes: EpisodeBatch) -> bool:
        """Whether what is known is about these very tensors."""
        if self._inputs is None:
            return False
        ids, mask = self._inputs
        return ids is episodes.input_ids and mask is episodes.action_mask

    @staticmethod
    def _version(episodes: EpisodeBatch, state: Hashable, found: Evaluation) -> tuple[Hashable, ...]:
        tensors = [episodes.input_ids, episodes.action_mask, episodes.attention_mask]
        tensors += [value for value in found if isinstance(value, Tensor)]
        rule = repr(sorted(episodes.sampling.items(), key=lambda item: item[0]))
        return state, rule, tuple(tensor._version for tensor in tensors)
