"""How a row looks to a person. Generated text is untrusted: control characters never reach the terminal."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from textenv.texts import split_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from textenv.rows import Rows


def printable(text: str) -> str:
    r"""Make text safe to print on one line: control and format characters appear escaped.

    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb\\nc'
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else c
        for c in text
    )


def render_row(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, row: int, reward_terms: dict[str, float]
) -> str:
    """One row as a line: ticket, prompt, response so far, what each reward term has paid."""
    split, steps = int(rows.prompt_lengths[row]), int(rows.steps[row])
    if not split:
        return "(no episode)"
    ids = rows.tokens[row].tolist()
    ids = ids[: split + steps]
    parts = split_texts([ids], [split], tokenizer, skip_special_tokens=False)[0]
    prompt, response = (printable(part) for part in parts)
    terms = "".join(f"  {name}={value:+.3f}" for name, value in reward_terms.items())
    state = "" if bool(rows.active[row]) else "  (over)"
    return f"[{int(rows.tickets[row])}] {prompt} | {response}{state}{terms}"
