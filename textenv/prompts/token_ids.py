"""Tokenise texts; errors name the text that the tokenizer cannot encode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from textenv.utils.names import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MANY = 1024
"""Smallest number of texts for which the tokenizer's backend is called directly."""
_COMPARED = 16
"""Number of texts per ``_MANY`` for which the backend's ids are compared with those of the tokenizer."""
_AT_ONCE = 256
"""Texts per call of the backend. More encodings alive at once would start Python's garbage collector."""


def token_ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special: bool, name: str, first: int = 0
) -> list[list[int]]:
    """Tokenise n texts.

    Args:
        texts: n strings.
        tokenizer: a transformers tokenizer.
        special: add the tokenizer's special tokens (``add_special_tokens``).
        name: name of the argument with the texts, for errors.
        first: index of the first text, for errors.

    Returns:
        n lists of token ids.

    Raises:
        ValueError: if a text cannot be tokenised: it has half of a surrogate pair, or a character that is not
            in the vocabulary of a tokenizer without an unknown token. The message names the first such text.

    Example:
        >>> from textenv.tasks.letters import letter_tokenizer
        >>> token_ids(["ab", "c"], letter_tokenizer("abc"), special=False, name="prompts")
        [[0, 1], [2]]
    """
    if not len(texts):
        return []
    try:
        return _encode(list(texts), tokenizer, special)
    except Exception:  # the tokenizers package raises plain Exception
        for i, text in enumerate(texts):
            try:
                tokenizer(text, add_special_tokens=special)
            except Exception as error:
                reason = "it holds half of a surrogate pair" if not is_unicode(text) else str(error)
                raise ValueError(
                    f"{name}[{first + i}] can't be tokenised: {reason}; got {shown(text)}"
                ) from error
        raise


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase, special: bool) -> list[list[int]]:
    def call(some: list[str]) -> list[list[int]]:
        options = {"return_attention_mask": False, "return_token_type_ids": False}
        return tokenizer(some, add_special_tokens=special, **options)["input_ids"]

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or len(texts) < _MANY:
        return call(texts)
    # The tokenizer converts every encoding into six Python lists, which takes as long as the encoding, and
    # encode_batch_fast skips the offsets, which are not needed. A tokenizer may change texts before it calls
    # its backend, so the first ids are compared. The tokenizer is called first, because that resets the
    # backend's padding and truncation.
    few = slice(0, _COMPARED * (len(texts) // _MANY))
    first = call(texts[few])
    ids: list[list[int]] = []
    for start in range(0, len(texts), _AT_ONCE):
        some = backend.encode_batch_fast(texts[start : start + _AT_ONCE], add_special_tokens=special)
        ids += [encoding.ids for encoding in some]
    return ids if ids[few] == first else call(texts)


def check_texts(name: str, texts: Any) -> None:
    """Check for a list of strings.

    Raises:
        TypeError: if it is not one.

    >>> check_texts("prompts", ["a", 5])
    Traceback (most recent call last):
    ...
    TypeError: prompts[1] must be a string, got 5
    """
    if isinstance(texts, str | bytes):
        raise TypeError(f"{name} must be a list of strings, got {shown(texts)}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] must be a string, got {shown(text)}")


def are_unicode(texts: Iterable[str]) -> bool:
    """Whether all strings are valid Unicode; see ``is_unicode``."""
    return all(map(str.isascii, texts)) or all(map(is_unicode, texts))


def is_unicode(text: str) -> bool:
    """Whether a string can be encoded as UTF-8; half of a surrogate pair cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
