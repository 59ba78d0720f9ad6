"""Human feedback: training and held-out data of a reward model and of a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textenv.tasks.preferences import PROMPT_WORDS, PreferencePairs, pair_split_of, preference_pairs
from textenv.tasks.snippets import SOURCES, load_snippets

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Rows = Sequence[Mapping[str, Any]]
"""Records in the ecosystem's columns: prompt, chosen, rejected, label; or text, reward."""
LEARNT = ("language-model", "reward-model")
"""Splits of the texts whose ratings the reward model learns; its pairs have validation texts, too, but none
of the judge's."""


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """Records by who uses them; ``{"pairs": rows, "ratings": rows}`` each, either may be missing."""

    train: Mapping[str, Rows]
    """Training data of the reward model."""
    held_out: Mapping[str, Rows]
    """Held-out data of the reward model."""
    judge: Mapping[str, Rows]
    """Training data of the judge; the reward model sees none of it."""
    judge_held_out: Mapping[str, Rows]
    """Texts on which the judge is not trained."""
    make_scorer: Callable[[], tuple[PretrainedConfig, PreTrainedTokenizerBase]] | None = None
    """Config and tokenizer of a small scorer for the task; None takes the policy's."""


def reviews_feedback(*, prompt_words: int = PROMPT_WORDS) -> Feedback:
    """Ratings of film and product reviews, tweets and news, and pairs of reviews with a common beginning.

    The reward model learns from pairs of training prompts and from ratings of the texts of all four sources,
    without film reviews that begin like a held-out prompt; the judge from its own 20 % of the ratings.

    Args:
        prompt_words: number of words of a prompt.

    Raises:
        FileNotFoundError: if the texts were never fetched (``make data``).
    """
    films = load_snippets("movie")
    sources = [load_snippets(name) for name in SOURCES]

    def ratings(*splits: str, names: Sequence[str] = tuple(SOURCES)) -> list[dict[str, Any]]:
        chosen = [(snippets.name, snippets.select(*splits)) for snippets in sources if snippets.name in names]
        return [
            {"text": text, "reward": mean, "source": name}
            for name, snippets in chosen
            for text, mean in zip(snippets.texts, snippets.means, strict=True)
        ]

    def pairs(split: str) -> list[dict[str, Any]]:
        return rows_of(preference_pairs(films, split=split, prompt_words=prompt_words))

    def seen(row: Mapping[str, Any]) -> bool:
        return row["source"] != "movie" or pair_split_of(row["text"], prompt_words) == "train"

    def scorer() -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
        from textenv.tasks.wordpiece import small_bert, wordpiece_tokenizer

        tokenizer = wordpiece_tokenizer([row["text"] for row in ratings(*LEARNT)])
        return small_bert(tokenizer), tokenizer

    return Feedback(
        train={"pairs": pairs("train"), "ratings": [row for row in ratings(*LEARNT) if seen(row)]},
        held_out={"pairs": pairs("test"), "ratings": ratings("judge", names=("movie",))},
        judge={"ratings": ratings("judge")},
        judge_held_out={"ratings": ratings("validation", names=("movie",))},
        make_scorer=scorer,
    )


def rows_of(pairs: PreferencePairs) -> list[dict[str, Any]]:
    """Pairs as records.

    >>> rows_of(PreferencePairs(prompts=["A"], chosen=[" fine film"], rejected=[" bore"], labels=[0.9]))
    [{'prompt': 'A', 'chosen': ' fine film', 'rejected': ' bore', 'label': 0.9}]
    """
    columns = pairs.columns()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
