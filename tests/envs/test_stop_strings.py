"""Stop strings are found at the very token that completes them, in every kind of tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.env_helpers import TOKENIZER, byte_level_tokenizer, sentencepiece_like_tokenizer
from textenv.envs.stop_strings import StopStrings
from textenv.envs.token_constraints import tokenizer_vocab_size
from textenv.tasks.letters import letter_tokenizer

BYTES = byte_level_tokenizer()
PIECES = sentencepiece_like_tokenizer()


def stops_at(strings: list[str], tokenizer: Any, response: list[int], prompt: list[int]) -> int | None:
    """Step of the first token that completes a stop string, asking only where the table says "maybe"."""
    stop_strings = StopStrings(strings, tokenizer)
    for t, token in enumerate(response):
        maybe = bool(stop_strings.may_complete[token])
        completed = stop_strings.completed([*prompt, *response[: t + 1]], len(prompt))
        assert maybe or not completed, "the table must not miss a token"
        if completed:
            return t
    return None


class TestByteLevel:
    @pytest.mark.parametrize(
        ("string", "text"),
        [
            ("end", "the end."),
            ("\n\n", "a\n\nb"),
            ("é", "caféx"),
            ("日本", "x日本語"),
            ("👍🏽", "ok👍🏽!"),
            (" ", "ab cd"),
            (".", "a.b"),
            ("é.", "éé.x"),
        ],
    )
    def test_at_the_completing_token(self, string: str, text: str) -> None:
        response = BYTES(text)["input_ids"]
        expected = next(t for t in range(len(response)) if string in BYTES.decode(response[: t + 1]))
        assert stops_at([string], BYTES, response, BYTES("x")["input_ids"]) == expected

    @given(text=st.text("ab\né日👍 ", max_size=12), string=st.text("ab\né日👍 ", min_size=1, max_size=3))
    def test_exactly_when_the_text_contains_it(self, text: str, string: str) -> None:
        response = BYTES(text)["input_ids"]
        contained = [string in BYTES.decode(response[: t + 1]) for t in range(len(response))]
        expected = contained.index(True) if True in contained else None
        assert stops_at([string], BYTES, response, BYTES("x")["input_ids"]) == expected

    def test_a_prompt_that_ends_in_half_a_character(self) -> None:
        first, second = BYTES("é")["input_ids"]
        assert stops_at(["é"], BYTES, [second], [first]) is None  # the character is not the response's own
        assert stops_at(["!"], BYTES, [second, *BYTES("!")["input_ids"]], [first]) == 1

    def test_a_long_response_is_searched_at_its_end(self) -> None:
        response = BYTES("a" * 200 + "stop")["input_ids"]
        assert stops_at(["stop"], BYTES, response, [5]) == 203

    def test_the_table_is_narrow(self) -> None:
        table = StopStrings(["end"], BYTES).may_complete
        assert not table[BYTES("a")["input_ids"][0]]
        assert table[BYTES("d")["input_ids"][0]]
        assert int(table.sum()) < len(BYTES) / 2 + 5  # bytes beyond ASCII can complete anything


class TestBlanks:
    def ids(self, *tokens: str) -> list[int]:
        return PIECES.convert_tokens_to_ids(list(tokens))

    def test_a_blank_in_front_counts(self) -> None:
        """ "▁stop" reads " stop" behind a prompt, though it decodes to "stop" alone."""
        assert stops_at([" stop"], PIECES, self.ids("▁stop"), self.ids("<s>", "▁the")) == 0
        assert stops_at(["stop"], PIECES, self.ids("▁stop"), self.ids("<s>", "▁the")) == 0
        assert stops_at([" stop"], PIECES, self.ids("s", "t", "o", "p"), self.ids("<s>", "▁the")) is None

    def test_a_blank_at_the_end(self) -> None:
        assert stops_at(["stop "], PIECES, self.ids("▁stop", "▁the"), self.ids("▁the")) == 1
        assert stops_at([" "], PIECES, self.ids("s", "▁", "a"), self.ids("▁the")) == 1

    def test_over_several_pieces(self) -> None:
        assert stops_at(["p. the"], PIECES, self.ids("▁stop", ".", "▁", "t", "h", "e"), self.ids("▁a")) == 5


class TestRules:
    def ask(self, stop_strings: StopStrings, text: str, prompt: str = "a") -> bool:
        return stop_strings.completed(TOKENIZER(prompt + text)["input_ids"], len(prompt))

    def test_the_last_token_must_complete_it(self) -> None:
        stop_strings = StopStrings(["ab"], TOKENIZER)
        assert self.ask(stop_strings, "ab")
        assert not self.ask(stop_strings, "aba")
        assert self.ask(stop_strings, "abab")

    def test_overlaps_count(self) -> None:
        """Of "aaa" the last "aa" is new (the first may have come too early to count)."""
        assert self.ask(StopStrings(["aa"], TOKENIZER), "aaa")

    def test_the_prompt_does_not_count(self) -> None:
        assert not self.ask(StopStrings(["ba"], TOKENIZER), "a", prompt="b")

    def test_any_of_several(self) -> None:
        stop_strings = StopStrings(["ab", "ch"], TOKENIZER)
        assert self.ask(stop_strings, "ch") and self.ask(stop_strings, "gab")
        assert not self.ask(stop_strings, "bah")

    def test_special_tokens_can_be_spelled(self) -> None:
        tokenizer = letter_tokenizer("ab")
        stop_strings = StopStrings(["<pad>"], tokenizer)
        assert stop_strings.completed([0, tokenizer.pad_token_id], 1)

    def test_none(self) -> None:
        assert not StopStrings([], TOKENIZER)
        assert StopStrings(["a"], TOKENIZER)

    @pytest.mark.parametrize(
        ("strings", "error", "message"),
        [
            ("ab", TypeError, "stop_strings must be a list of strings, got 'ab'"),
            (["a", ""], ValueError, r"stop_strings\[1\] must be a non-empty string, got ''"),
            ([3], ValueError, r"stop_strings\[0\] must be a non-empty string, got 3"),
        ],
    )
    def test_bad_input(self, strings: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            StopStrings(strings, TOKENIZER)


def test_a_vocabulary_with_holes() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 5})))
    assert len(tokenizer) == 2
    assert tokenizer_vocab_size(tokenizer) == 6
    table = StopStrings(["b"], tokenizer).may_complete
    assert torch.equal(table.nonzero().squeeze(-1), torch.tensor([5]))
