"""Rows as text or pictures. Generated text is untrusted: control characters are escaped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textenv.envs.picture import draw
from textenv.episodes.texts import split_texts
from textenv.utils.terminal import printable

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from textenv.envs.rows import Rows
    from textenv.envs.step_buffer import StepBuffer
    from textenv.envs.turns import Turns

RENDER_MODES = ("ansi", "human", "rgb_array")
RENDER_FPS = 10
POLICY = "policy"
"""Role of the policy's turns."""


@dataclass(frozen=True)
class RenderedRow:
    """The parts of a row, printable."""

    episode: str
    """Episode id in brackets."""
    state: str = ""
    """Empty, or whether the episode is over or waits for a reply."""
    prompt: str = ""
    response: str = ""
    """Empty in an episode of several turns."""
    turns: tuple[tuple[str, str], ...] = ()
    """(role, text) of the policy's turns and the replies, in an episode of several turns."""
    terms: str = ""
    """Sum of each reward term."""


def render_rows(
    mode: str, tokenizer: PreTrainedTokenizerBase, rows: Rows, buffer: StepBuffer, turns: Turns | None
) -> tuple[Any, ...] | None:
    """All rows as N strings ("ansi"), N pictures ("rgb_array"), or printed ("human")."""
    parts = [read_row(tokenizer, rows, row, buffer.totals(row), turns) for row in range(len(rows.steps))]
    if mode == "rgb_array":
        return tuple(map(render_picture, parts))
    lines = tuple(map(render_line, parts))
    if mode == "ansi":
        return lines
    print("\n".join(lines), flush=True)
    return None


def render_line(parts: RenderedRow) -> str:
    """One row as a line: episode id, prompt, response or turns so far, state, sum of each reward term.

    >>> render_line(RenderedRow("[0]", turns=(("policy", "5"), ("user", "lower")), prompt="Guess"))
    '[0] Guess | policy: 5 / user: lower'
    """
    if not parts.prompt:
        return parts.episode
    said = " / ".join(f"{role}: {text}" for role, text in parts.turns) or parts.response
    ends = "".join(f"  {part}" for part in (parts.state, parts.terms) if part)
    return f"{parts.episode} {parts.prompt} | {said}{ends}"


def render_picture(parts: RenderedRow) -> np.ndarray:
    """The same as a picture, (H, W, 3) uint8; see ``textenv.envs.picture``."""
    header = f"{parts.episode} {parts.state}".rstrip()
    turns = [(f"{role}: {text}", role == POLICY) for role, text in parts.turns]
    return draw(header, parts.prompt, parts.response, parts.terms, turns)


def read_row(
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    row: int,
    reward_terms: dict[str, float],
    turns: Turns | None,
) -> RenderedRow:
    """The parts of a row.

    Args:
        tokenizer: of the tokens.
        rows: all rows.
        row: which one.
        reward_terms: sum of each term.
        turns: knows the roles of the replies; None for episodes of one turn.
    """
    split, length = int(rows.prompt_lengths[row]), int(rows.lengths[row])
    if not split:
        return RenderedRow("(no episode)")
    ids = rows.tokens[row, :length].tolist()
    if turns is None:
        bounds, roles = [split], []
    else:
        own = rows.actions[row, :length].tolist()
        bounds = [split, *(i for i in range(split + 1, length) if own[i] != own[i - 1])]
        said = [str(reply["role"]) for reply in turns.conversations[row].replies]
        # After the prompt the policy's turns and the replies take turns, in this order.
        roles = [POLICY if k % 2 == 0 else said[k // 2] for k in range(len(bounds))]
    prompt, *texts = _pieces(tokenizer, ids, bounds)
    terms = "  ".join(f"{printable(name)}={value:+.3f}" for name, value in reward_terms.items())
    waiting = turns is not None and row in turns.calls.pending
    active = bool(rows.active[row])
    return RenderedRow(
        episode=f"[{int(rows.episode_ids[row])}]",
        state="" if active else "(waiting)" if waiting else "(over)",
        prompt=prompt,
        response="" if roles else texts[0],
        turns=tuple((printable(role), text) for role, text in zip(roles, texts, strict=bool(roles))),
        terms=terms,
    )


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int], bounds: list[int]) -> list[str]:
    """The printable texts between the bounds, which together are the text of all ids."""
    splits = split_texts([ids] * len(bounds), bounds, tokenizer, skip_special_tokens=False)
    starts = [0, *(len(before) for before, _ in splits)]
    whole = "".join(splits[0])
    ends = [*starts[1:], len(whole)]
    return [printable(whole[start:end]) for start, end in zip(starts, ends, strict=True)]
