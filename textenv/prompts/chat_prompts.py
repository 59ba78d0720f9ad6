"""Chat prompts as token ids that fit a token budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textenv.prompts.continuations import encode_continuations
from textenv.prompts.messages import around, opened_turn, render, render_all
from textenv.prompts.token_ids import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_chats(
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    options: Sequence[Mapping[str, Any]] | None = None,
    max_prompt_tokens: int | None = None,
    truncation_side: str = "left",
    first: int = 0,
) -> tuple[list[str], list[list[int]], int]:
    """Render P conversations with the assistant's turn opened, and tokenise them.

    The template contains special tokens, so the tokenizer adds none. A conversation that is too long loses
    its earliest messages (except a system message at the start), up to the next user message, until it fits.
    If the last message alone is too long, its content is cut; BOS, roles and the start of the turn stay. If
    template and system message alone are too long, their beginning is cut, except BOS.

    Args:
        conversations: P lists of checked messages.
        tokenizer: with a chat template.
        options: P dicts of further arguments of the template.
        max_prompt_tokens: maximum number of tokens of a prompt.
        truncation_side: "left" cuts the beginning of the last message's content, "right" its end; "error"
            raises a ValueError if a prompt is too long.
        first: index of the first conversation, for errors.

    Returns:
        (P texts, P lists of ids, number of prompts without any content of their messages).

    Raises:
        ValueError: if there is no chat template, or a prompt is too long and cannot be cut.
    """
    texts = render_all(conversations, tokenizer, options=options, first=first)
    encoded = token_ids(texts, tokenizer, special=False, name="prompts", first=first)
    limit, bare = max_prompt_tokens, 0
    for i, ids in enumerate(encoded):
        if limit is None or len(ids) <= limit:
            continue
        if truncation_side == "error":
            raise ValueError(
                f"prompts[{first + i}] has {len(ids)} tokens, expected at most max_prompt_tokens={limit}"
            )
        own = {} if options is None else options[i]
        budget = _Budget(tokenizer, own, limit, truncation_side, f"prompts[{first + i}]")
        texts[i], encoded[i], nothing_left = _fitted(conversations[i], budget)
        bare += nothing_left
    return texts, encoded, bare


@dataclass(frozen=True)
class _Budget:
    """How a conversation is rendered, and its maximum length."""

    tokenizer: PreTrainedTokenizerBase
    options: Mapping[str, Any]
    """Further arguments of the template."""
    limit: int
    """Maximum number of tokens."""
    side: str
    """Side of the last message's content that is cut: its beginning ("left") or its end ("right")."""
    name: str
    """Name of the prompt, for errors."""

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return render(messages, self.tokenizer, generation_prompt=True, options=self.options)

    def ids(self, text: str) -> list[int]:
        return token_ids([text], self.tokenizer, special=False, name=self.name)[0]


def _fitted(messages: Sequence[Mapping[str, Any]], budget: _Budget) -> tuple[str, list[int], bool]:
    """A conversation that fits: text, ids, and whether no message is left."""
    kept = int(messages[0]["role"] == "system")
    while True:
        text = budget.render(messages)
        ids = budget.ids(text)
        if len(ids) <= budget.limit:
            return text, ids, False
        later = (j for j in range(kept + 1, len(messages)) if messages[j]["role"] == "user")
        start = next(later, None)
        if start is None:
            return _cut_last(messages, text, budget)
        messages = [*messages[:kept], *messages[start:]]


def _cut_last(
    messages: Sequence[Mapping[str, Any]], text: str, budget: _Budget
) -> tuple[str, list[int], bool]:
    """Cut inside the content of the last message; see ``_fitted``."""
    tokenizer, options, limit, name = budget.tokenizer, budget.options, budget.limit, budget.name
    probed = around(messages, tokenizer, generation_prompt=True, options=options)
    head, tail = ("", "") if probed is None else probed
    length = len(text) - len(head) - len(tail)
    if probed is None or length < 1 or not (text.startswith(head) and text.endswith(tail)):
        raise ValueError(
            f"{name} is longer than max_prompt_tokens={limit}, and the chat template does not write the "
            "content of its last message in one piece, so it cannot be cut"
        )
    content = text[len(head) : len(head) + length]
    if budget.side == "right":  # in many vocabularies a space belongs to the word after it
        head, content = head.rstrip(" "), head[len(head.rstrip(" ")) :] + content
    first = budget.ids(head)
    middle, last = encode_continuations([head, content], [content, tail], tokenizer)
    room = limit - len(first) - len(last)
    if room > 0:
        ids = [*first, *(middle[:room] if budget.side == "right" else middle[-room:]), *last]
    else:
        bos = int(first[:1] == [tokenizer.bos_token_id])
        opened = opened_turn(messages, tokenizer, options=options)
        needed = bos + len(encode_continuations([content], [opened], tokenizer)[0])
        if limit < needed:
            raise ValueError(
                f"{name} needs {needed} tokens for BOS and the opened turn of the assistant alone, got "
                f"max_prompt_tokens={limit}"
            )
        ids = [*first, *last]
        ids = [*ids[:bos], *ids[len(ids) - limit + bos :]]
    return tokenizer.batch_decode([ids], skip_special_tokens=False)[0], ids, room < 1
