"""The task "prompts": prompts of one's own, from a file, a data set, the hub or a list."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textenv.tasks.registry import register_task
from textenv.tasks.tables import Table, read_table
from textenv.tasks.task import TaskData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MAX_NEW_TOKENS = 64


@register_task("prompts")
def build_prompts(
    split: str = "train",
    data: Any = None,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    prompt_column: str | None = None,
    rewards: Sequence[Any] = (),
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    max_prompt_tokens: int | None = None,
    limit: int | None = None,
) -> TaskData:
    """Your own prompts: a file, data set, hub id or list; further columns reach the rewards.

    Args:
        split: of a hub id, DatasetDict or saved folder; a single file or list serves every split.
        data: what ``read_table`` reads, with a column "prompt" (text) or "messages" (for a chat template).
        tokenizer: a name, a folder or an object; required.
        prompt_column: another name for the column of prompts.
        rewards: reward specs.
        max_new_tokens: token budget of a response.
        max_prompt_tokens: longer prompts are cut.
        limit: use only the first so many rows.

    Raises:
        ValueError: if data or tokenizer is missing, there is no column of prompts, or a prompt is not text
            (naming file and line).

    Example:
        >>> from textenv.tasks.letters import letter_tokenizer
        >>> rows = [{"prompt": "ab", "answer": "c"}]
        >>> data = build_prompts(data=rows, tokenizer=letter_tokenizer("abc"))
        >>> data.prompts, data.columns
        (['ab'], {'answer': ['c']})
    """
    if data is None:
        raise ValueError(
            "task 'prompts' needs data: a file, folder, hub id, data set, list or mapping of columns"
        )
    if tokenizer is None:
        raise ValueError("task 'prompts' needs a tokenizer: a name, a folder or an object")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be >= 1, got {limit}")
    table = read_table(data, split=split)
    name = _prompt_column(table, prompt_column)
    rows = len(table) if limit is None else min(limit, len(table))
    prompts = table[name][:rows]
    for i, prompt in enumerate(prompts):
        _check_prompt(prompt, name, table.where(i))
    return TaskData(
        prompts=prompts,
        columns={other: column[:rows] for other, column in table.columns.items() if other != name},
        tokenizer=load_tokenizer(tokenizer),
        rewards=list(rewards),
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
    )


def load_tokenizer(tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer by name or folder; an object passes through.

    Raises:
        ValueError: if it can't be loaded.
        TypeError: if it is neither a name nor a tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if not isinstance(tokenizer, str | os.PathLike):
        raise TypeError(f"tokenizer must be a name, a folder or a tokenizer, got {type(tokenizer).__name__}")
    try:
        return AutoTokenizer.from_pretrained(os.fspath(tokenizer))
    except Exception as error:  # loading fails in many ways, and none of their messages names the argument
        raise ValueError(f"tokenizer {os.fspath(tokenizer)!r} can't be loaded: {error}") from error


def _prompt_column(table: Table, wanted: str | None) -> str:
    if wanted is not None:
        table[wanted]  # raises with the columns there are
        return wanted
    for name in ("prompt", "messages"):
        if name in table:
            return name
    raise ValueError(
        f"{table.source} must have a column 'prompt' or 'messages', got {', '.join(table.columns)}; "
        "name another one with prompt_column"
    )


def _check_prompt(prompt: Any, name: str, where: str) -> None:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"{where}: {name!r} is empty")
        return
    messages = isinstance(prompt, Sequence) and len(prompt) > 0
    if not messages or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in prompt):
        raise ValueError(
            f"{where}: {name!r} must be a text or a list of messages (each with 'role' and 'content'), "
            f"got {prompt!r}"
        )
