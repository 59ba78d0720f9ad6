"""Tokenise users' records into prompts, episodes and preference pairs.

The column names are those of ``datasets`` on the Hugging Face hub and TRL:

    text | prompt | prompt, completion | prompt, completion, label | prompt, completion, reward
    [prompt,] chosen, rejected [, margin, label] | messages

``load_columns`` finds and checks the records. ``prompts_from_records``, ``episodes_from_records`` and
``preferences_from_records`` tokenise them. Every error names the place: file and line, or row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from textenv.data.encoding import PairEncoder, raise_at
from textenv.data.prompt_records import read_prompts
from textenv.data.record_warnings import RepeatedPrompts, Repeats
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
"""Number of records that are tokenised at once."""


def prompts_from_records(
    records: Records,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int | None = None,
    truncation_side: str = "left",
    chat_template: bool = False,
) -> PromptSet:
    """Tokenise n prompts; all other columns become columns of the ``PromptSet``.

    Args:
        records: n records with the column ``prompt`` (text or messages) or ``messages`` (a last turn of the
            assistant is dropped). The columns ``tools`` and ``chat_template_kwargs`` are passed to the chat
            template.
        tokenizer: a transformers tokenizer.
        max_prompt_tokens: see ``PromptSet.from_texts``.
        truncation_side: see ``PromptSet.from_texts``.
        chat_template: render text prompts as user messages. Messages are always rendered.

    Raises:
        ValueError: if a prompt is missing, empty or too long. The message names the place.
        TypeError: if a prompt has the wrong type. The message names the place.

    Warns:
        UserWarning: if prompts repeat; it gives their number.
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
    """Tokenise n prompts and completions into n episodes.

    Args:
        records: n records with ``prompt`` and ``completion`` (both text or both messages), or ``messages``
            (the assistant's last turn is the completion), or ``text`` (a completion of an empty prompt). A
            column ``reward`` (number) is the reward of the last action. The columns ``tools`` and
            ``chat_template_kwargs`` are passed to the chat template. All other columns become extras.
            ``label`` is converted to bool if ``load_columns`` was asked to require it. Rewards find the
            original prompts of chats in the extra ``prompt_messages``, and those of texts that the chat
            template rendered in ``prompt_text``.
        tokenizer: a transformers tokenizer; messages need one with a chat template.
        max_length: maximum length of an episode in tokens. Longer ones are cut at the end and marked as
            truncated.
        append_eos: append EOS to completions, as generated ones have it.
        chat_template: render text prompts as user messages and text completions as assistant messages.
        turns: which assistant turns of ``messages`` are actions: "last" or "all".

    Raises:
        ValueError: if a record cannot become an episode (no token to learn, prompt too long). The message
            names the place.
        TypeError: if a value has the wrong type. The message names the place.

    Warns:
        UserWarning: if records repeat, or completions begin with their prompt; it gives their number.
    """
    found = set(records.columns)
    forms: list[tuple[str, ...]] = [("prompt", "completion"), ("messages",), ("text",)]
    used = next((form for form in forms if found.issuperset(form)), forms[0])
    has_rewards = "reward" in found
    records = records.require(*used, *(["reward"] if has_rewards else []))
    encoder = PairEncoder(tokenizer, max_length, append_eos, chat_template or used[0] == "messages", turns)
    extras, seen = Columns(), Repeats(records.name, " and ".join(used))
    in_completions = RepeatedPrompts(records.name)
    parts = []
    for chunk in _chunks(records.rows()):
        rewards = [row.pop("reward") for _, row in chunk] if has_rewards else None
        pairs = []
        for place, row in chunk:
            values = [row.pop(name) for name in used]
            seen.add(values)
            if used[0] == "messages":
                values = [values[0][:-1], values[0][-1:]]
            elif used[0] == "text":
                values = ["", values[0]]
            pairs.append((place, values[0], values[1], row))
            in_completions.add(values[0], values[1])
            extras.add(row)
        parts.append(encoder.encode(pairs, rewards))
    seen.warn()
    in_completions.warn()
    return _joined(parts, extras.values, records.name)


def preferences_from_records(
    records: Records,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    append_eos: bool = True,
    chat_template: bool = False,
    turns: str = "last",
) -> PreferenceBatch:
    """Tokenise n pairs of completions.

    Args:
        records: n records with ``prompt``, ``chosen`` and ``rejected`` (all text or all messages). ``chosen``
            and ``rejected`` may be whole conversations that start with the prompt (its messages, or its text
            as a user message). ``margin`` (number) is the margin of the pair. ``label`` (number in [0, 1]) is
            the probability that ``chosen`` is the better one. All other columns become extras of both sides.
        tokenizer: a transformers tokenizer.
        max_length: see ``episodes_from_records``.
        append_eos: see ``episodes_from_records``.
        chat_template: see ``episodes_from_records``.
        turns: see ``episodes_from_records``; "all" compares conversations of several turns.

    Raises:
        ValueError: if both sides of a pair are equal, or a pair cannot be encoded (the message names the
            place); if both sides have the same tokens in all pairs.
        TypeError: if a value has the wrong type. The message names the place.

    Warns:
        UserWarning: if pairs repeat, if completions begin with their prompt, or if both sides of some pairs
            have the same tokens (for example after truncation); it gives their number.
    """
    weights: dict[str, list[float]] = {name: [] for name in ("margin", "label") if name in records.columns}
    records = records.require("prompt", "chosen", "rejected", *weights)
    encoder = PairEncoder(tokenizer, max_length, append_eos, chat_template, turns)
    extras, seen = Columns(), Repeats(records.name, "pair")
    in_completions = RepeatedPrompts(records.name)
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
            in_completions.add(prompt, better, worse)
            extras.add(row)
        chosen.append(encoder.encode([(place, prompt, one, row) for place, prompt, one, _, row in pairs]))
        rejected.append(encoder.encode([(place, prompt, one, row) for place, prompt, _, one, row in pairs]))
    seen.warn()
    in_completions.warn()
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
    """Concatenate the parts; extras are the data's columns and the original prompts of chats."""
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
