"""Preference pairs derived from independent human ratings of texts that begin alike.

The preference is positive sentiment, not quality: of two continuations of the same first words, people rated
one more positive on average. How strongly is a soft label from the single ratings.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textenv.tasks.snippets import RatedSnippets, split_of
from textenv.utils.checks import check_at_least, check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from textenv.episodes.preferences import PreferenceBatch

PROMPT_WORDS = 2
MIN_WORDS = 6
"""Shorter texts leave too little to compare after the shared words."""
PAIRS_PER_TEXT = 8
PAIR_SPLITS = ("train", "validation", "test")
_LIMITS = {"train": 80, "validation": 90, "test": 100}


@dataclass(frozen=True, kw_only=True)
class PreferencePairs:
    """n pairs of continuations of one prompt each, in the ecosystem's columns.

    Raises:
        ValueError: if the columns differ in length or a label is outside [0, 1].
    """

    prompts: list[str]
    chosen: list[str]
    """Continuation that people rated higher on average; with the space that separates it from the prompt."""
    rejected: list[str]
    labels: list[float]
    """P(a person's rating of chosen > another's of rejected) + P(tie) / 2."""

    def __post_init__(self) -> None:
        sizes = {name: len(column) for name, column in self.columns().items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"columns of preference pairs must have equal lengths, got {sizes}")
        bad = [label for label in self.labels if not 0 <= label <= 1]
        if bad:
            raise ValueError(f"labels must lie in [0, 1], got {bad[0]}")

    def __len__(self) -> int:
        return len(self.prompts)

    def columns(self) -> dict[str, list[Any]]:
        """The columns prompt, chosen, rejected and label, as for ``datasets.Dataset.from_dict``."""
        return {
            "prompt": self.prompts,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "label": self.labels,
        }

    def select(self, index: Sequence[int]) -> PreferencePairs:
        """Pairs by index, in the given order."""
        return PreferencePairs(
            prompts=[self.prompts[i] for i in index],
            chosen=[self.chosen[i] for i in index],
            rejected=[self.rejected[i] for i in index],
            labels=[self.labels[i] for i in index],
        )

    def to_batch(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None
    ) -> PreferenceBatch:
        """Tokenise, with EOS after every completion; the labels become soft labels."""
        import torch

        from textenv.episodes.preferences import PreferenceBatch

        return PreferenceBatch.from_texts(
            self.prompts,
            self.chosen,
            self.rejected,
            tokenizer,
            label=torch.tensor(self.labels, dtype=torch.float32),
            max_length=max_length,
        )


def preference_pairs(
    snippets: RatedSnippets,
    *,
    split: str = "train",
    prompt_words: int = PROMPT_WORDS,
    min_words: int = MIN_WORDS,
    per_text: int | None = PAIRS_PER_TEXT,
    with_judge: bool = False,
) -> PreferencePairs:
    """Pair texts that share their first words (in any case) and have different mean ratings.

    Prompts are split before pairing, by the md5 of the shared words (train 80 %, validation 10 %, test 10
    %), so no prompt is in two splits. Texts of the judge's split are left out: a judge sees what no reward
    model saw.

    Args:
        snippets: rated texts of all splits.
        split: "train", "validation" or "test".
        prompt_words: how many words make the prompt.
        min_words: shorter texts are left out.
        per_text: at most so many pairs with the same text, chosen by hash; None takes all.
        with_judge: also pair texts of the judge's split.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_choice("split", split, PAIR_SPLITS)
    if per_text is not None:
        check_at_least("per_text", per_text, 1)
    groups = prompt_groups(snippets, prompt_words=prompt_words, min_words=min_words)
    prompts: list[str] = []
    chosen: list[str] = []
    rejected: list[str] = []
    labels: list[float] = []
    for key, rows in groups.items():
        if _place(key, _LIMITS) != split:
            continue
        rows = [i for i in rows if with_judge or split_of(snippets.texts[i]) != "judge"]
        parts = {i: split_prompt(snippets.texts[i], prompt_words) for i in rows}
        # The group shares its words but perhaps not their case; the commonest spelling is the prompt of all.
        spelling = Counter(prompt for prompt, _ in parts.values())
        prompt = min(spelling, key=lambda p: (-spelling[p], p), default="")
        for better, worse in _capped(_unequal(rows, snippets), snippets, per_text):
            if snippets.texts[better] == snippets.texts[worse]:
                continue  # the same text rated twice is no preference
            prompts.append(prompt)
            chosen.append(parts[better][1])
            rejected.append(parts[worse][1])
            labels.append(win_probability(snippets.ratings[better], snippets.ratings[worse]))
    return PreferencePairs(prompts=prompts, chosen=chosen, rejected=rejected, labels=labels)


