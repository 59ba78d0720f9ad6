"""Tokenizers with one token per letter, built in memory: the alphabet of the small tasks."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"


def letter_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose token i is the i-th letter, then BOS, EOS and PAD; no separator between letters.

    A letter outside the alphabet is an error, not an unknown token. No special tokens are added.

    Args:
        alphabet: distinct characters, none of them ``<`` or ``>``.

    Raises:
        ValueError: if the alphabet is empty, repeats a character, or holds ``<`` or ``>``.

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
    vocabulary = {token: i for i, token in enumerate([*alphabet, BOS, EOS, PAD])}
    backend = Tokenizer(WordLevel(vocabulary))
    backend.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
    backend.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
