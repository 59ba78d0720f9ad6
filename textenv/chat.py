"""Conversations as token ids: the tokenizer's chat template, and which of its tokens the assistant chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textenv.names import listed, shown
from textenv.token_ids import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURNS = ("last", "all")


def check_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """Return the messages, or say what is wrong with them.

    Raises:
        ValueError: if there is none, or a role or content is missing.
        TypeError: if it is not a list of dicts with text.

    Example:
        >>> check_messages([{"role": "user", "content": "Hi"}], "row 0: prompt")
        [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"{where} must be a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ValueError(f"{where} holds no message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(
                f"{where}[{i}] must be a dict with 'role' and 'content', got {type(message).__name__}"
            )
        for key in ("role", "content"):
            if message.get(key) is None:
                there = (
                    f"it is None in {shown(dict(message))}" if key in message else f"it has {_keys(message)}"
                )
                raise ValueError(f"{where}[{i}] has no {key!r}; {there}")
            if not isinstance(message[key], str):
                raise TypeError(f"{where}[{i}][{key!r}] must be a string, got {type(message[key]).__name__}")
    return [dict(message) for message in messages]


def _keys(message: Mapping[Any, Any]) -> str:
    return listed(map(repr, message)) or "no key"


def render_messages(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, generation_prompt: bool
) -> list[int]:
    """The ids of a conversation; with ``generation_prompt`` the assistant's turn is opened.

    Raises:
        ValueError: if the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError("messages need a tokenizer with a chat template, and this tokenizer has none")
    conversation = [dict(message) for message in messages]
    text = tokenizer.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=generation_prompt
    )
    assert isinstance(text, str)
    return token_ids([text], tokenizer, special=False, name="rendered messages")[0]


def encode_conversation(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, turns: str = "last"
) -> tuple[list[int], list[int], list[bool]]:
    """Split a conversation at the assistant's first trained turn.

    Args:
        messages: the last one must be the assistant's.
        tokenizer: a transformers tokenizer with a chat template.
        turns: whose tokens are actions: the assistant's "last" turn, or "all" its turns.

    Returns:
        (prompt ids, response ids, is_action): ``is_action`` has one bool per response id; what other speakers
        say between the assistant's turns is False. A turn ends with EOS where the template writes one; what
        the template puts after it (a line break, say) is no action, and is dropped after the last turn.

    Raises:
        ValueError: if there is no turn to train on, or the template rewrites earlier turns as a conversation
            goes on, so that no prefix of the ids is what the policy saw.
    """
    if turns not in TURNS:
        raise ValueError(f"turns must be one of {TURNS}, got {turns!r}")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message must be the assistant's, got the role {messages[-1]['role']!r}")
    spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spoken = spoken[-1:] if turns == "last" else spoken
    if spoken[0] == 0:
        raise ValueError("the assistant's turn has no message before it, so there is no prompt")
    whole = render_messages(messages, tokenizer, generation_prompt=False)
    is_action = [False] * len(whole)
    end = start = 0
    for i in spoken:
        before = render_messages(messages[:i], tokenizer, generation_prompt=True)
        after = (
            whole
            if i + 1 == len(messages)
            else render_messages(messages[: i + 1], tokenizer, generation_prompt=False)
        )
        if whole[: len(before)] != before or whole[: len(after)] != after:
            raise ValueError(
                f"the chat template renders the conversation up to message {i} differently once it goes on, "
                "so its tokens cannot be told apart; try turns='last' or another template"
            )
        end = len(after)
        if tokenizer.eos_token_id in after[len(before) :]:
            end = after.index(tokenizer.eos_token_id, len(before)) + 1
        is_action[len(before) : end] = [True] * (end - len(before))
        start = start or len(before)
    return whole[:start], whole[start:end], is_action[start:end]
