"""Users' data by the ecosystem's column names: prompts, completions, preferences, rewards, labels, messages.

    text | prompt | prompt, completion | prompt, completion, label | prompt, completion, reward
    [prompt,] chosen, rejected [, margin, label] | messages

``load_columns`` finds and checks the records; ``prompts_from_records``, ``episodes_from_records`` and
``preferences_from_records`` tokenise them. Every error names the place: file and line, or row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from textenv.data.encoding import PairEncoder, raise_at
from textenv.data.prompt_records import read_prompts
from textenv.data.record_warnings import HeldPrompts, Repeats
from textenv.data.records import FORMATS, Records, load_columns
from textenv.data.row_blocks import Row
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.prompts.columns import Column, Columns
from textenv.prompts.conversations import joined_columns
from textenv.prompts.prompt_set import PromptSet
from textenv.utils.names import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "FORMATS",
    "Records",
    "episodes_from_records",
    "load_columns",
    "preferences_from_records",
    "prompts_from_records",
]

_CHUNK = 1024
"""Records tokenised at once."""


def prompts_from_records(
    records: Records,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int | None = None,
    truncation_side: str = "left",
    chat_template: bool = False,
) -> PromptSet:
    """Tokenise the prompts; all other columns become columns of the set.

    Args:
        records: with the column ``prompt`` (text or messages), or ``messages`` (if the assistant speaks last,
            that turn is left off). ``tools`` and ``chat_template_kwargs`` reach the chat template.
        tokenizer: a transformers tokenizer.
        max_prompt_tokens: see ``PromptSet.from_texts``.
        truncation_side: see ``PromptSet.from_texts``.
        chat_template: render text prompts as a user's message, too; messages are always rendered.

    Raises:
        ValueError: naming the place, if a prompt is missing, empty or too long.
        TypeError: naming the place, if a prompt has the wrong type.

    Warns:
        UserWarning: if prompts repeat, with their number.
    """
    prompts, columns = read_prompts(records, alike=True)
    try:
        return PromptSet.from_texts(
            prompts,
            tokenizer,
            columns=columns,
            max_prompt_tokens=max_prompt_tokens,
            truncation_side=truncation_side,
            chat_template=chat_template or not isinstance(prompts[0], str),
        )
    except (TypeError, ValueError) as error:
        raise_at(records.name, error)


def episodes_from_records(
    records: Records,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    append_eos: bool = True,
    chat_template: bool = False,
    turns: str = "last",
) -> EpisodeBatch:
    """Tokenise prompts and completions into episodes.

    Args:
        records: with the columns ``prompt`` and ``completion`` (both text or both messages), or ``messages``
            (the assistant's last turn is the completion), or ``text`` (a completion of nothing). A column
            ``reward`` (number) is paid at the last action. ``tools`` and ``chat_template_kwargs`` reach the
            chat template. All other columns become extras; ``label`` becomes bools if ``load_columns`` was
            told to require it. The messages of chat prompts become the extra ``prompt_messages`` (texts that
            the chat template rendered: ``prompt_text``), so that rewards read them.
        tokenizer: a transformers tokenizer; messages need one with a chat template.
        max_length: longest episode in tokens; a longer one loses its end and counts as truncated.
        append_eos: end completions by EOS, as generated ones would.
        chat_template: render text prompts and completions as a user's and an assistant's message.
        turns: whose tokens are actions in messages: the assistant's "last" turn, or "all" its turns.

    Raises:
        ValueError: naming the place, if a record cannot be an episode (no token to learn, prompt too long).
        TypeError: naming the place, if a value has the wrong type.

    Warns:
        UserWarning: if records repeat or completions begin with the text of their prompt, with their number.
    """
    found = set(records.columns)
    forms: list[tuple[str, ...]] = [("prompt", "completion"), ("messages",), ("text",)]
    used = next((form for form in forms if found.issuperset(form)), forms[0])
    paid = "reward" in found
    records = records.require(*used, *(["reward"] if paid else []))
    encoder = PairEncoder(tokenizer, max_length, append_eos, chat_template or used[0] == "messages", turns)
    extras, seen = Columns(), Repeats(records.name, " and ".join(used))
    held = HeldPrompts(records.name)
    parts = []
    for chunk in _chunks(records.rows()):
        rewards = [row.pop("reward") for _, row in chunk] if paid else None
        pairs = []
        for place, row in chunk:
            values = [row.pop(name) for name in used]
            seen.add(values)
            if used[0] == "messages":
                values = [values[0][:-1], values[0][-1:]]
            elif used[0] == "text":
                values = ["", values[0]]
            pairs.append((place, values[0], values[1], row))
            held.add(values[0], values[1])
            extras.add(row)
        parts.append(encoder.encode(pairs, rewards))
    seen.warn()
    held.warn()
    return _joined(parts, extras.values, records.name)


def preferences_from_records(
    records: Records,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    append_eos: bool = True,
    chat_template: bool = False,
) -> PreferenceBatch:
    """Tokenise pairs of completions.

    Args:
        records: with ``prompt``, ``chosen`` and ``rejected`` (all text or all messages). Sides that are whole
            conversations may repeat the prompt's messages (or its text, as the user's message) at their
            front. A column ``margin`` (number) is the margin; ``label`` (number in [0, 1]) the probability
            that ``chosen`` is really better. All other columns become extras of both sides.
        tokenizer: a transformers tokenizer.
        max_length: see ``episodes_from_records``.
        append_eos: see ``episodes_from_records``.
        chat_template: see ``episodes_from_records``.

    Raises:
        ValueError: naming the place, if both sides of a pair are equal, or it cannot be encoded; if the
            sides of all pairs have the same tokens.
        TypeError: naming the place, if a value has the wrong type.

    Warns:
        UserWarning: if pairs repeat, texts hold their prompt again, or both sides of a pair have the same
            tokens (cut alike, say), with their number.
    """
    weights: dict[str, list[float]] = {name: [] for name in ("margin", "label") if name in records.columns}
    records = records.require("prompt", "chosen", "rejected", *weights)
    encoder = PairEncoder(tokenizer, max_length, append_eos, chat_template, "last")
    extras, seen = Columns(), Repeats(records.name, "pair")
    held = HeldPrompts(records.name)
    chosen, rejected = [], []
    for chunk in _chunks(records.rows()):
        pairs = []
        for place, row in chunk:
            prompt, better, worse = (row.pop(name) for name in ("prompt", "chosen", "rejected"))
            if better == worse:
                raise ValueError(f"{place}: chosen and rejected are equal: {shown(better)}")
            for name, column in weights.items():
                column.append(float(row.pop(name)))
            if "label" in weights and not 0 <= weights["label"][-1] <= 1:
                raise ValueError(f"{place}: label must lie in [0, 1], got {weights['label'][-1]}")
            pairs.append((place, prompt, better, worse, row))
            seen.add((prompt, better, worse))
            held.add(prompt, better, worse)
            extras.add(row)
        chosen.append(encoder.encode([(place, prompt, one, row) for place, prompt, one, _, row in pairs]))
        rejected.append(encoder.encode([(place, prompt, one, row) for place, prompt, _, one, row in pairs]))
    seen.warn()
    held.warn()
    tensors = {name: torch.tensor(column) for name, column in weights.items()}
    batch = PreferenceBatch(
        chosen=_joined(chosen, extras.values, records.name),
        rejected=_joined(rejected, extras.values, records.name),
        margin=tensors.get("margin"),
        label=tensors.get("label"),
    )
    batch.check_sides_differ(records.name)
    return batch


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    return iter(lambda: list(itertools.islice(rows, _CHUNK)), [])


def _joined(parts: list[EpisodeBatch], extras: Mapping[str, Column], source: str) -> EpisodeBatch:
    """One batch, with the data's columns and what the chat prompts were made of as extras."""
    conversations = [part.extras for part in parts]
    for part in parts:
        part.extras = {}
    try:
        kept = joined_columns(conversations, extras)
    except (TypeError, ValueError) as error:
        raise_at(source, error)
    batch = EpisodeBatch.concat(parts)
    batch.episode_id = torch.arange(len(batch))
    batch.extras = {name: list(values) for name, values in extras.items()} | kept
    return batch
