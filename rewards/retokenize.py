"""Prompt and response as a text in another model's format and tokens. Shape letters: B episodes."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.modeling.pretrained import load_pretrained
from textenv.modeling.saved_runs import model_folder
from textenv.prompts.conversations import user_message
from textenv.prompts.messages import around, render
from textenv.prompts.pairs import bos_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]
"""A conversation."""


def check_template(template: Any) -> None:
    """Check that a template is "chat" or a format string with {prompt} and {completion} only.

    Raises:
        ValueError: if it is neither.
    """
    if template == "chat":
        return
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"reward-model: template must be a format string, got {template!r}: {error}"
        ) from error
    if "completion" not in fields or not fields <= {"prompt", "completion"}:
        raise ValueError(
            'reward-model: template must be "chat" or hold {completion} and maybe {prompt}, '
            f"got {template!r}"
        )


def named_model(source: str | os.PathLike[str], *, scores: bool = False) -> str:
    """A hub id, or the folder of a model; for the folder of a run, the model in it.

    Raises:
        ValueError: if the run has no whole model.
    """
    return os.fspath(model_folder(source, scores=scores)) if os.path.isdir(source) else os.fspath(source)


def load_tokenizer(tokenizer: Any, model: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer given, the one of that name, or the one saved with a model given by name; else None."""
    from transformers import AutoTokenizer

    if isinstance(tokenizer, str | os.PathLike):
        return load_pretrained(AutoTokenizer, tokenizer, what="tokenizer")
    if tokenizer is not None:
        return tokenizer
    if not isinstance(model, str):
        return None
    folder = Path(model)
    if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
        return None
    return load_pretrained(AutoTokenizer, model, what="tokenizer")


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids."""
    if one is other:
        return True
    if len(one) != len(other) or one.get_vocab() != other.get_vocab():
        return False
    # Equal vocabularies can still tokenize differently (merges, normalisation): try a text that both
    # know.
    sample = one.decode(list(range(min(len(one), 256))), skip_special_tokens=True)
    ids = [tokenizer(sample, add_special_tokens=False)["input_ids"] for tokenizer in (one, other)]
    return bool(ids[0] == ids[1])


def rendered_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Messages],
    completions: Sequence[str],
    *,
    template: str,
    append_eos: bool = False,
    max_length: int | None = None,
    options: Sequence[Mapping[str, Any]] | None = None,
) -> list[list[int]]:
    """Render prompts and completions, and tokenize.

    Args:
        tokenizer: the scoring model's.
        prompts: B texts; with the template "chat" also lists of messages.
        completions: B texts.
        template: "chat", or a format string with {prompt} and {completion}.
        append_eos: see ``text_ids``.
        max_length: see ``text_ids``.
        options: see ``text_ids``.

    Returns:
        B lists of ids.

    Raises:
        ValueError: see ``text_ids``.
    """
    pairs = list(zip(prompts, completions, strict=True))
    items: list[str | Messages]
    if template == "chat":
        items = []
        for (prompt, completion), option in zip(pairs, options or [{}] * len(pairs), strict=True):
            before = user_message(prompt) if isinstance(prompt, str) else list(prompt)
            blank = _blank_before_answers(before, tokenizer, option)
            items.append([*before, {"role": "assistant", "content": completion.removeprefix(blank)}])
    else:
        items = [template.format(prompt=prompt, completion=completion) for prompt, completion in pairs]
    return text_ids(tokenizer, items, append_eos=append_eos, max_length=max_length, options=options)


def _blank_before_answers(
    messages: Messages, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> str:
    """Spaces between the start of a turn and its content; a policy generates them, too."""
    if tokenizer.chat_template is None:
        return ""
    try:
        opened = render(messages, tokenizer, generation_prompt=True, options=options)
        answer = [*messages, {"role": "assistant", "content": ""}]
        probed = around(answer, tokenizer, generation_prompt=False, options=options)
    except ValueError:  # refused again, and named, where the whole conversation is rendered
        return ""
    if probed is None or not probed[0].startswith(opened):
        return ""
    blank = probed[0][len(opened) :]
    return blank if blank.isspace() else ""


def text_ids(
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[str | Messages],
    *,
    append_eos: bool = False,
    max_length: int | None = None,
    options: Sequence[Mapping[str, Any]] | None = None,
) -> list[list[int]]:
    """Token ids for a model that scores texts, the same in training and in use.

    A text gets the tokenizer's own special tokens, a conversation those of its chat template. Longer texts
    lose their beginning, but keep the special tokens (BOS, CLS) at the start. An empty text becomes BOS, CLS
    or EOS.

    Args:
        tokenizer: the scoring model's.
        items: B whole texts, or B whole conversations.
        append_eos: end each text by EOS.
        max_length: longest text in tokens, or None.
        options: further arguments of the chat template for each of B conversations, such as tools; see
            ``textenv.prompts.messages.chat_options``.

    Returns:
        B lists of ids, none empty.

    Raises:
        ValueError: if the tokenizer lacks a chat template, EOS or token for an empty text that is needed, or
            ``max_length`` leaves no room besides the special tokens.
    """
    if not items:
        return []
    if all(isinstance(item, str) for item in items):
        given = tokenizer(list(items), return_special_tokens_mask=True)
        ids, marks = given["input_ids"], given["special_tokens_mask"]
        fronts = [_run(mark) for mark in marks]
        backs = [
            _run(mark[::-1]) if front < len(mark) else 0 for mark, front in zip(marks, fronts, strict=True)
        ]
        ids = bos_once(ids, tokenizer)
    else:
        if tokenizer.chat_template is None:
            raise ValueError('reward-model: template "chat" needs a tokenizer with a chat template')
        texts = [
            render(item, tokenizer, generation_prompt=False, options=option)  # type: ignore[arg-type]
            for item, option in zip(items, options or [{}] * len(items), strict=True)
        ]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        fronts, backs = [leading_special(row, tokenizer) for row in ids], [0] * len(ids)
    if append_eos:
        eos = tokenizer.eos_token_id
        if eos is None:
            raise ValueError("reward-model: append_eos needs a tokenizer with an eos_token")
        ids = [row if row[-1:] == [eos] else [*row, eos] for row in ids]
    ids = [list(row) or [_start(tokenizer)] for row in ids]
    if max_length is None:
        return ids
    return [
        without_beginning(row, max_length, front, back)
        for row, front, back in zip(ids, fronts, backs, strict=True)
    ]


def without_beginning(ids: list[int], limit: int, front: int, back: int = 0) -> list[int]:
    """At most ``limit`` ids: the ``front`` special ones, then the end of the text.

    >>> without_beginning([0, 5, 6, 7, 8, 1], 4, 1, 1)
    [0, 7, 8, 1]

    Raises:
        ValueError: if no token of the text is left besides ``front`` and ``back`` special ones.
    """
    if len(ids) <= limit:
        return ids
    if limit <= front + back:
        raise ValueError(
            f"reward-model: max_length must leave room for a text beside {front + back} special tokens, "
            f"got {limit}"
        )
    return ids[:front] + ids[len(ids) - (limit - front) :]


def leading_special(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of BOS or CLS tokens at the start."""
    special = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    return next((i for i, token in enumerate(ids) if token not in special), len(ids))


def _run(marks: Sequence[int]) -> int:
    """Number of ones at the start."""
    return next((i for i, mark in enumerate(marks) if not mark), len(marks))


def _start(tokenizer: PreTrainedTokenizerBase) -> int:
    """The ids of an empty text."""
    for token in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError("reward-model: an empty text needs a tokenizer with a BOS, CLS or EOS token")
