"""Rows of token ids in one array, and prompts that are tokenised in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textenv.prompts import packed_ids, prompt_set, token_ids
from textenv.prompts.packed_ids import PackedIds, chunks
from textenv.prompts.prompt_set import PromptSet
from textenv.tasks.letters import letter_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4), max_size=9), st.integers(1, 4))
def test_rows_come_back_however_they_are_added(rows: list[list[int]], size: int) -> None:
    added = PackedIds()
    for chunk in chunks(rows, size):
        added.add(chunk)
    for packed in (PackedIds(rows), added):
        small = max(map(max, filter(None, rows)), default=0) < 2**16
        assert len(packed) == len(rows) and packed.flat.dtype == (np.uint16 if small else np.int32)
        assert [packed.row(i).tolist() for i in range(len(rows))] == rows
        assert packed.lengths.tolist() == [len(row) for row in rows]


def test_ids_are_as_wide_as_the_widest() -> None:
    packed = PackedIds([[65535]])
    assert packed.flat.dtype == np.uint16
    packed.add([[65536], []])
    assert packed.flat.dtype == np.int32
    packed.add([[1]])
    assert packed.flat.tolist() == [65535, 65536, 1] and packed.flat.dtype == np.int32
    packed.add([[2**31]])
    assert packed.flat.tolist() == [65535, 65536, 1, 2**31] and packed.flat.dtype == np.int64


def test_a_padding_id_need_not_be_like_the_ids() -> None:
    ids, _, _ = PromptSet([[1, 2], [3]]).rows(np.array([0, 1]), pad_token_id=100_000)
    assert ids.tolist() == [[1, 2], [3, 100_000]]


def test_ids_that_are_no_int32_are_kept() -> None:
    packed = PackedIds([[1], [2**40, -1]])
    assert packed.row(1).tolist() == [2**40, -1] and packed.flat.dtype == np.int64


def test_chunks_change_nothing_and_errors_name_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = letter_tokenizer("abc")
    texts = ["ab", "c", "abca", "b", "cc", "a", "bbb"]
    whole = PromptSet.from_texts(texts, tokenizer, max_prompt_tokens=3)
    monkeypatch.setattr(prompt_set, "chunks", lambda items: packed_ids.chunks(items, 2))
    parts = PromptSet.from_texts(texts, tokenizer, max_prompt_tokens=3)
    everyone = np.arange(len(texts))
    assert parts.rows(everyone)[0].equal(whole.rows(everyone)[0])
    assert list(parts.texts or ()) == texts
    late = [*"abcabc", "bbb"]
    with pytest.raises(ValueError, match=r"prompts\[6\] has 3 tokens, expected at most max_prompt_tokens=2"):
        PromptSet.from_texts(late, tokenizer, max_prompt_tokens=2, truncation_side="error")


def test_many_texts_are_tokenised_as_one_is(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [f"text {i} é" for i in range(token_ids._MANY + 1)]
    one_by_one = [byte_tokenizer(text)["input_ids"] for text in texts]
    byte_tokenizer(texts[:2], padding="max_length", max_length=50)  # the backend keeps padding switched on
    assert token_ids.token_ids(texts, byte_tokenizer, special=True, name="texts") == one_by_one


def test_a_tokenizer_that_changes_texts_itself_is_called(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    class Lower(type(byte_tokenizer)):  # type: ignore[misc]
        def _encode_plus(self, text: list[str], **options: Any) -> Any:
            return super()._encode_plus([item.lower() for item in text], **options)

    lower = Lower(tokenizer_object=byte_tokenizer.backend_tokenizer)
    found = token_ids.token_ids(["AB"] * token_ids._MANY, lower, special=False, name="texts")
    assert found[-1] == byte_tokenizer("ab")["input_ids"]


def test_rows_are_added_while_somebody_holds_the_ids() -> None:
    packed = PackedIds([[1, 2]])
    held = packed.row(0)
    packed.add([[3]])
    packed.add([[2**40]])
    assert held.tolist() == [1, 2] and packed.flat.tolist() == [1, 2, 3, 2**40]
