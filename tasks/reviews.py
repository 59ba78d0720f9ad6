"""The task "reviews": continue film reviews positively; real texts with human ratings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from textenv.data.records import load_columns
from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.bpe import bpe_tokenizer
from textenv.tasks.feedback import reviews_feedback
from textenv.tasks.models import small_gpt2
from textenv.tasks.preferences import PROMPT_WORDS, preference_pairs, split_prompt
from textenv.tasks.prompts import load_tokenizer
from textenv.tasks.registry import register_task
from textenv.tasks.snippets import load_snippets, split_of
from textenv.tasks.task import TaskData
from textenv.utils.checks import check_at_least, check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = {
    "train": "language-model",
    "validation": "validation",
    "reward-model": "reward-model",
    "judge": "judge",
}
"""Split of the task -> split of the texts."""
MAX_NEW_TOKENS = 40
VOCAB_SIZE = 2048
FILM_REPEATS = 3
"""How often the film reviews are among the pretraining texts; product reviews and news are there once."""


@register_task("reviews")
def build_reviews(
    split: str = "train",
    data: Any = None,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    prompt_words: int = PROMPT_WORDS,
    max_new_tokens: int = MAX_NEW_TOKENS,
    text_column: str = "text",
    rating_column: str | None = None,
    data_split: str = "train",
) -> TaskData:
    """Continue the first words of a film review positively; 10,605 real snippets with human ratings.

    The reward is a lexicon's sentiment. Columns: "reference" (the rest of the review) and "rating"
    (the mean of at least 15 people, from -4 to 4). Demonstrations are the reviews themselves with their
    rating as reward; preferences are pairs with different ratings; feedback is what a reward model and
    a judge are trained and evaluated on. Texts are split by md5, see
    ``textenv.tasks.snippets``.

    Args:
        split: "train" (55 % of the texts), "validation" (5 %), "reward-model" (20 %) or "judge" (20 %).
        data: other texts: a hub id, a file or any source that ``textenv.data.load_columns`` reads.
            There are no preferences then.
        tokenizer: a name, a folder or an object; by default a byte-pair tokenizer of 2,048 tokens, trained on
            the pretraining texts.
        prompt_words: number of words of a text that are the prompt.
        max_new_tokens: token budget of a response; 40 is enough for 7 of 10 reviews.
        text_column: of ``data``.
        rating_column: of ``data``: numbers, the reward of the demonstrations. None means there are none.
        data_split: of ``data``, where it has splits; md5 splits what it holds further.

    Raises:
        FileNotFoundError: if ``data`` is None and the texts were never fetched (``make data``).
        ValueError: if an argument is out of range or a row of ``data`` is invalid.
    """
    check_choice("split", split, SPLITS)
    check_at_least("prompt_words", prompt_words, 1)
    texts: Sequence[str]
    ratings: Sequence[float] | None
    if data is None:
        films = load_snippets("movie")
        texts, ratings = films.texts, films.means
        others = [*load_snippets("product").texts, *load_snippets("news").texts]
        make_preferences = partial(preference_pairs, films, prompt_words=prompt_words)
    else:
        texts, ratings = _own_texts(data, data_split, text_column, rating_column)
        others = []
        make_preferences = None
    pretraining = [text for text in texts if split_of(text) == "language-model"]
    rows = [
        i
        for i, text in enumerate(texts)
        if split_of(text) == SPLITS[split] and len(text.split()) > prompt_words
    ]
    if not rows:
        raise ValueError(f"split {split!r} of reviews has no text of more than {prompt_words} words")
    parts = [split_prompt(texts[i], prompt_words) for i in rows]
    prompts, references = [list(side) for side in zip(*parts, strict=True)]
    columns: dict[str, list[Any]] = {"reference": references}
    if ratings is not None:
        columns["rating"] = [ratings[i] for i in rows]
    chosen = (
        bpe_tokenizer([*pretraining, *others], vocab_size=VOCAB_SIZE)
        if tokenizer is None
        else load_tokenizer(tokenizer)
    )

    demonstrations = None
    if ratings is not None:
        demonstrations = partial(
            EpisodeBatch.from_texts,
            prompts,
            references,
            chosen,
            rewards=columns["rating"],
            prompt_index=torch.arange(len(prompts)),
        )
    return TaskData(
        prompts=prompts,
        columns=columns,
        tokenizer=chosen,
        rewards=["lexicon-sentiment"],
        max_new_tokens=max_new_tokens,
        model_config=partial(small_gpt2, chosen, layers=3, width=128, heads=4, positions=256),
        texts=[*(pretraining * FILM_REPEATS), *others],
        make_demonstrations=demonstrations,
        make_preferences=make_preferences,
        make_feedback=partial(reviews_feedback, prompt_words=prompt_words) if data is None else None,
    )


def _own_texts(
    data: Any, split: str, text_column: str, rating_column: str | None
) -> tuple[list[str], list[float] | None]:
    """Texts and ratings of a user's own data, checked row by row."""
    rename = {text_column: "text"} | ({} if rating_column is None else {rating_column: "reward"})
    records = load_columns(data, split=split, columns=list(rename.values()), rename=rename)
    rows = list(records)
    texts = [row["text"] for row in rows]
    return texts, None if rating_column is None else [row["reward"] for row in rows]
