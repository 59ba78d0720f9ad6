"""What the reviews' reward model and judge learn from: no text, and no prompt, is on two sides."""

from __future__ import annotations

from typing import Any

import pytest

import textenv.tasks.feedback as feedback_module
from textenv.tasks.feedback import Feedback, reviews_feedback
from textenv.tasks.preferences import pair_split_of
from textenv.tasks.snippets import RatedSnippets, split_of
from textenv.tasks.wordpiece import small_bert, wordpiece_tokenizer

STARTS = (
    "A new",
    "This old",
    "My first",
    "His last",
    "An odd",
    "The long",
    "Her best",
    "Some dark",
    "No great",
)
ENDS = ("fine", "dull", "rare", "bold", "weak", "warm", "cold", "slow", "loud", "thin", "deep", "flat")


def snippets(name: str) -> RatedSnippets:
    texts = tuple(f"{start} {name} film is {end} to see." for start in STARTS for end in ENDS)
    ratings = tuple((i % 9 - 4, (i * 5) % 9 - 4, (i * 7) % 9 - 4) for i in range(len(texts)))
    return RatedSnippets(name=name, texts=texts, ratings=ratings)


@pytest.fixture
def feedback(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Feedback:
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path))
    monkeypatch.setattr(feedback_module, "load_snippets", snippets)
    return reviews_feedback()


def whole(rows: dict[str, Any]) -> set[str]:
    texts = {row["text"] for row in rows.get("ratings", ())}
    for row in rows.get("pairs", ()):
        texts |= {row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]}
    return texts


def test_no_text_is_on_two_sides(feedback: Feedback) -> None:
    sides = [whole(rows) for rows in (feedback.train, feedback.held_out, feedback.judge)]
    assert all(sides)
    assert not sides[0] & sides[1] and not sides[0] & sides[2]
    assert not whole(feedback.judge_held_out) & sides[2]
    assert {split_of(text) for text in sides[2]} == {"judge"}
    assert "judge" not in {split_of(text) for text in sides[0]}


def test_no_prompt_of_held_out_pairs_was_seen(feedback: Feedback) -> None:
    held_out = {row["prompt"].lower() for row in feedback.held_out["pairs"]}
    films = [row["text"] for row in feedback.train["ratings"] if row["source"] == "movie"]
    films += [row["prompt"] for row in feedback.train["pairs"]]
    assert held_out and films
    assert not held_out & {" ".join(text.lower().split()[:2]) for text in films}
    assert {pair_split_of(text) for text in films} == {"train"}
    assert {row["source"] for row in feedback.train["ratings"]} == {"movie", "product", "tweets", "news"}


def test_the_scorers_tokenizer_reads_whole_words(feedback: Feedback) -> None:
    assert feedback.make_scorer is not None
    config, tokenizer = feedback.make_scorer()
    assert config.vocab_size == len(tokenizer) and config.pad_token_id == tokenizer.pad_token_id
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("This old FILM is warm")["input_ids"])
    assert tokens == ["[CLS]", "this", "old", "film", "is", "warm", "[SEP]"]


def test_the_tokenizer_is_trained_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TEXTENV_CACHE", str(tmp_path))
    texts = ["a warm film", "a cold film"] * 3
    first = wordpiece_tokenizer(texts, vocab_size=400)
    monkeypatch.setattr("textenv.tasks.wordpiece._train", None)
    assert wordpiece_tokenizer(texts, vocab_size=400).get_vocab() == first.get_vocab()
    with pytest.raises(ValueError, match="vocab_size must be >= 300, got 10"):
        wordpiece_tokenizer(texts, vocab_size=10)
    with pytest.raises(ValueError, match=r"multiple of heads \(4\), got 10"):
        small_bert(first, width=10)
