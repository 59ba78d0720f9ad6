r"""Preference pairs without a column ``prompt``: what the two dialogues share at their front is the prompt.

    >>> split_pair("Human: Hi\n\nAssistant: Hello.", "Human: Hi\n\nAssistant: How are you?", "row 0")
    ('Human: Hi\n\nAssistant:', ' Hello.', ' How are you?')
    >>> split_pair("The sky is blue.", "The sky is green.", "row 0")
    ('The sky is', ' blue.', ' green.')

TRL's ``extract_prompt`` cuts two texts at their first different character (a blank before it goes to the
completions). Where answers begin alike it cuts inside a word; here the cut lies at the last turn, or in texts
without turns at a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from textenv.utils.names import shown

PAIR = ("chosen", "rejected")
_OTHERS = ("prompt", "messages", "text")
"""Columns beside which a pair needs no prompt of its own."""
_TURN = re.compile(r"(?:^|\n)[ \t]*(?:Human|User|Assistant|AI|Bot|System)[ \t]*:")
"""The name of who speaks, at the start of a line, as in the data of Anthropic's HH-RLHF."""


def has_implicit_prompt(columns: Sequence[str], wanted: Sequence[str] | None) -> bool:
    """Whether the prompts of a data set have to be read off its pairs.

    Args:
        columns: of the data.
        wanted: columns that the caller asks for; None and none at all leave it to the data.
    """
    return (
        set(PAIR) <= set(columns) and not set(_OTHERS) & set(columns) and (not wanted or "prompt" in wanted)
    )


def with_prompts(
    rows: Iterator[tuple[str, dict[str, Any]]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of pairs, with the column ``prompt`` in front, and without it in both sides.

    Raises:
        ValueError: see ``split_pair``.
    """
    for place, row in rows:
        prompt, chosen, rejected = split_pair(row["chosen"], row["rejected"], place)
        yield place, {"prompt": prompt, **row, "chosen": chosen, "rejected": rejected}


def split_pair(chosen: Any, rejected: Any, place: str) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected completion of two dialogues, texts or lists of messages.

    Messages that both have at their front are the prompt. Texts share their beginning up to the last turn
    ("Assistant:" at the start of a line), or without turns up to the last whole word.

    Raises:
        ValueError: naming the place, if there is no such prompt: nothing is shared, both are equal, or they
            part before their last turn.
        TypeError: if one is a text and the other a list.
    """
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise TypeError(f"{place}: chosen and rejected must both be texts or both messages")
    split = _split_texts if isinstance(chosen, str) else _split_messages
    if chosen == rejected:
        raise ValueError(f"{place}: chosen and rejected are equal: {shown(chosen)}")
    found, why = split(chosen, rejected)
    if found is None:
        raise ValueError(
            f"{place}: without a column prompt, what chosen and rejected share at their front is the prompt, "
            f"but {why}; give the prompts as a column"
        )
    return found


Split = tuple[tuple[Any, Any, Any] | None, str]
"""What was found, or None and the reason."""


def _split_messages(chosen: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> Split:
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        return None, "their first messages differ"
    for name, side in zip(PAIR, (chosen, rejected), strict=True):
        if len(side) - shared != 1:
            return None, f"{name} has {len(side) - shared} messages behind the {shared} shared ones, not one"
    return (list(chosen[:shared]), list(chosen[shared:]), list(rejected[shared:])), ""


def _split_texts(chosen: str, rejected: str) -> Split:
    both = enumerate(zip(chosen, rejected, strict=False))
    shared = next((i for i, (one, other) in both if one != other), min(len(chosen), len(rejected)))
    ends = [[turn.end() for turn in _TURN.finditer(side)] for side in (chosen, rejected)]
    if any(ends):
        # Both must open their last turn at one place, which the shared part holds.
        cut = ends[0][-1] if ends[0] else 0
        if ends[0] != ends[1] or cut > shared:
            return None, f"they part before their last turn (at character {shared})"
    else:
        cut = _word_start(chosen, rejected, shared)
        if cut == min(len(chosen), len(rejected)):
            return None, f"one is the beginning of the other: {shown(chosen[:cut])}"
    if not chosen[:cut].strip():
        return None, f"they share no beginning: {shown(chosen)} and {shown(rejected)}"
    return (chosen[:cut], chosen[cut:], rejected[cut:]), ""


def _word_start(chosen: str, rejected: str, shared: int) -> int:
    """The last place at or before ``shared`` where no word of either text is cut; blanks go with the word."""
    cut = shared
    inside = any(len(side) > cut and not side[cut].isspace() for side in (chosen, rejected))
    if inside:
        while cut and not chosen[cut - 1].isspace():
            cut -= 1
        if cut and chosen[cut - 1] == " ":
            cut -= 1
    return cut
