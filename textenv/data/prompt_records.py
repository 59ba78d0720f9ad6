"""Read the prompts and the other columns of records."""

from __future__ import annotations

from typing import Any

from textenv.data.record_warnings import Repeats
from textenv.data.records import ColumnBlock, Records
from textenv.prompts.columns import Column, Columns


def read_prompts(
    records: Records, *, limit: int | None = None, open_turns: bool = False, alike: bool = False
) -> tuple[Column, dict[str, Column]]:
    """Read the prompts and all other columns.

    Args:
        records: with the column ``prompt`` (text or messages) or ``messages`` (a last turn of the assistant
            is dropped).
        limit: read only the first ``limit`` records.
        open_turns: drop a last turn of the assistant in ``prompt``, too.
        alike: require that all prompts are texts or all are messages.

    Returns:
        (prompts, {name of another column: its values}).

    Raises:
        ValueError: if a prompt is missing or empty. The message names the place.
        TypeError: if a prompt has the wrong type, or texts and messages are mixed although ``alike`` is set.
            The message names the place.

    Warns:
        UserWarning: if prompts repeat; it gives their number.
    """
    by_messages = "prompt" not in records.columns and "messages" in records.columns
    name = "messages" if by_messages else "prompt"
    prompts, others, seen = Column(), Columns(), Repeats(records.name, "prompt")
    is_text: bool | None = None
    for block in records.require(name).blocks(limit):
        found = block.columns.pop(name)
        if set(map(type, found)) != {str} or (alike and is_text is False):
            for i, prompt in enumerate(found):
                if open_turns or by_messages:
                    found[i] = _opened(prompt, block, i)
                is_text = isinstance(prompt, str) if is_text is None else is_text
                if alike and isinstance(prompt, str) != is_text:
                    kind = type(prompt).__name__
                    raise TypeError(
                        f"{block.place(i)}: prompts must be all texts or all messages, got {kind}"
                    )
        is_text = isinstance(found[0], str) if is_text is None else is_text
        prompts.extend(found)
        seen.extend(found)
        others.extend(block.columns, block.count)
    seen.warn(stacklevel=4)
    return prompts, others.values


def _opened(prompt: Any, block: ColumnBlock, i: int) -> Any:
    """A conversation without a last turn of the assistant, because the policy generates that turn."""
    if isinstance(prompt, str) or prompt[-1]["role"] != "assistant":
        return prompt
    if len(prompt) == 1:
        raise ValueError(f"{block.place(i)}: messages hold the assistant's turn alone, so there is no prompt")
    return prompt[:-1]
