"""Prompts as token ids, ready to be dealt to environment rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRUNCATION_SIDES = ("left", "right", "error")


def encode_prompts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenise prompts so that a response can follow: with BOS where the tokenizer adds one, without a
    closing EOS.

    Args:
        texts: P strings.
        tokenizer: a transformers tokenizer.

    Returns:
        P lists of ids. An empty text becomes BOS if the tokenizer adds one, else an empty list.
    """
    if not len(texts):
        return []
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=True)["input_ids"]
    eos = tokenizer.eos_token_id
    if eos is not None and tokenizer("", add_special_tokens=True)["input_ids"][-1:] == [eos]:
        # Some tokenizers close every text with EOS; here the response is still to come.
        encoded = [ids[:-1] if ids[-1:] == [eos] else ids for ids in encoded]
    return [list(ids) for ids in encoded]


class PromptSet:
    """P tokenised prompts with the task's columns, stored without padding.

    Args:
        ids: P lists of token ids.
        columns: name -> P values; they become ``EpisodeBatch.extras`` and keyword arguments of reward
            functions.
        texts: P strings, for display.

    Raises:
        ValueError: if there is no prompt, a prompt is empty, or a column does not have P values.

    Example:
        >>> prompts = PromptSet([[1, 2], [3]], columns={"answer": ["x", "y"]})
        >>> prompts.rows(np.array([1, 0]))[0].tolist()
        [[3, 0], [1, 2]]
    """

    def __init__(
        self,
        ids: Sequence[Sequence[int]],
        *,
        columns: Mapping[str, Sequence[Any]] | None = None,
        texts: Sequence[str] | None = None,
    ) -> None:
        if len(ids) == 0:
            raise ValueError("prompts must hold at least one prompt, got none")
        self.lengths = np.array([len(row) for row in ids], dtype=np.int64)
        if (self.lengths == 0).any():
            empty = int(np.flatnonzero(self.lengths == 0)[0])
            raise ValueError(
                f"prompts[{empty}] is empty (no tokens); expected at least one token, for example the tokenizer's BOS"
            )
        self._flat = np.concatenate([np.asarray(row, dtype=np.int64) for row in ids]).astype(np.int32)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.columns: dict[str, Sequence[Any]] = dict(columns or {})
        for name, column in self.columns.items():
            if len(column) != len(self):
                raise ValueError(
                    f"column {name!r} must have {len(self)} values like the prompts, got {len(column)}"
                )
        self.texts = list(texts) if texts is not None else None
        if self.texts is not None and len(self.texts) != len(self):
            raise ValueError(f"texts must have {len(self)} values like the prompts, got {len(self.texts)}")

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str | Sequence[Mapping[str, str]]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        columns: Mapping[str, Sequence[Any]] | None = None,
        max_prompt_tokens: int | None = None,
        truncation_side: str = "left",
        chat_template: bool = False,
    ) -> PromptSet:
        """Tokenise P prompts.

        Args:
            texts: strings, or with ``chat_template`` also lists of messages ({"role": ..., "content": ...}).
            tokenizer: a transformers tokenizer.
            columns: further task columns, P values each.
            max_prompt_tokens: longer prompts are cut to this many tokens.
            truncation_side: "left" drops the beginning, "right" the end, "error" refuses a prompt that is
                too long.
            chat_template: render each prompt by the tokenizer's chat template (a string is one user
                message) and open the assistant's turn.

        Raises:
            ValueError: if an argument is out of range, a prompt is empty, or the tokenizer has no chat
                template.
            TypeError: if a prompt is neither a string nor (with ``chat_template``) a list of messages.
        """
        if truncation_side not in TRUNCATION_SIDES:
            raise ValueError(f"truncation_side must be one of {TRUNCATION_SIDES}, got {truncation_side!r}")
        if max_prompt_tokens is not None and max_prompt_tokens < 1:
            raise ValueError(f"max_prompt_tokens must be >= 1, got {max_prompt_tokens}")
        rendered = [_render(item, tokenizer, i, chat_template) for i, item in enumerate(texts)]
        if chat_template:
            ids = tokenizer(rendered, add_special_tokens=False)["input_ids"] if rendered else []
        else:
            ids = encode_prompts(rendered, tokenizer)
        if max_prompt_tokens is not None:
            for i, row in enumerate(ids):
                if len(row) > max_prompt_tokens:
                    if truncation_side == "error":
                        raise ValueError(
                            f"prompts[{i}] has {len(row)} tokens, expected at most max_prompt_tokens={max_prompt_tokens}"
                        )
                    ids[i] = (
                        row[-max_prompt_tokens:] if truncation_side == "left" else row[:max_prompt_tokens]
                    )
        return cls(ids, columns=columns, texts=rendered)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.lengths.max())

    @property
    def max_token_id(self) -> int:
        """Largest token id that occurs."""
        return int(self._flat.max())

    @property
    def min_token_id(self) -> int:
        """Smallest token id that occurs."""
        return int(self._flat.min())

    def rows(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Prompts by index: (n,) -> ((n, width) int64 ids right-padded by 0, (n,) int64 lengths), on the
        CPU.
        """
        lengths = self.lengths[index]
        columns = np.arange(int(lengths.max()) if len(lengths) else 0)
        inside = columns < lengths[:, None]
        flat = self._starts[index][:, None] + columns
        ids = np.where(inside, self._flat[np.minimum(flat, len(self._flat) - 1)], 0).astype(np.int64)
        return torch.from_numpy(ids), torch.from_numpy(lengths)

    def extras(self, index: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of the prompts ``index``, as ``EpisodeBatch.extras`` wants them."""
        return {name: [column[i] for i in index] for name, column in self.columns.items()}

    def select(self, index: Sequence[int] | slice) -> PromptSet:
        """A smaller set, in the given order."""
        chosen = list(range(len(self)))[index] if isinstance(index, slice) else [int(i) for i in index]
        ids = [self._flat[self._starts[i] : self._starts[i] + self.lengths[i]] for i in chosen]
        texts = None if self.texts is None else [self.texts[i] for i in chosen]
        return PromptSet(ids, columns=self.extras(chosen), texts=texts)


def _render(item: Any, tokenizer: PreTrainedTokenizerBase, i: int, chat_template: bool) -> str:
    """One prompt as text."""
    if isinstance(item, str):
        if not chat_template:
            return item
        item = [{"role": "user", "content": item}]
    elif not chat_template:
        raise TypeError(
            f"prompts[{i}] must be a string, got {type(item).__name__}; lists of messages need chat_template=True"
        )
    if not isinstance(item, Sequence) or not all(isinstance(m, Mapping) and "role" in m for m in item):
        raise TypeError(f"prompts[{i}] must be a list of messages with 'role' and 'content', got {item!r}")
    if tokenizer.chat_template is None:
        raise ValueError(
            "chat_template=True needs a tokenizer with a chat template, and this tokenizer has none"
        )
    return tokenizer.apply_chat_template(list(item), tokenize=False, add_generation_prompt=True)
