"""Prompts as token ids with their task columns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from textenv.prompts.chat_prompts import encode_chats
from textenv.prompts.columns import Column
from textenv.prompts.conversations import conversation_columns, user_message
from textenv.prompts.messages import (
    OPTION_COLUMNS,
    are_plain,
    chat_options,
    check_messages,
    takes_tools,
    warn_no_tools,
)
from textenv.prompts.packed_ids import PackedIds, chunks
from textenv.prompts.token_ids import token_ids
from textenv.utils.checks import check_at_least, check_choice, check_flag
from textenv.utils.names import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRUNCATION_SIDES = ("left", "right", "error")


def encode_prompts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int | None = None,
    truncation_side: str = "left",
    first: int = 0,
) -> list[list[int]]:
    """Tokenise prompts so that a response can follow: with BOS where the tokenizer adds one, no closing EOS.

    A text that starts with BOS gets no second one.

    Args:
        texts: P strings.
        tokenizer: a transformers tokenizer.
        max_prompt_tokens: longer prompts are cut to this many tokens; a BOS in front stays.
        truncation_side: "left" drops the beginning, "right" the end, "error" raises an error.
        first: number of the first text, for errors.

    Returns:
        P lists of ids. An empty text becomes BOS if the tokenizer adds one, else an empty list.

    Raises:
        ValueError: if a prompt is too long and ``truncation_side`` is "error".
    """
    if not len(texts):
        return []
    encoded = token_ids(texts, tokenizer, special=True, name="prompts", first=first)
    front, back = _special_tokens(texts, tokenizer)
    if back:
        encoded = [ids[: len(ids) - back] for ids in encoded]
    if front:  # texts may begin with BOS, for example rendered ones
        encoded = [ids[front:] if ids[:front] == ids[front : 2 * front] else ids for ids in encoded]
    if max_prompt_tokens is None:
        return encoded
    bos = [tokenizer.bos_token_id]
    return [
        _cut(ids, first + i, max(front, int(ids[:1] == bos)), max_prompt_tokens, truncation_side)
        for i, ids in enumerate(encoded)
    ]


def _special_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """(number of special tokens before, after) every text, found with one text."""
    text = next((text for text in texts if text), "")
    whole = tokenizer(text, add_special_tokens=True)["input_ids"]
    content = tokenizer(text, add_special_tokens=False)["input_ids"]
    extra = len(whole) - len(content)
    if not content:  # only empty texts: what can stand before a response is BOS
        front = int(tokenizer.bos_token_id is not None and whole[:1] == [tokenizer.bos_token_id])
        return front, extra - front
    for front in range(extra + 1):
        if whole[front : front + len(content)] == content:
            return front, extra - front
    return 0, 0  # a post-processor that rewrites texts; its output is taken as it is


def _cut(ids: list[int], i: int, front: int, limit: int | None, side: str) -> list[int]:
    """At most ``limit`` tokens of prompt i, the ``front`` special ones first."""
    if limit is None or len(ids) <= limit:
        return ids
    if side == "error":
        raise ValueError(f"prompts[{i}] has {len(ids)} tokens, expected at most max_prompt_tokens={limit}")
    if side == "right" or limit <= front:
        return ids[:limit]
    return ids[:front] + ids[len(ids) - (limit - front) :]


class PromptSet:
    """P tokenised prompts with the task's columns, stored without padding.

    Args:
        ids: P lists of token ids.
        columns: name -> P values; they become ``EpisodeBatch.extras`` and keyword arguments of reward
            functions.
        texts: P strings, for display.

    Raises:
        TypeError: if a prompt is not a list of integers.
        ValueError: if there is no prompt, a prompt is empty, or a column does not have P values. Ids
            outside a vocabulary are refused when they are used (``check_token_ids``, ``rows``).

    Example:
        >>> prompts = PromptSet([[1, 2], [3]], columns={"answer": ["x", "y"]})
        >>> prompts.rows(np.array([1, 0]))[0].tolist()
        [[3, 0], [1, 2]]
    """

    def __init__(
        self,
        ids: Sequence[Sequence[int] | np.ndarray] | PackedIds,
        *,
        columns: Mapping[str, Sequence[Any]] | None = None,
        texts: Sequence[str] | None = None,
    ) -> None:
        if len(ids) == 0:
            raise ValueError("prompts must hold at least one prompt, got none")
        self._ids = ids if isinstance(ids, PackedIds) else PackedIds(ids)
        if (self.lengths == 0).any():
            empty = int(np.flatnonzero(self.lengths == 0)[0])
            raise ValueError(
                f"prompts[{empty}] must have at least one token (such as BOS), got an empty list"
            )
        if columns is not None and not isinstance(columns, Mapping):
            raise TypeError(f"columns must be a dict, name -> P values, got {shown(columns)}")
        for name, given in (("texts", texts), *(columns or {}).items()):
            if isinstance(given, str | bytes):
                raise TypeError(f"{name} must be a list of values, got {shown(given)}")
        self.columns: dict[str, Sequence[Any]] = dict(columns or {})
        for name, column in self.columns.items():
            if len(column) != len(self):
                raise ValueError(
                    f"column {name!r} must have {len(self)} values like the prompts, got {len(column)}"
                )
        self.texts = texts if texts is None or isinstance(texts, Column) else Column(texts)
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
            columns: further task columns, P values each. With ``chat_template`` those named ``tools`` and
                ``chat_template_kwargs`` reach the template; see ``textenv.prompts.messages.chat_options``.
            max_prompt_tokens: longer prompts are cut to this many tokens; a BOS at the start stays.
                Conversations first lose their earliest messages, then the last one is cut; see
                ``textenv.prompts.chat_prompts.encode_chats``.
            truncation_side: "left" drops the beginning, "right" the end, "error" raises a ValueError.
            chat_template: render each prompt by the tokenizer's chat template (a string is one user
                message) and open the assistant's turn. Messages are kept as the column ``prompt_messages``,
                texts (if all prompts are texts) as ``prompt_text``.

        Raises:
            ValueError: if an argument is out of range, a prompt is empty, or the tokenizer has no chat
                template.
            TypeError: if a prompt is neither a string nor (with ``chat_template``) a list of messages.
        """
        check_choice("truncation_side", truncation_side, TRUNCATION_SIDES)
        if max_prompt_tokens is not None:
            check_at_least("max_prompt_tokens", max_prompt_tokens, 1)
        check_flag("chat_template", chat_template)
        if isinstance(texts, str):
            raise TypeError(f"prompts must be a list of texts, got the string {shown(texts)}")
        cut: Any = {"max_prompt_tokens": max_prompt_tokens, "truncation_side": truncation_side}
        if chat_template and tokenizer.chat_template is None:
            raise ValueError(
                "chat_template=True needs a tokenizer with a chat template, and this tokenizer has none"
            )
        given = _template_columns(columns or {}, len(texts), tokenizer) if chat_template else {}
        ids, rendered, bare = PackedIds(), Column(), 0
        as_given = isinstance(texts, Column) and not chat_template  # no second copy is needed
        for chunk in chunks(texts):
            cut["first"] = first = len(ids)
            if chat_template:
                messages = _conversations(chunk, first)
                options = [_options(given, first + i) for i in range(len(chunk))] if given else None
                strings, encoded, found = encode_chats(messages, tokenizer, options=options, **cut)
                bare += found
            else:
                strings = _texts(chunk, first)
                encoded = encode_prompts(strings, tokenizer, **cut)
            ids.add(encoded)
            if not as_given:
                rendered.extend(strings)
        if bare:
            warnings.warn(
                f"max_prompt_tokens={max_prompt_tokens} has no room for the messages of {bare} of {len(ids)} "
                "prompts: the chat template alone is longer, and is cut",
                stacklevel=2,
            )
        if chat_template:
            columns = {**(columns or {}), **conversation_columns(texts, columns or {})}
        return cls(ids, columns=columns, texts=texts if as_given else rendered)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def lengths(self) -> np.ndarray:
        """(P,) int64: tokens of each prompt."""
        return self._ids.lengths

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.lengths.max())

    def check_token_ids(self, vocab_size: int) -> None:
        """Refuse ids of another tokenizer.

        Raises:
            ValueError: if a token id lies outside [0, vocab_size).
        """
        flat = self._ids.flat
        if flat.min() < 0 or flat.max() >= vocab_size:
            first = int(((flat < 0) | (flat >= vocab_size)).argmax())
            prompt = int(np.searchsorted(self._ids.starts, first, side="right")) - 1
            raise ValueError(
                f"prompts[{prompt}] must hold token ids in [0, {vocab_size}), those of the tokenizer, "
                f"got {flat[first]}"
            )

    def rows(self, index: np.ndarray, pad_token_id: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts by index, on the CPU.

        Args:
            index: (n,) int64.
            pad_token_id: id after the end of a prompt.

        Returns:
            Ids (n, width) int64, their attention mask (n, width) int8, and lengths (n,) int64.

        Raises:
            ValueError: if a prompt of the set has an id outside [0, 2**31).
        """
        if self._ids.flat.dtype == np.int64:
            self.check_token_ids(2**31)
        lengths = self.lengths[index]
        columns = np.arange(int(lengths.max()) if len(lengths) else 0)
        inside = columns < lengths[:, None]
        place = np.minimum(self._ids.starts[index][:, None] + columns, len(self._ids.flat) - 1)
        ids = np.where(inside, self._ids.flat[place].astype(np.int64), pad_token_id)
        return (
            torch.from_numpy(ids),
            torch.from_numpy(inside.view(np.int8)),
            torch.from_numpy(lengths),
        )

    def extras(self, index: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of the prompts ``index``, as in ``EpisodeBatch.extras``."""
        return {name: [column[i] for i in index] for name, column in self.columns.items()}

    def select(self, index: Sequence[int] | slice) -> PromptSet:
        """The prompts ``index`` as a new set, in the given order."""
        chosen = list(range(len(self)))[index] if isinstance(index, slice) else [int(i) for i in index]
        ids = [self._ids.row(i) for i in chosen]
        texts = None if self.texts is None else [self.texts[i] for i in chosen]
        return PromptSet(ids, columns=self.extras(chosen), texts=texts)


def _texts(items: list[Any], first: int) -> list[str]:
    if set(map(type, items)) != {str}:
        for i, item in enumerate(items, start=first):
            if not isinstance(item, str):
                raise TypeError(
                    f"prompts[{i}] must be a string, got {shown(item)}; "
                    "lists of messages need chat_template=True"
                )
    return items


def _conversations(items: list[Any], first: int) -> list[list[dict[str, Any]]]:
    if are_plain(items):
        return items
    return [
        check_messages(user_message(item) if isinstance(item, str) else item, f"prompts[{i}]")
        for i, item in enumerate(items, start=first)
    ]


def _template_columns(
    columns: Mapping[str, Sequence[Any]], count: int, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Sequence[Any]]:
    """The columns with arguments of the chat template."""
    given = {name: columns[name] for name in OPTION_COLUMNS if name in columns}
    if "tools" in given and not takes_tools(tokenizer):
        warn_no_tools()
        del given["tools"]
    # The constructor names a column of another length.
    return {name: column for name, column in given.items() if len(column) == count}


def _options(given: Mapping[str, Sequence[Any]], i: int) -> dict[str, Any]:
    return chat_options({name: column[i] for name, column in given.items()}, f"prompts[{i}]")
