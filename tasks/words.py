"""Tokenizers with one token per word, built in memory: the vocabulary of the games."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from textenv.tasks.letters import BOS, EOS, PAD, with_special_tokens


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose token i is the i-th word, then BOS, EOS and PAD.

    Words are what stands between spaces or line breaks, which have no token; decoded words are joined by
    spaces. An unknown word is an error. Nothing is added to a text.

    Args:
        words: distinct, without white space, ``<`` and ``>``.

    Raises:
        ValueError: if there is no word, one is repeated, or has such a character.

    Example:
        >>> tokenizer = word_tokenizer(["up", "down"])
        >>> tokenizer("down up")["input_ids"], tokenizer.decode([1, 0]), len(tokenizer)
        ([1, 0], 'down up', 5)
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    wrong = [word for word in words if not word or set(word) & set("<>") or word.split() != [word]]
    if not words or wrong or len(set(words)) != len(words):
        raise ValueError(
            f"words must be distinct, without white space, '<' and '>', got {wrong or list(words)}"
        )
    vocabulary = {token: i for i, token in enumerate([*words, BOS, EOS, PAD])}
    backend = Tokenizer(WordLevel(vocabulary))
    backend.pre_tokenizer = WhitespaceSplit()
    return with_special_tokens(backend)
