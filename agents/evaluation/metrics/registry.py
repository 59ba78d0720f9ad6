"""Metrics of generated texts by name, and what they look at.

A metric is a function of ``Generated`` texts that returns numbers, or one value per episode. Shape letter: B
episodes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Literal

from textenv.episodes.batch import EpisodeBatch
from textenv.utils.names import nearest, registrar

Found = dict[str, float | list[float]]
"""Name -> a number about all texts, or one for each of the B episodes."""
Metric = Callable[..., Found]
"""``fn(generated, **options)``."""
Units = Literal["tokens", "words"]

METRICS: dict[str, Metric] = {}
"""Name -> function."""


@dataclass(frozen=True)
class Generated:
    """B responses and what they can be measured against."""

    episodes: EpisodeBatch
    """B episodes."""
    prompts: list[str]
    """B texts."""
    completions: list[str]
    """B texts."""
    tokenizer: Any
    """The policy's."""
    policy: Any = None
    """Who wrote them."""
    reference: Any = None
    """The language model that perplexities are measured with, unless another is named."""
    max_tokens: int = 16384
    """Padded tokens of one forward pass."""

    @cached_property
    def tokens(self) -> list[list[int]]:
        """The action tokens of each response."""
        rows = zip(self.episodes.input_ids.cpu(), self.episodes.action_mask.cpu(), strict=True)
        return [ids[mask].tolist() for ids, mask in rows]

    def units(self, by: Units) -> list[list[Any]]:
        """What n-grams are made of: tokens, or words and marks of punctuation in lower case.

        Raises:
            ValueError: if it is neither.
        """
        if by == "tokens":
            return list(self.tokens)
        if by == "words":
            return [re.findall(r"\w+|[^\w\s]", text.lower()) for text in self.completions]
        raise ValueError(f"by must be 'tokens' or 'words', got {by!r}")

    def references(self, column: str) -> list[list[str]]:
        """Reference texts of each episode.

        Raises:
            ValueError: if the task has no such column, or it holds no texts.
        """
        if column not in self.episodes.extras:
            raise ValueError(
                f"column {column!r} of reference texts is not among the prompts' columns; "
                f"{nearest(column, self.episodes.extras)}"
            )
        found = []
        for row, given in enumerate(self.episodes.extras[column]):
            texts = [given] if isinstance(given, str) else given
            if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) for t in texts):
                raise ValueError(f"{column}[{row}] must be a text or a list of texts, got {given!r}")
            found.append(list(texts))
        return found


def register_metric(name: str) -> Callable[[Metric], Metric]:
    """Make a metric known by name.

    Raises:
        ValueError: if the name is malformed or taken.
    """

    def register(metric: Metric) -> Metric:
        if not str(getattr(metric, "__module__", "")).startswith("textenv.agents.evaluation.metrics."):
            # The built-in names are taken, whoever registers first.
            import_module("textenv.agents.evaluation.metrics.suite")
        return registrar("metric", name, METRICS)(metric)

    return register
