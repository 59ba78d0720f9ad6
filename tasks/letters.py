"""Tokenizers with one token per letter, built in memory: the alphabet of the small tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"


def letter_tokenizer(alphabet: str, words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer whose token i is the i-th letter, then the words, BOS, EOS and PAD; no separators.

    A letter outside the alphabet is an error, not an unknown token. No special tokens are added.

    Args:
        alphabet: distinct characters, none of them ``<`` or ``>``.
        words: distinct texts of several characters that are one token each; of two that begin alike the
            first one given is taken.

    Raises:
        ValueError: if the alphabet is empty, repeats a character, or holds ``<`` or ``>``; or a word is
            shorter than two characters, repeated, or holds one of these.

    Example:
        >>> tokenizer = letter_tokenizer("abc")
        >>> tokenizer("cab")["input_ids"], tokenizer.decode([2, 0, 1]), len(tokenizer)
        ([2, 0, 1], 'cab', 6)
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    if not alphabet or len(set(alphabet)) != len(alphabet) or set(alphabet) & set("<>"):
        raise ValueError(f"alphabet must hold distinct characters without '<' and '>', got {alphabet!r}")
    if len(set(words)) != len(words) or any(len(word) < 2 or set(word) & set("<>") for word in words):
        raise ValueError(
            f"words must be distinct and longer than a letter, without '<' and '>', got {words!r}"
        )
    vocabulary = {token: i for i, token in enumerate([*alphabet, *words, BOS, EOS, PAD])}
    backend = Tokenizer(WordLevel(vocabulary))
    pattern = "|".join([*map(re.escape, words), "[\\s\\S]"])
    backend.pre_tokenizer = Split(Regex(pattern), "isolated")
    backend.decoder = Fuse()
    return with_special_tokens(backend)


def with_special_tokens(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A transformers tokenizer of a vocabulary that holds BOS, EOS and PAD."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
