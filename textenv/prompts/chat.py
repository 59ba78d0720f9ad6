"""Conversations as token ids, with a mask of the assistant's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textenv.prompts.continuations import encode_continuations
from textenv.prompts.messages import around, check_messages, render, turn_end
from textenv.prompts.token_ids import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TURNS",
    "SplitConversation",
    "check_messages",
    "encode_conversation",
    "encode_split",
    "split_conversation",
]

TURNS = ("last", "all")


@dataclass(frozen=True)
class SplitConversation:
    """A conversation as texts: the prompt, then the assistant's texts and the texts between them."""

    prompt: str
    """The text up to the start of the assistant's turn, as a policy sees it."""
    parts: tuple[tuple[str, bool], ...]
    """(text, whether it is the assistant's), in order; the last one is the assistant's."""
    ended: bool
    """The last part ends with the special token by which the template ends a turn."""


def split_conversation(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    turns: str = "last",
    options: Mapping[str, Any] | None = None,
) -> SplitConversation:
    """Split a conversation at the assistant's trained turns.

    Texts are compared, not ids, because tokens may merge across the boundary. A turn ends with the first
    special token after its content (the tokenizer's EOS, or an end of turn); text after it in the turn, such
    as a line break, is not the assistant's, and is dropped after the last turn. If the template opens a
    thinking block in its generation prompt and omits it from finished turns, the content of the message must
    start with the block; the answer is the text after it.

    Args:
        messages: the last one must be the assistant's.
        tokenizer: a transformers tokenizer with a chat template.
        turns: which turns are actions: the assistant's "last" one, or "all" of them.
        options: further arguments of the template; see ``textenv.prompts.messages.chat_options``.

    Raises:
        ValueError: if there is no turn to train on, or the template changes earlier turns when a conversation
            continues, so that the text does not start with what the policy saw.
    """
    if turns not in TURNS:
        raise ValueError(f"turns must be one of {TURNS}, got {turns!r}")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message must be the assistant's, got the role {messages[-1]['role']!r}")
    spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    spoken = spoken[-1:] if turns == "last" else spoken
    if spoken[0] == 0:
        raise ValueError("the assistant's turn has no message before it, so there is no prompt")
    prompt: str | None = None
    text, parts, ended = "", [], False
    for i in spoken:
        before = render(messages[:i], tokenizer, generation_prompt=True, options=options)
        if not before.startswith(text):
            raise _rewritten(i)
        answer, ended = _answer(messages, i, before, tokenizer, options)
        if prompt is None:
            prompt = before
        else:
            parts.append((before[len(text) :], False))
        parts.append((answer, True))
        text = before + answer
    return SplitConversation(prompt or "", tuple(parts), ended)


def _answer(
    messages: Sequence[Mapping[str, Any]],
    i: int,
    before: str,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any] | None,
) -> tuple[str, bool]:
    """The assistant's text in message i after ``before``, and whether a special token ends it."""
    closed = render(messages[: i + 1], tokenizer, generation_prompt=False, options=options)
    probed = around(messages[: i + 1], tokenizer, generation_prompt=False, options=options)
    header, after = (None, "") if probed is None or not closed.endswith(probed[1]) else probed
    if closed.startswith(before) and not after:
        answer = closed[len(before) :]
        end = turn_end(answer, tokenizer)
        return answer[:end], end is not None
    end = turn_end(after, tokenizer)
    tail = after[:end]
    if closed.startswith(before):
        return closed[len(before) : len(closed) - len(after)] + tail, end is not None
    if header is None or not before.startswith(header):
        raise _rewritten(i)
    opened, content = before[len(header) :], str(messages[i].get("content") or "").lstrip()
    if opened.strip() and content.startswith(opened.strip()):
        content = content.removeprefix(opened.strip())
        return content.removeprefix(opened[len(opened.rstrip()) :]) + tail, end is not None
    raise ValueError(
        f"the chat template's generation prompt opens the assistant's turn with {opened!r}, and what it "
        f"makes of message {i} does not begin so: begin the message with {opened.strip()!r}, as the policy "
        "would go on from it, or give chat_template_kwargs or a template that do not open it"
    )


def _rewritten(i: int) -> ValueError:
    return ValueError(
        f"the chat template renders the conversation up to message {i} differently once it goes on, so its "
        "turns cannot be told apart; try turns='last' or another template"
    )


def encode_split(
    conversations: Sequence[SplitConversation], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], list[int], list[bool]]]:
    """Tokenise B conversations, each part separately, as in a rollout.

    Returns:
        B triples (prompt ids, response ids, is_action): one bool per response id.
    """
    if not conversations:
        return []
    prompts = token_ids(
        [each.prompt for each in conversations], tokenizer, special=False, name="conversations"
    )
    contexts = [
        said for each in conversations for said in (each.prompt, *(text for text, _ in each.parts[:-1]))
    ]
    parts = [part for each in conversations for part in each.parts]
    texts = [text for text, _ in parts]
    try:
        encoded = iter(encode_continuations(contexts, texts, tokenizer))
    except Exception:
        token_ids(texts, tokenizer, special=False, name="turns")  # names the one that can't be tokenised
        raise
    found = []
    for each, prompt in zip(conversations, prompts, strict=True):
        response: list[int] = []
        is_action: list[bool] = []
        for _, chosen in each.parts:
            ids = next(encoded)
            response += ids
            is_action += [chosen] * len(ids)
        found.append((list(prompt), response, is_action))
    return found


def encode_conversation(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, turns: str = "last"
) -> tuple[list[int], list[int], list[bool]]:
    """Split one conversation and tokenise it; see ``split_conversation`` and ``encode_split``.

    Raises:
        ValueError: if the conversation cannot be split.
    """
    return encode_split([split_conversation(messages, tokenizer, turns=turns)], tokenizer)[0]
