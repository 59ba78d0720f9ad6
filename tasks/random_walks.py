"""The task "random-walks": shortest paths on a directed graph, written as letters; its optimum is known.

After trlX's example of the same name (github.com/CarperAI/trlx, examples/randomwalks), specified exactly: the
walks of the default seed are checked by hash.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.registry import register_reward
from textenv.rewards.term import RewardTerm
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.models import small_gpt2
from textenv.tasks.players import Player
from textenv.tasks.registry import register_task
from textenv.tasks.task import TaskData
from textenv.tasks.walk_settings import SETTINGS
from textenv.utils.checks import check_choice, check_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LETTERS = "abcdefghijklmnopqrstu"
"""Node i is the i-th letter; node 0, "a", is the goal."""
GOAL = 0
MAX_NODES = 10
"""Maximum number of nodes of a walk; a walk of ten nodes has optimality 0."""
WALKS = 1000
MAX_NEW_TOKENS = MAX_NODES
"""Nine more letters and EOS, so that a walk of ten nodes can end with EOS (trlX stops after nine tokens)."""
DEFAULT_SEED = 1000

_EDGE_THRESHOLD = 0.9
_KNOWN_SHA256 = {DEFAULT_SEED: "69d12e9cd7e4c474aa6f5d94862438390508d55e299c207c9d0d2cb453d00fd3"}
SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class WalkGraph:
    """The graph of one seed, its 1,000 sampled walks, and the lengths of its shortest walks.

    Use ``WalkGraph.from_seed``; graphs are cached.

    Example:
        >>> graph = WalkGraph.from_seed(1000)
        >>> graph.walks[:3], graph.shortest["m"], round(graph.optimality("sda"), 3)
        (('sda', 'fda', 'ebjnbdtkna'), 4, 1.0)
    """

    seed: int
    successors: tuple[tuple[int, ...], ...]
    """Node -> nodes it has an edge to, ascending; the goal's only edge leads to itself."""
    walks: tuple[str, ...]
    """Random walks, each from a random node other than the goal."""
    shortest: dict[str, int]
    """Letter -> L*, number of nodes of a shortest walk to the goal, both ends included, at most 10."""

    @staticmethod
    def from_seed(seed: int = DEFAULT_SEED) -> WalkGraph:
        """Generate the graph and walks of a seed.

        Raises:
            ValueError: if some start can't reach the goal within nine nodes, where optimality would be 0/0
                (as for 36 of the first 200 seeds).
        """
        return _from_seed(check_seed("seed", seed, largest=2**32 - 1))  # what RandomState takes

    @cached_property
    def starts(self) -> tuple[str, ...]:
        """The prompts: distinct first letters of the walks, sorted."""
        return tuple(sorted({walk[0] for walk in self.walks}))

    @cached_property
    def sha256(self) -> str:
        """Hash of the walks joined by newlines."""
        return hashlib.sha256("\n".join(self.walks).encode()).hexdigest()

    def length(self, text: str) -> int | None:
        """Nodes from the first letter to the first "a", or None if the text is no valid walk to the goal.

        An unknown letter or a missing edge before the goal makes it invalid; the rest is ignored.
        """
        node: int | None = None
        for position, letter in enumerate(text, start=1):
            following = LETTERS.find(letter)
            if following < 0 or (node is not None and following not in self.successors[node]):
                return None
            if following == GOAL:
                return position
            node = following
        return None

    def optimality(self, text: str) -> float:
        """(10 - L) / (10 - L*) of a walk: 0 (invalid, or ten nodes and more) to 1 (shortest)."""
        length = self.length(text)
        if length is None or length == 1:
            return 0.0
        return max(0, MAX_NODES - length) / (MAX_NODES - self.shortest[text[0]])

    def walks_to_goal(self, max_nodes: int = MAX_NODES) -> tuple[str, ...]:
        """Every valid walk to its first "a" of at most ``max_nodes`` nodes, by start and length."""
        nodes_left = {LETTERS.index(letter): length - 1 for letter, length in self.shortest.items()} | {
            GOAL: 0
        }
        found: list[str] = []
        stack = [(start, LETTERS.index(start)) for start in self.starts]
        while stack:
            walk, node = stack.pop()
            if node == GOAL:
                found.append(walk)
                continue
            stack += [
                (walk + LETTERS[following], following)
                for following in self.successors[node]
                if len(walk) + 1 + nodes_left[following] <= max_nodes
            ]
        return tuple(sorted(found, key=lambda walk: (walk[0], len(walk), walk)))


