"""Check messages and render them with the tokenizer's chat template."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from textenv.utils.names import listed, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPTION_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns that are passed to the chat template: JSON schemas of tools, and further arguments."""
_AT_ONCE = 64
"""Number of conversations rendered at once. More copies at a time would start Python's garbage collector."""
_PLAIN = {("role", "content"), ("content", "role")}
_RESERVED = ("conversation", "tokenize", "add_generation_prompt", "continue_final_message", "tools")


def check_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """Check a conversation, and return it without the keys whose value is None.

    A message of the assistant with ``tool_calls`` needs no content. Each call has a name and arguments, at
    its top level or under "function". Data sets that have the same keys in all rows fill unused keys with
    None.

    Args:
        messages: a list of dicts with ``role`` and ``content``.
        where: the place of the conversation, for errors.

    Raises:
        ValueError: if the list is empty, or a role, content, or part of a tool call is missing.
        TypeError: if ``messages`` is not a list of dicts, or a role or content is not a string.

    Example:
        >>> check_messages([{"role": "user", "content": "Hi", "name": None}], "row 0: prompt")
        [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"{where} must be a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ValueError(f"{where} must have at least one message, got an empty list")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(
                f"{where}[{i}] must be a dict with 'role' and 'content', got {type(message).__name__}"
            )
        calls = message.get("tool_calls")
        if calls is not None and (isinstance(calls, str | Mapping) or not isinstance(calls, Sequence)):
            raise TypeError(f"{where}[{i}]['tool_calls'] must be a list, got {type(calls).__name__}")
        for j, call in enumerate(calls or ()):
            _check_call(call, f"{where}[{i}]['tool_calls'][{j}]", message.get("content"))
        for key in ("role", "content"):
            value = message.get(key)
            if value is None and key == "content" and calls:
                continue
            if value is None:
                there = (
                    f"it is None in {shown(dict(message))}" if key in message else f"it has {_keys(message)}"
                )
                raise ValueError(f"{where}[{i}] has no {key!r}; {there}")
            if not isinstance(value, str):
                raise TypeError(f"{where}[{i}][{key!r}] must be a string, got {type(value).__name__}")
        kept = {key: value for key, value in message.items() if value is not None}
        checked.append({**kept, "content": None} if kept.get("content") is None else kept)
    return checked


def are_plain(conversations: Sequence[Any]) -> bool:
    """Whether all are lists of dicts with only ``role`` and ``content``, which ``check_messages`` accepts.

    >>> are_plain([[{"role": "user", "content": "Hi"}]]), are_plain([[{"role": "user", "content": None}]])
    (True, False)
    """
    if set(map(type, conversations)) != {list} or not all(conversations):
        return False
    messages = list(chain.from_iterable(conversations))
    return (
        set(map(type, messages)) == {dict}
        and set(map(tuple, messages)) <= _PLAIN
        and set(map(type, chain.from_iterable(map(dict.values, messages)))) == {str}
    )


def _check_call(call: Any, where: str, content: Any) -> None:
    """Check a tool call: a name, and arguments (a dict, or a JSON text of one)."""
    function = call.get("function") or call if isinstance(call, Mapping) else call
    if not isinstance(function, Mapping):
        raise TypeError(f"{where} must be a dict with 'name' and 'arguments', got {shown(call)}")
    beside = " beside content None" if content is None else ""
    for key, kinds in (("name", (str,)), ("arguments", (Mapping, str))):
        value = function.get(key)
        if value is None:
            raise ValueError(f"{where}{beside} has no {key!r}; it has {_keys(function)}")
        if not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{where}[{key!r}] must be {expected}, got {shown(value)}")


def _keys(message: Mapping[Any, Any]) -> str:
    return listed(map(repr, message)) or "no key"


def chat_options(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments of the chat template from the columns ``tools`` and ``chat_template_kwargs`` of a row.

    Args:
        row: a record; both columns are optional. ``tools`` is a list of JSON schemas or, as in TRL, the JSON
            text of such a list.
        where: the place of the row, for errors.

    Raises:
        ValueError: if ``tools`` is not valid JSON, or ``chat_template_kwargs`` has an argument that this
            library sets.
        TypeError: if a value has the wrong type.

    Example:
        >>> chat_options({"tools": '[{"type": "function"}]', "answer": 3}, "row 0")
        {'tools': [{'type': 'function'}]}
    """
    options: dict[str, Any] = {}
    given = row.get("chat_template_kwargs")
    if given is not None:
        if not isinstance(given, Mapping):
            raise TypeError(f"{where}: chat_template_kwargs must be a dict, got {type(given).__name__}")
        if reserved := [name for name in given if name in _RESERVED]:
            raise ValueError(f"{where}: chat_template_kwargs must not hold {reserved}")
        options.update(given)
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(f"{where}: tools must be valid JSON, got {shown(tools)}: {error}") from error
    if not tools:
        return options
    if isinstance(tools, Mapping) or not isinstance(tools, Sequence):
        raise TypeError(f"{where}: tools must be a list of JSON schemas, got {type(tools).__name__}")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise TypeError(f"{where}: tools[{i}] must be a JSON schema (a dict), got {shown(tool)}")
    return {**options, "tools": [dict(tool) for tool in tools]}


def takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template uses the variable ``tools``."""
    return "tools" in str(tokenizer.chat_template)


def warn_no_tools() -> None:
    """Warn that the column ``tools`` is not used.

    Warns:
        UserWarning: always.
    """
    warnings.warn(
        "the chat template does not use tools, so the column tools is not in the prompts", stacklevel=4
    )


def render(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    generation_prompt: bool,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Render a conversation with the chat template.

    Args:
        messages: see ``check_messages``.
        tokenizer: with a chat template.
        generation_prompt: append the generation prompt, the start of an assistant turn.
        options: further arguments of the template; see ``chat_options``.

    Returns:
        The text of the conversation.

    Raises:
        ValueError: if the tokenizer has no chat template, or the template raises an error.
    """
    from jinja2 import TemplateError

    try:
        text = _apply([messages], tokenizer, generation_prompt, options)[0]
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise ValueError(
            f"the chat template does not accept a conversation with the roles {roles}: {error}"
        ) from error
    return text


def render_all(
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    options: Sequence[Mapping[str, Any]] | None = None,
    first: int = 0,
) -> list[str]:
    """Render n prompts, each with the generation prompt; in batches if all have the same options.

    Args:
        conversations: n lists of messages.
        tokenizer: with a chat template.
        options: n dicts of further arguments of the template.
        first: index of the first conversation, for errors.

    Returns:
        n texts.

    Raises:
        ValueError: if the tokenizer has no chat template, or the template raises an error. The message names
            the prompt.
    """
    from jinja2 import TemplateError

    if options is None or all(own == options[0] for own in options):
        own = options[0] if options else None
        try:
            return [
                text
                for start in range(0, len(conversations), _AT_ONCE)
                for text in _apply(conversations[start : start + _AT_ONCE], tokenizer, True, own)
            ]
        except (TemplateError, ValueError):
            pass  # one by one, to find the prompt that fails
    texts = []
    for i, messages in enumerate(conversations):
        own = None if options is None else options[i]
        try:
            texts.append(render(messages, tokenizer, generation_prompt=True, options=own))
        except ValueError as error:
            raise ValueError(f"prompts[{first + i}]: {error}") from error
    return texts


def _apply(
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    generation_prompt: bool,
    options: Mapping[str, Any] | None,
) -> list[str]:
    if tokenizer.chat_template is None:
        raise ValueError("messages need a tokenizer with a chat template, and this tokenizer has none")
    copies = [[dict(message) for message in messages] for messages in conversations]
    texts: Any = tokenizer.apply_chat_template(
        copies, tokenize=False, add_generation_prompt=generation_prompt, **(options or {})
    )
    return texts


def special_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of all special tokens except the unknown token."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    found = dict.fromkeys([*map(str, tokenizer.all_special_tokens), *added])
    return [token for token in found if token and token != tokenizer.unk_token]


PROBE = "textenv"
"""Placeholder for a message's content, to find the text that the template writes around the content."""


def around(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    generation_prompt: bool,
    options: Mapping[str, Any] | None = None,
) -> tuple[str, str] | None:
    """(text before, text after) the last message's content; None if the template omits the content."""
    last = {"role": messages[-1]["role"], "content": PROBE}
    text = render([*messages[:-1], last], tokenizer, generation_prompt=generation_prompt, options=options)
    before, found, after = text.rpartition(PROBE)
    return (before, after) if found else None


def turn_end(after: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """End of the first special token in ``after`` (the text after the assistant's content), or None."""
    found = [(after.find(token), token) for token in special_texts(tokenizer) if token in after]
    if not found:
        return None
    start = min(place for place, _ in found)
    return start + max(len(token) for place, token in found if place == start)


def opened_turn(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    options: Mapping[str, Any] | None = None,
) -> str:
    """The generation prompt: the text that the template appends to start the assistant's turn.

    If the template does not simply append it to the conversation, this is all text after the content of the
    last message.
    """
    text = render(messages, tokenizer, generation_prompt=True, options=options)
    closed = render(messages, tokenizer, generation_prompt=False, options=options)
    if text.startswith(closed) and len(text) > len(closed):
        return text[len(closed) :]
    probed = around(messages, tokenizer, generation_prompt=True, options=options)
    return "" if probed is None else probed[1]
