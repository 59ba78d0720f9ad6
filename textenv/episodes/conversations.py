"""The prompts of episodes as conversations, for rewards that read messages. Shape letter: B episodes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textenv.episodes.batch import EpisodeBatch
from textenv.prompts.conversations import MESSAGES, USER_TEXT, user_message
from textenv.prompts.messages import OPTION_COLUMNS, chat_options, opened_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


OPENING, TURNS, REPLIES = "opening", "turns", "replies"
LAST_REPLY, STOP_REASON = "last_reply", "stop_reason"
ERRORS, TIMEOUTS = "partner_errors", "partner_timeouts"
TURN_EXTRAS = (OPENING, TURNS, REPLIES, LAST_REPLY, STOP_REASON, ERRORS, TIMEOUTS)
"""Columns that episodes of several turns add to ``EpisodeBatch.extras``: what the partner said at first, the
policy's turns as texts, the partner's replies, the reply that was not appended, why the episode ended, and
the numbers of failed calls."""


def is_chat(episodes: EpisodeBatch) -> bool:
    """Whether the prompts of these episodes were given as messages."""
    return MESSAGES in episodes.extras


def prompt_messages(episodes: EpisodeBatch, tokenizer: PreTrainedTokenizerBase) -> list[list[dict[str, Any]]]:
    """The B prompts as messages, copies that the caller may change.

    A prompt that was given as a text counts as one message of the user.

    Args:
        episodes: B episodes.
        tokenizer: the tokenizer of the ids; used for prompts that were neither given as messages nor rendered
            by a chat template.
    """
    if MESSAGES in episodes.extras:
        return [copy.deepcopy(list(messages)) for messages in episodes.extras[MESSAGES]]
    texts = episodes.extras.get(USER_TEXT)
    return [user_message(text) for text in (episodes.prompt_texts(tokenizer) if texts is None else texts)]


def template_options(episodes: EpisodeBatch) -> list[dict[str, Any]]:
    """Per episode, the options of the chat template: columns ``tools`` and ``chat_template_kwargs``."""
    columns = {name: episodes.extras[name] for name in OPTION_COLUMNS if name in episodes.extras}
    return [
        chat_options({name: column[i] for name, column in columns.items()}, f"episode {i}")
        for i in range(len(episodes))
    ]


def generation_prompts(episodes: EpisodeBatch, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    r"""The end of each prompt, with which the chat template opens the assistant's turn: B texts.

    For example ``<|im_start|>assistant\n``, followed by ``<think>\n`` if the template opens a thinking block
    (then the completion does not contain it). Empty if no template rendered the prompt.
    """
    if MESSAGES not in episodes.extras and USER_TEXT not in episodes.extras:
        return [""] * len(episodes)
    chats = zip(prompt_messages(episodes, tokenizer), template_options(episodes), strict=True)
    return [opened_turn(messages, tokenizer, options=options) for messages, options in chats]


def completion_messages(episodes: EpisodeBatch, texts: Sequence[str]) -> list[list[dict[str, Any]]]:
    """B completions as messages: the assistant's, and in episodes of several turns the replies between them.

    Args:
        episodes: B episodes.
        texts: their completions.
    """
    if TURNS not in episodes.extras:
        return [[{"role": "assistant", "content": text}] for text in texts]
    conversations = []
    for turns, replies in zip(episodes.extras[TURNS], episodes.extras[REPLIES], strict=True):
        messages = []
        for i, text in enumerate(turns):
            messages.append({"role": "assistant", "content": text})
            if i < len(turns) - 1:  # the last reply is not part of the episode
                messages.append({"role": replies[i]["role"], "content": replies[i]["text"]})
        conversations.append(messages)
    return conversations
