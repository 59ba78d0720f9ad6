"""Split records into a training part and a held-out part by a hash of the prompt.

The side depends on the prompt only. So no prompt is on both sides, a file is always split the same way, and a
prompt that is in several files is on the same side in all of them.
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
    """BLAKE2b hash of a record's prompt, an integer in [0, 2^64).

    The prompt is the column ``prompt``, or ``messages`` without a last turn of the assistant, or ``text``. A
    single user message has the same hash as its text.
    """
    prompt = next((record[name] for name in ("prompt", "messages", "text") if name in record), None)
    if isinstance(prompt, list | tuple) and prompt and isinstance(prompt[-1], Mapping):
        prompt = list(prompt)
        if len(prompt) > 1 and prompt[-1].get("role") == "assistant":
            prompt.pop()
        if len(prompt) == 1 and set(prompt[0]) == {"role", "content"} and prompt[0]["role"] == "user":
            prompt = prompt[0]["content"]
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=repr)
    # surrogatepass: texts that are not valid Unicode are refused later, when records are checked.
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def split_off(
    records: Records, *, held_out: bool, share: float = HELD_OUT_SHARE, limit: int | None = None
) -> Records:
    """Return one side of records that are split by their prompts.

    A prompt is held out if its hash is below ``share * 2**64``. Both sides have at least one prompt: if no
    hash is that small, the prompt with the smallest hash is held out; if all are, the prompt with the largest
    hash is kept for training.

    Args:
        records: of one source. They are read once here, and once in every pass over a side.
        held_out: True = the held-out side, False = the training side.
        share: expected fraction of the distinct prompts that is held out, in (0, 1).
        limit: use only the first ``limit`` records.

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
    """Yield (place, row with the source's column names, hash of its prompt)."""
    for place, row in itertools.islice(records.source(), limit):
        yield place, row, prompt_key({records.rename.get(name, name): value for name, value in row.items()})