def prompt_groups(
    snippets: RatedSnippets, *, prompt_words: int = PROMPT_WORDS, min_words: int = MIN_WORDS
) -> dict[str, list[int]]:
    """Shared first words in lower case -> rows of the texts that begin so; groups of two texts and more."""
    check_at_least("prompt_words", prompt_words, 1)
    check_at_least("min_words", min_words, prompt_words + 1)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(snippets.texts):
        words = text.split()
        if len(words) >= min_words:
            groups[_group_key(text, prompt_words)].append(i)
    return {key: rows for key, rows in groups.items() if len(rows) > 1}


def pair_split_of(text: str, prompt_words: int = PROMPT_WORDS) -> str:
    """The split of the pairs of texts that begin like this one: "train", "validation" or "test"."""
    return _place(_group_key(text, prompt_words), _LIMITS)


def count_unequal_pairs(snippets: RatedSnippets, groups: dict[str, list[int]]) -> int:
    """How many pairs within groups have different mean ratings, before any split or cap."""
    return sum(1 for rows in groups.values() for _ in _unequal(rows, snippets))


def win_probability(better: Sequence[int], worse: Sequence[int]) -> float:
    """P(a rating of one > a rating of the other) + P(tie) / 2 for ratings drawn independently.

    >>> win_probability([1, 2], [1, 1])
    0.75
    """
    theirs = Counter(worse)
    wins = sum((a > b) * count + 0.5 * (a == b) * count for a in better for b, count in theirs.items())
    return wins / (len(better) * len(worse))


def split_prompt(text: str, words: int) -> tuple[str, str]:
    """The first words, and the rest with the space before it.

    >>> split_prompt("A fine film.", 2)
    ('A fine', ' film.')

    Raises:
        ValueError: if the text has fewer words.
    """
    match = re.match(rf"\s*\S+(?:\s+\S+){{{words - 1}}}", text)
    if match is None:
        raise ValueError(f"expected a text of at least {words} words, got {text!r}")
    return match.group().lstrip(), text[match.end() :]


def _unequal(rows: Sequence[int], snippets: RatedSnippets) -> Iterator[tuple[int, int]]:
    """Pairs (better, worse) of rows with different means, compared as exact fractions."""
    for a, b in itertools.combinations(rows, 2):
        ratings_a, ratings_b = snippets.ratings[a], snippets.ratings[b]
        difference = sum(ratings_a) * len(ratings_b) - sum(ratings_b) * len(ratings_a)
        if difference:
            yield (a, b) if difference > 0 else (b, a)


def _capped(
    pairs: Iterator[tuple[int, int]], snippets: RatedSnippets, per_text: int | None
) -> Iterator[tuple[int, int]]:
    """At most ``per_text`` pairs with each text, the same ones on every run."""
    if per_text is None:
        yield from pairs
        return
    used: Counter[int] = Counter()
    for pair in sorted(pairs, key=lambda pair: _hash("\n".join(snippets.texts[i] for i in pair))):
        if all(used[i] < per_text for i in pair):
            used.update(pair)
            yield pair


def _group_key(text: str, prompt_words: int) -> str:
    return " ".join(text.split()[:prompt_words]).lower()


def _hash(text: str) -> int:
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16)


def _place(text: str, limits: dict[str, int]) -> str:
    return next(name for name, limit in limits.items() if _hash(text) % 100 < limit)
