r"""Prompts of preference pairs without a column ``prompt``: the common beginning of both dialogues.

    >>> split_pair("Human: Hi\n\nAssistant: Hello.", "Human: Hi\n\nAssistant: How are you?", "row 0")
    ('Human: Hi\n\nAssistant:', ' Hello.', ' How are you?')
    >>> split_pair("The sky is blue.", "The sky is green.", "row 0")
    ('The sky is', ' blue.', ' green.')

TRL's ``extract_prompt`` cuts two texts at their first different character (a space before it goes to the
completions). If two answers begin with the same letters, that cut is inside a word. Here the cut is at the
last turn, or between words if the texts have no turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from textenv.utils.names import shown

PAIR = ("chosen", "rejected")
_OTHERS = ("prompt", "messages", "text")
"""If one of these columns is present, the prompt is not extracted from the pair."""
_TURN = re.compile(r"(?:^|\n)[ \t]*(?:Human|User|Assistant|AI|Bot|System)[ \t]*:")
"""A speaker's name at the start of a line, as in Anthropic's HH-RLHF data."""


def has_implicit_prompt(columns: Sequence[str], wanted: Sequence[str] | None) -> bool:
    """Whether prompts must be extracted from the pairs of a data set.

    Args:
        columns: names of the data's columns.
        wanted: names of the columns that the caller needs. None or empty = not restricted.
    """
    return (
        set(PAIR) <= set(columns) and not set(_OTHERS) & set(columns) and (not wanted or "prompt" in wanted)
    )


def with_prompts(
    rows: Iterator[tuple[str, dict[str, Any]]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows with the extracted column ``prompt`` first, and with the prompt removed from both sides.

    Raises:
        ValueError: see ``split_pair``.
        TypeError: see ``split_pair``.
    """
    for place, row in rows:
        prompt, chosen, rejected = split_pair(row["chosen"], row["rejected"], place)
        yield place, {"prompt": prompt, **row, "chosen": chosen, "rejected": rejected}


def split_pair(chosen: Any, rejected: Any, place: str) -> tuple[Any, Any, Any]:
    """Split two dialogues (both texts or both lists of messages) into their prompt and two completions.

    Messages: the prompt is the common first messages. Texts: the prompt is the common text up to the last
    turn ("Assistant:" at the start of a line), or up to the last whole word if there are no turns.

    Returns:
        (prompt, chosen completion, rejected completion).

    Raises:
        ValueError: if there is no such prompt: the beginnings differ, both dialogues are equal, or they
            differ before their last turn. The message names the place.
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
"""((prompt, chosen, rejected), "") or (None, why there is no prompt)."""


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
        # The last turn of both texts must start at the same position, inside the common beginning.
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
    """Last position <= ``shared`` that cuts no word of either text; a space goes with the word after it."""
    cut = shared
    inside = any(len(side) > cut and not side[cut].isspace() for side in (chosen, rejected))
    if inside:
        while cut and not chosen[cut - 1].isspace():
            cut -= 1
        if cut and chosen[cut - 1] == " ":
            cut -= 1
    return cut
