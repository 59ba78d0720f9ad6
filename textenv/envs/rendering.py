"""Rows as text or pictures. Generated text is untrusted: control characters are escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textenv.envs.picture import draw
from textenv.episodes.texts import split_texts
from textenv.utils.terminal import printable

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from textenv.envs.rows import Rows
    from textenv.envs.step_buffer import StepBuffer

RENDER_MODES = ("ansi", "human", "rgb_array")
RENDER_FPS = 10


def render_rows(
    mode: str, tokenizer: PreTrainedTokenizerBase, rows: Rows, buffer: StepBuffer
) -> tuple[Any, ...] | None:
    """All rows as N strings ("ansi"), N pictures ("rgb_array"), or printed ("human")."""
    show: Any = render_picture if mode == "rgb_array" else render_row
    frames = tuple(show(tokenizer, rows, row, buffer.totals(row)) for row in range(len(rows.steps)))
    if mode != "human":
        return frames
    print("\n".join(frames), flush=True)
    return None


def render_row(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, row: int, reward_terms: dict[str, float]
) -> str:
    """One row as a line: episode id, prompt, response so far, sum of each reward term."""
    header, prompt, response, footer = _parts(tokenizer, rows, row, reward_terms)
    if not int(rows.prompt_lengths[row]):
        return header
    episode, _, state = header.partition(" ")
    return f"{episode} {prompt} | {response}" + "".join(f"  {part}" for part in (state, footer) if part)


def render_picture(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, row: int, reward_terms: dict[str, float]
) -> np.ndarray:
    """The same as a picture, (H, W, 3) uint8; see ``textenv.envs.picture``."""
    return draw(*_parts(tokenizer, rows, row, reward_terms))


def _parts(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, row: int, reward_terms: dict[str, float]
) -> tuple[str, str, str, str]:
    """Episode id and state, prompt, response, reward terms."""
    split, length = int(rows.prompt_lengths[row]), int(rows.lengths[row])
    if not split:
        return "(no episode)", "", "", ""
    ids = rows.tokens[row].tolist()
    ids = ids[:length]
    parts = split_texts([ids], [split], tokenizer, skip_special_tokens=False)[0]
    prompt, response = (printable(part) for part in parts)
    terms = "  ".join(f"{printable(name)}={value:+.3f}" for name, value in reward_terms.items())
    state = "" if bool(rows.active[row]) else " (over)"
    return f"[{int(rows.episode_ids[row])}]{state}", prompt, response, terms
