"""Find a stop string in the moment its last character is generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what a tokenizer prints for an unfinished multi-byte character
_SLACK = 8  # tokens decoded before the stop string, so that its own first token is not at a decoding boundary


class StopStrings:
    """Whether a response ends with one of the strings, given its token ids.

    A table over the vocabulary tells which tokens can complete a stop string at all; only for those (rare)
    rows is the tail of the response decoded and searched.

    Args:
        strings: stop strings, none empty.
        tokenizer: the task's tokenizer.

    Raises:
        ValueError: if a stop string is empty.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        if isinstance(strings, str):
            raise TypeError(f"stop_strings must be a list of strings, got the string {strings!r}")
        for i, string in enumerate(strings):
            if not isinstance(string, str) or not string:
                raise ValueError(f"stop_strings[{i}] must be a non-empty string, got {string!r}")
        self.strings = tuple(strings)
        self._tokenizer = tokenizer
        self._tail = max((len(s.encode()) for s in strings), default=0) + _SLACK
        last = {s[-1] for s in strings}
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))]) if strings else []
        blank = any(
            c.isspace() for c in last
        )  # decoding a lone token may drop its blanks, so every token may end one
        self.may_complete: Tensor = torch.tensor(
            [blank or _REPLACEMENT in text or not last.isdisjoint(text) for text in texts], dtype=torch.bool
        )
        """(V,) bool: tokens after which a stop string may have ended."""

    def __bool__(self) -> bool:
        return bool(self.strings)

    def completed(self, response: Sequence[int]) -> bool:
        """Whether the response's last token completed a stop string."""
        tail = list(response[-self._tail :])
        text = self._decode(tail)
        before = self._decode(tail[:-1])
        return any(s in text and text.count(s) > before.count(s) for s in self.strings)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
