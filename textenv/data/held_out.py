"""Splitting off a held-out part of records that come without one: by a hash of the prompt.

On which side a record falls is a function of its prompt alone, so no prompt is on both sides, the same file
is always split alike, and files that share prompts agree.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from textenv.data.records import Records
from textenv.data.sources import HELD_OUT_SHARE, Row


def prompt_key(record: Mapping[str, Any]) -> int:
    """A number in [0, 2^64) from the prompt of a record: a BLAKE2b hash of it.

    The prompt is the column ``prompt``, or ``messages`` without the assistant's last turn, or ``text``. One
    message of the user is the same as its text.
    """
    prompt = next((record[name] for name in ("prompt", "messages", "text") if name in record), None)
    if isinstance(prompt, list | tuple) and prompt and isinstance(prompt[-1], Mapping):
        prompt = list(prompt)
        if len(prompt) > 1 and prompt[-1].get("role") == "assistant":
            prompt.pop()
        if len(prompt) == 1 and set(prompt[0]) == {"role", "content"} and prompt[0]["role"] == "user":
            prompt = prompt[0]["content"]
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=repr)
    # A text that is no Unicode is refused where records are checked, with its place.
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def split_off(
    records: Records, *, held_out: bool, share: float = HELD_OUT_SHARE, limit: int | None = None
) -> Records:
    """One side of records that are split by their prompts.

    Prompts whose hash lies below ``share`` of its range are held out; if none does, the one with the least
    hash, and if all do, all but the one with the greatest. So both sides have at least one prompt.

    Args:
        records: of one source; they are read once now, and once at every pass over a side.
        held_out: the held-out side, or the other one.
        share: expected share of the different prompts that is held out, in (0, 1).
        limit: look at the first so many records only.

    Raises:
        ValueError: if ``share`` is out of range, or all records have the same prompt.
    """
    if not 0 < share < 1:
        raise ValueError(f"the held-out share must lie in (0, 1), got {share}")
    keys = np.unique(np.fromiter((key for *_, key in _keyed(records, limit)), dtype=np.uint64))
    if len(keys) < 2:
        raise ValueError(
            f"{records.name}: all records have the same prompt, so none can be held out; give held-out data"
        )
    below = int(np.searchsorted(keys, np.uint64(min(int(share * 2.0**64), 2**64 - 1))))
    bound = int(keys[min(max(below, 1), len(keys) - 1) - 1])

    def side() -> Iterator[Row]:
        for place, row, key in _keyed(records, limit):
            if (key <= bound) == held_out:
                yield place, row

    part = "held-out part" if held_out else "training part"
    return replace(records, name=f"{records.name} ({part})", source=side)


def _keyed(records: Records, limit: int | None) -> Iterator[tuple[str, dict[str, Any], int]]:
    """(place, row as the source has it, key of its prompt)."""
    for place, row in itertools.islice(records.source(), limit):
        yield place, row, prompt_key({records.rename.get(name, name): value for name, value in row.items()})