@lru_cache(maxsize=256)
def _from_seed(seed: int) -> WalkGraph:
    random = np.random.RandomState(seed)
    nodes = len(LETTERS)
    while True:
        edges = random.rand(nodes, nodes) > _EDGE_THRESHOLD
        np.fill_diagonal(edges, False)
        if edges.any(axis=1).all():
            break
    edges[GOAL] = False
    edges[GOAL, GOAL] = True

    shortest = _shortest(edges)
    unreachable = [start for start, length in shortest.items() if length == MAX_NODES]
    if unreachable:
        raise ValueError(
            f"seed {seed} gives a graph without a walk of fewer than {MAX_NODES} nodes to the goal "
            f"from {', '.join(unreachable)}, so optimality is undefined there; "
            f"choose another seed, for example {DEFAULT_SEED}"
        )

    successors = tuple(tuple(np.flatnonzero(row).tolist()) for row in edges)
    walks = []
    for _ in range(WALKS):
        node = random.randint(nodes)
        while node == GOAL:
            node = random.randint(nodes)
        walk = [node]
        while node != GOAL and len(walk) < MAX_NODES:
            # What RandomState.choice(successors) draws, without its overhead.
            node = successors[node][random.randint(len(successors[node]))]
            walk.append(node)
        walks.append("".join(LETTERS[node] for node in walk))

    graph = WalkGraph(seed=seed, successors=successors, walks=tuple(walks), shortest=shortest)
    if graph.sha256 != _KNOWN_SHA256.get(seed, graph.sha256):
        raise RuntimeError(
            f"the walks of seed {seed} have sha256 {graph.sha256}, expected {_KNOWN_SHA256[seed]}: "
            f"numpy {np.__version__} generates other numbers with RandomState"
        )
    return graph


def _shortest(edges: np.ndarray) -> dict[str, int]:
    """Letter -> nodes on a shortest walk to the goal, by breadth-first search against the edges."""
    length = {GOAL: 1}
    queue = deque([GOAL])
    while queue:
        node = queue.popleft()
        for before in np.flatnonzero(edges[:, node]).tolist():
            if before not in length:
                length[before] = length[node] + 1
                queue.append(before)
    return {
        LETTERS[node]: min(length.get(node, MAX_NODES), MAX_NODES)
        for node in range(len(LETTERS))
        if node != GOAL
    }


@register_reward("random-walks-optimality")
class WalkOptimality(RewardTerm):
    """Optimality of the walk that prompt and response spell, given at the last token.

    The response counts up to its EOS; any other special token in it makes the walk invalid.
    """

    def __init__(self, seed: int = DEFAULT_SEED) -> None:
        self.seed = check_seed("random-walks-optimality: seed", seed)
        self.graph = WalkGraph.from_seed(self.seed)

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,) optimality in [0, 1]."""
        eos = self.tokenizer.eos_token or "\0"
        scores = [
            self.graph.optimality(prompt + completion.split(eos, 1)[0])
            for prompt, completion in episodes.texts(self.tokenizer, skip_special_tokens=False)
        ]
        return torch.tensor(scores, dtype=torch.float32, device=episodes.device)


def walk_episodes(
    graph: WalkGraph, tokenizer: PreTrainedTokenizerBase, walks: Sequence[str] | None = None
) -> EpisodeBatch:
    """Walks as episodes: the first letter is the prompt, the other letters and EOS the response.

    Args:
        graph: scores the walks; the reward is their optimality.
        tokenizer: ``letter_tokenizer(LETTERS)`` or another one that can spell them.
        walks: by default the 1,000 walks of the graph.
    """
    walks = graph.walks if walks is None else walks
    return EpisodeBatch.from_texts(
        [walk[0] for walk in walks],
        [walk[1:] for walk in walks],
        tokenizer,
        rewards=[graph.optimality(walk) for walk in walks],
        prompt_index=torch.tensor([graph.starts.index(walk[0]) for walk in walks], dtype=torch.int64),
    )


@register_task("random-walks", settings=SETTINGS)
def build_random_walks(split: str = "train", seed: int = DEFAULT_SEED) -> TaskData:
    """Shortest paths on a graph of 21 nodes written as letters; known optimum 1, trains on a CPU.

    Training and evaluation share the 20 prompts, one letter each. BOS and PAD are actions like any other
    and make a walk invalid. The model of the task has about 1.65M parameters.

    Args:
        split: "train" or "validation", which are the same.
        seed: seed of the graph.

    Raises:
        ValueError: if the split is unknown or the goal is too far from a start in the seed's graph.
    """
    check_choice("split", split, SPLITS)
    graph = WalkGraph.from_seed(seed)
    tokenizer = letter_tokenizer(LETTERS)
    return TaskData(
        prompts=list(graph.starts),
        tokenizer=tokenizer,
        rewards=[["random-walks-optimality", {"seed": seed}]],
        max_new_tokens=MAX_NEW_TOKENS,
        optimum=1.0,
        model_config=partial(small_gpt2, tokenizer, layers=6, width=144, heads=12, positions=1024),
        texts=list(graph.walks),
        make_demonstrations=partial(walk_episodes, graph, tokenizer),
        make_player=partial(shortest_walks, graph),
    )


def shortest_walks(graph: WalkGraph) -> Player:
    """The optimal player: a shortest walk from the prompt's letter to the goal."""
    nodes = {LETTERS[GOAL]: 1, **graph.shortest}

    def walk(words: Sequence[str], rng: np.random.Generator) -> str:
        node, said = words[-1], ""
        while node != LETTERS[GOAL]:
            following = [LETTERS[i] for i in graph.successors[LETTERS.index(node)]]
            node = min(following, key=nodes.__getitem__)
            said += node
        return said

    return walk
