"""Texts and tokens: prompt and completion read as all tokens do, whatever the tokenizer."""

from __future__ import annotations

from env_helpers import byte_level_tokenizer
from transformers import LlamaTokenizer

from textenv.episodes import EpisodeBatch
from textenv.texts import split_texts

BYTES = byte_level_tokenizer()


def llama() -> LlamaTokenizer:
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    return LlamaTokenizer(vocab=vocab, merges=[], add_bos_token=True)


class TestSplit:
    def test_a_blank_at_the_seam_is_the_completions(self) -> None:
        tokenizer = llama()
        ids = tokenizer("hello world")["input_ids"]
        at = ids.index(tokenizer.convert_tokens_to_ids("▁"), 2)
        episodes = EpisodeBatch.from_ids([ids[:at]], [ids[at:]])
        assert episodes.texts(tokenizer) == [("hello", " world")]
        assert episodes.prompt_texts(tokenizer) == ["hello"]
        assert episodes.completion_texts(tokenizer) == [" world"]

    def test_special_tokens_on_demand(self) -> None:
        tokenizer = llama()
        ids = [*tokenizer("hello world")["input_ids"], tokenizer.eos_token_id]
        episodes = EpisodeBatch.from_ids([ids[:7]], [ids[7:]])
        assert episodes.completion_texts(tokenizer) == [" world"]
        assert episodes.completion_texts(tokenizer, skip_special_tokens=False) == [" world</s>"]

    def test_a_character_on_the_seam_is_the_completions(self) -> None:
        ids = BYTES("aéb")["input_ids"]  # é is two tokens
        assert split_texts([ids, ids, ids], [1, 2, 3], BYTES) == [("a", "éb"), ("a", "éb"), ("aé", "b")]
        assert split_texts([ids[:2]], [2], BYTES) == [("a\ufffd", "")]
