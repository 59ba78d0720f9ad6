"""Texts as token ids, with errors that name the text that the tokenizer cannot read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from textenv.utils.names import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MANY = 1024
"""From so many texts on the tokenizer's backend is called directly."""
_COMPARED = 16
"""Of each ``_MANY`` texts so many have their ids from the backend compared with those from the tokenizer."""
_AT_ONCE = 256
"""Texts in one call of the backend. Python's garbage collector looks at every object of the process each time
that so many more live longer than a moment, so few do."""


def token_ids(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special: bool, name: str, first: int = 0
) -> list[list[int]]:
    """Tokenise n texts.

    Args:
        texts: n strings.
        tokenizer: a transformers tokenizer.
        special: add the special tokens that the tokenizer adds of itself.
        name: what the texts are, for errors.
        first: number of the first text, for errors.

    Raises:
        ValueError: naming the first text that cannot be tokenised: it holds half of a surrogate pair, or a
            character that the vocabulary lacks where there is no token for unknown ones.

    Example:
        >>> from textenv.tasks.letters import letter_tokenizer
        >>> token_ids(["ab", "c"], letter_tokenizer("abc"), special=False, name="prompts")
        [[0, 1], [2]]
    """
    if not len(texts):
        return []
    try:
        return _encode(list(texts), tokenizer, special)
    except Exception:  # tokenizers raises Exception itself, too
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
    # The call turns every encoding into six Python lists, which takes as long as to encode, and the fast call
    # leaves out the offsets, which nobody needs. A tokenizer may also change texts before its backend sees
    # them, so the first ids are compared. The call comes first: it resets the padding and truncation of the
    # backend.
    few = slice(0, _COMPARED * (len(texts) // _MANY))
    first = call(texts[few])
    ids: list[list[int]] = []
    for start in range(0, len(texts), _AT_ONCE):
        some = backend.encode_batch_fast(texts[start : start + _AT_ONCE], add_special_tokens=special)
        ids += [encoding.ids for encoding in some]
    return ids if ids[few] == first else call(texts)


def check_texts(name: str, texts: Any) -> None:
    """Refuse anything but a list of strings.

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
    """Whether all strings have an encoding."""
    return all(map(str.isascii, texts)) or all(map(is_unicode, texts))


def is_unicode(text: str) -> bool:
    """Whether a string has an encoding: half of a surrogate pair has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
