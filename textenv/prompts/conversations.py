"""Prompts that are conversations: the messages are kept beside the tokens, for rewards that read messages.

Shape letters: P prompts, B episodes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textenv.prompts.columns import Column, all_texts
from textenv.prompts.messages import OPTION_COLUMNS, chat_options, opened_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from textenv.episodes.batch import EpisodeBatch

MESSAGES = "prompt_messages"
"""Column of prompts and episodes: the messages of prompts that were given as messages."""
USER_TEXT = "prompt_text"
"""Column of prompts and episodes: the text of prompts that the chat template made a user's message of."""


def conversation_columns(
    prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]
) -> dict[str, Sequence[Any]]:
    """The column that keeps what prompts were before the chat template rendered them.

    Args:
        prompts: P texts, or lists of messages; a text among messages counts as a user's message.
        columns: the columns that there are.

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
    """What ``conversation_columns`` gave for several parts of a data set, as one column.

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
            f"the column {name!r} keeps what chat prompts were made of; rename the one in the data"
        )


def user_message(text: str) -> list[dict[str, Any]]:
    """A conversation of one message, the user's."""
    return [{"role": "user", "content": text}]


def is_chat(episodes: EpisodeBatch) -> bool:
    """Whether the prompts of these episodes were given as messages."""
    return MESSAGES in episodes.extras


def prompt_messages(episodes: EpisodeBatch, tokenizer: PreTrainedTokenizerBase) -> list[list[dict[str, Any]]]:
    """The B prompts as messages, copies that the caller may change.

    Messages come back as they were given; a text counts as one message of the user.

    Args:
        episodes: B episodes.
        tokenizer: that the tokens belong to; needed for prompts that were neither given as messages nor
            rendered by a chat template.
    """
    if MESSAGES in episodes.extras:
        return [copy.deepcopy(list(messages)) for messages in episodes.extras[MESSAGES]]
    texts = episodes.extras.get(USER_TEXT)
    return [user_message(text) for text in (episodes.prompt_texts(tokenizer) if texts is None else texts)]


def template_options(episodes: EpisodeBatch) -> list[dict[str, Any]]:
    """What the columns ``tools`` and ``chat_template_kwargs`` say to the chat template, for B episodes."""
    columns = {name: episodes.extras[name] for name in OPTION_COLUMNS if name in episodes.extras}
    return [
        chat_options({name: column[i] for name, column in columns.items()}, f"episode {i}")
        for i in range(len(episodes))
    ]


def generation_prompts(episodes: EpisodeBatch, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    r"""What the chat template wrote at the end of each prompt to open the assistant's turn: B texts.

    Such as ``<|im_start|>assistant\n``, with ``<think>\n`` behind it where the template opens a thinking
    block, which the completion then does not hold. Empty where no template rendered the prompt.
    """
    if MESSAGES not in episodes.extras and USER_TEXT not in episodes.extras:
        return [""] * len(episodes)
    chats = zip(prompt_messages(episodes, tokenizer), template_options(episodes), strict=True)
    return [opened_turn(messages, tokenizer, options=options) for messages, options in chats]


def completion_messages(texts: Sequence[str]) -> list[list[dict[str, Any]]]:
    """B completions as lists of one message, the assistant's."""
    return [[{"role": "assistant", "content": text}] for text in texts]
