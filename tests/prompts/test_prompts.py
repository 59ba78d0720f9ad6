"""Prompt sets: tokenisation with and without special tokens, cutting, chat templates, lookup."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.env_helpers import TOKENIZER, closing_tokenizer, sentencepiece_like_tokenizer
from textenv.prompts.prompt_set import PromptSet, encode_prompts
from textenv.tasks.letters import letter_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'][0] + '>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def chatty_tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokens = ["<u>", "<a>", "<s>", *"abcdef", "<eos>"]
    backend = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("<.>|[\\s\\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def ids(prompts: PromptSet) -> list[list[int]]:
    table, mask, lengths = prompts.rows(np.arange(len(prompts)))
    assert mask.sum(-1).tolist() == lengths.tolist()
    return [row[:n] for row, n in zip(table.tolist(), lengths.tolist(), strict=True)]


class TestSpecialTokens:
    def test_bos_stays_and_closing_eos_goes(self) -> None:
        tokenizer = sentencepiece_like_tokenizer()
        encoded = encode_prompts(["the stop", ""], tokenizer)
        assert encoded[0][0] == encoded[1][0] == tokenizer.bos_token_id
        assert len(encoded[1]) == 1
        assert encode_prompts(["abc", "c"], closing_tokenizer()) == [[0, 1, 2], [2]]

    def test_eos_as_bos(self) -> None:
        """OPT opens texts with its EOS; an empty prompt is that token, not nothing."""
        tokenizer = closing_tokenizer(start=True)
        assert encode_prompts(["ab", ""], tokenizer) == [[3, 0, 1], [3]]
        assert encode_prompts([""], tokenizer) == [[3]]

    def test_an_eos_that_is_part_of_the_text_stays(self) -> None:
        assert encode_prompts(["a</s>"], closing_tokenizer()) == [[0, 3]]

    def test_nothing(self) -> None:
        assert encode_prompts([], TOKENIZER) == []
        assert encode_prompts([""], TOKENIZER) == [[]]


class TestCutting:
    @pytest.mark.parametrize(
        ("side", "expected"), [("left", [[5, 6], [1]]), ("right", [[0, 1], [1]]), ("error", None)]
    )
    def test_sides(self, side: str, expected: list[list[int]] | None) -> None:
        def build() -> PromptSet:
            return PromptSet.from_texts(
                ["abcdefg", "b"], TOKENIZER, max_prompt_tokens=2, truncation_side=side
            )

        if expected is None:
            with pytest.raises(
                ValueError, match=r"prompts\[0\] has 7 tokens, expected at most max_prompt_tokens=2"
            ):
                build()
        else:
            assert ids(build()) == expected

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    def test_bos_survives_a_left_cut(self, limit: int) -> None:
        tokenizer = sentencepiece_like_tokenizer()
        whole = encode_prompts(["the stop the stop"], tokenizer)[0]
        cut = encode_prompts(["the stop the stop"], tokenizer, max_prompt_tokens=limit)[0]
        assert cut[0] == tokenizer.bos_token_id
        assert len(cut) == min(limit, len(whole))
        if limit > 1:
            assert cut[1:] == whole[-(len(cut) - 1) :]


class TestChatTemplates:
    def test_strings_are_user_messages(self) -> None:
        prompts = PromptSet.from_texts(["ab"], chatty_tokenizer(), chat_template=True)
        assert prompts.texts == ["<u>ab<a>"]
        assert ids(prompts) == [[0, 3, 4, 1]]

    def test_messages(self) -> None:
        conversation = [
            {"role": "system", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ]
        prompts = PromptSet.from_texts([conversation], chatty_tokenizer(), chat_template=True)
        assert prompts.texts == ["<s>a<u>b<a>c<u>d<a>"]

    @pytest.mark.parametrize(
        ("item", "error", "message"),
        [
            ([], ValueError, r"prompts\[0\] must have at least one message"),
            (3, TypeError, r"prompts\[0\] must be a list of messages, got int"),
            ([{"role": "user"}], ValueError, "has no 'content'"),
        ],
    )
    def test_bad_messages(self, item: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            PromptSet.from_texts([item], chatty_tokenizer(), chat_template=True)

    def test_without_a_template(self) -> None:
        with pytest.raises(ValueError, match="chat_template=True needs a tokenizer with a chat template"):
            PromptSet.from_texts(["a"], TOKENIZER, chat_template=True)
        with pytest.raises(TypeError, match=r"prompts\[0\] must be a string, got .*chat_template=True"):
            PromptSet.from_texts([[{"role": "user", "content": "a"}]], TOKENIZER)


class TestLookup:
    @given(
        rows=st.lists(st.lists(st.integers(0, 50_000), min_size=1, max_size=9), min_size=1, max_size=9),
        data=st.data(),
    )
    def test_rows_are_what_went_in(self, rows: list[list[int]], data: st.DataObject) -> None:
        index = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=12))
        table, mask, lengths = PromptSet(rows).rows(np.array(index), pad_token_id=7)
        for i, row, ones, n in zip(index, table.tolist(), mask.tolist(), lengths.tolist(), strict=True):
            assert row == rows[i] + [7] * (len(row) - n)
            assert ones == [1] * n + [0] * (len(row) - n)
        assert table.shape[1] == max(len(rows[i]) for i in index)

    def test_select(self) -> None:
        prompts = PromptSet([[1], [2, 3], [4]], columns={"label": ["x", "y", "z"]}, texts=["a", "b", "c"])
        some = prompts.select([2, 1])
        assert ids(some) == [[4], [2, 3]]
        assert some.columns == {"label": ["z", "y"]}
        assert some.texts == ["c", "b"]
        assert ids(prompts.select(slice(1, None))) == [[2, 3], [4]]

    def test_extras(self) -> None:
        prompts = PromptSet([[1], [2]], columns={"label": ["x", "y"]})
        assert prompts.extras([1, 1, 0]) == {"label": ["y", "y", "x"]}


class TestBadInput:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"ids": []}, "prompts must hold at least one prompt, got none"),
            ({"ids": [[1], []]}, r"prompts\[1\] must have at least one token"),
            (
                {"ids": [[1]], "columns": {"x": [1, 2]}},
                "column 'x' must have 1 values like the prompts, got 2",
            ),
            ({"ids": [[1]], "texts": []}, "texts must have 1 values like the prompts, got 0"),
        ],
    )
    def test_construction(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PromptSet(kwargs.pop("ids"), **kwargs)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"max_prompt_tokens": 0}, "max_prompt_tokens must be >= 1, got 0"),
            ({"truncation_side": "both"}, "truncation_side must be one of 'left', 'right', 'error'"),
            ({"texts": [""]}, r"prompts\[0\] must have at least one token"),
        ],
    )
    def test_from_texts(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PromptSet.from_texts(kwargs.pop("texts", ["a"]), letter_tokenizer("a"), **kwargs)

    def test_a_string_is_no_list(self) -> None:
        with pytest.raises(TypeError, match="prompts must be a list of texts, got the string 'abc'"):
            PromptSet.from_texts("abc", TOKENIZER)

    def test_ids_of_another_tokenizer(self) -> None:
        prompts = PromptSet([[1, 2], [3], [4, 11]])
        prompts.check_token_ids(12)
        with pytest.raises(ValueError, match=r"prompts\[2\] must hold token ids in \[0, 11\), .* got 11"):
            prompts.check_token_ids(11)
