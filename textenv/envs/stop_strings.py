"""Detect a stop string in the step that generates its last character."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from textenv.prompts.token_ids import is_unicode
from textenv.utils.names import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # decoded form of an incomplete multi-byte character
_SLACK = 8  # more tokens are decoded, because a token may decode to no character


class StopStrings:
    """Checks whether the last token of a response completed a stop string.

    A table over the vocabulary says which tokens can complete a stop string. Only for rows with such a token
    the end of the response is decoded and searched. A match must not include characters of the prompt.

    Args:
        strings: stop strings, none empty.
        tokenizer: the task's tokenizer.

    Raises:
        TypeError: if ``strings`` is not a list.
        ValueError: if a stop string is empty or not a string.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        if isinstance(strings, str | bytes) or not isinstance(strings, Collection):
            raise TypeError(f"stop_strings must be a list of strings, got {shown(strings)}")
        for i, string in enumerate(strings):
            if not isinstance(string, str) or not string or not is_unicode(string):
                raise ValueError(f"stop_strings[{i}] must be a non-empty string, got {shown(string)}")
        self.strings = tuple(strings)
        self._tokenizer = tokenizer
        # A token has at least one byte, so the longest string's number of bytes is enough tokens.
        self._tail = max((len(s.encode()) for s in strings), default=0) + _SLACK
        self.may_complete = (
            self._table({s[-1] for s in strings}) if strings else torch.zeros(0, dtype=torch.bool)
        )
        """(V,) bool: tokens that can complete a stop string."""

    def __bool__(self) -> bool:
        return bool(self.strings)

    def completed(self, ids: Sequence[int], prompt_length: int) -> bool:
        """Whether the last token of ``ids`` completed a stop string.

        Args:
            ids: prompt and response, the response not empty.
            prompt_length: where the response starts, at least 1.
        """
        start = max(prompt_length, len(ids) - self._tail)
        text = self._text(ids[start - 1], ids[start:])
        before = self._text(ids[start - 1], ids[start:-1])
        # Text before the last token was searched in earlier steps.
        known = next((i for i, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), len(before))
        return any(text.find(s, max(0, known - len(s) + 1)) >= 0 for s in self.strings)

    def _text(self, context: int, ids: Sequence[int]) -> str:
        """The text of ``ids`` after the token ``context``.

        Tokenizers drop the space before the first token that they decode, and some add spaces between tokens.
        """
        together, alone = self._decode([context, *ids]), self._decode([context])
        return together[len(alone) :] if together.startswith(alone) else self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def _table(self, last: set[str]) -> Tensor:
        from textenv.envs.token_constraints import tokenizer_vocab_size

        size = tokenizer_vocab_size(self._tokenizer)
        # Decoded after another token, for the same reason.
        context = next((i for i in range(size) if self._decode([i]).isalnum()), 0)
        texts = self._tokenizer.batch_decode(
            [[context, i] for i in range(size)],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        skip = len(self._decode([context]))
        return torch.tensor(
            [_REPLACEMENT in text or not last.isdisjoint(text[skip:]) for text in texts], dtype=torch.bool
        )
