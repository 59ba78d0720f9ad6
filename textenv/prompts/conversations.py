"""Prompts given as conversations: a column keeps the messages, for rewards that read them.

Shape letter: P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textenv.prompts.columns import Column, all_texts

MESSAGES = "prompt_messages"
"""Column of prompts and episodes: the messages of prompts that were given as messages."""
USER_TEXT = "prompt_text"
"""Column of prompts and episodes: the text of prompts that the chat template rendered as one user message."""


def conversation_columns(
    prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """The column with the prompts before the chat template rendered them.

    Args:
        prompts: P texts, or lists of messages; a text among messages counts as a user's message.
        columns: the existing columns.

    Returns:
        ``prompt_messages``, or ``prompt_text`` where all prompts are texts.

    Raises:
        ValueError: if there is a column of that name.
    """
    texts = all_texts(prompts)
    name = USER_TEXT if texts else MESSAGES
    _check_free(name, columns)
    if isinstance(prompts, Column) and (texts or prompts.all_are(list)):
        return {name: prompts}
    kept: list[Any] = [
        prompt if texts else user_message(prompt) if isinstance(prompt, str) else [dict(m) for m in prompt]
        for prompt in prompts
    ]
    return {name: Column(kept)}


def joined_columns(
    parts: Sequence[Mapping[str, Sequence[Any]]], columns: Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
    """Join the columns of ``conversation_columns`` for several parts of a data set.

    Args:
        parts: one dictionary each, empty where no chat template rendered the part.
        columns: the other columns of the data.

    Returns:
        ``prompt_messages``, ``prompt_text`` where all prompts are texts, or nothing.

    Raises:
        TypeError: if some parts are texts that no template rendered, and others are messages.
        ValueError: if there is a column of that name.

    Example:
        >>> joined_columns([{"prompt_text": ["a"]}, {"prompt_text": ["b"]}], {})
        {'prompt_text': ['a', 'b']}
    """
    names = {name for part in parts for name in part}
    if not names:
        return {}
    if not all(parts):
        raise TypeError("prompt and completion must both be texts or both messages, in all records alike")
    name = MESSAGES if MESSAGES in names else USER_TEXT
    _check_free(name, columns)
    joined: list[Any] = []
    for part in parts:
        texts = name == MESSAGES and USER_TEXT in part
        joined += [user_message(text) for text in part[USER_TEXT]] if texts else part[name]
    return {name: joined}


def _check_free(name: str, columns: Mapping[str, Sequence[Any]]) -> None:
    if name in columns:
        raise ValueError(
            f"the column {name!r} is reserved for the prompts before the chat template; rename it in the data"
        )


def user_message(text: str) -> list[dict[str, Any]]:
    """A conversation of one message, the user's."""
    return [{"role": "user", "content": text}]
