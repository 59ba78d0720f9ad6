"""Per-token views of episodes: each token coloured by its reward, KL, value or advantage.

``token_views`` makes them of an ``EpisodeBatch``; a report shows them as HTML, ``show`` on the terminal.
Tokens are untrusted text: nothing in them is read as markup, and control characters appear as escapes.
Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from textenv.envs.rendering import POLICY
from textenv.envs.step_buffer import counts
from textenv.episodes.conversations import REPLIES, STOP_REASON
from textenv.utils.files import atomic_file
from textenv.utils.json_files import read_object
from textenv.utils.terminal import number, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from textenv.agents.data.batch import TrainingBatch
    from textenv.episodes.batch import EpisodeBatch

LEVELS = 9
"""Shades of each sign."""
ABOVE, BELOW = (86, 160, 224), (236, 151, 62)
"""RGB of the strongest shade above and below 0: blue and orange, apart under colour-vision deficiencies and
light enough for black text."""
QUANTILE = 0.99
"""Part of the absolute values that the shades spread over; the few above have the strongest one."""
PARTIAL = "·"
"""Shown for a token that is only part of a character; the token that completes it shows the character."""
_REPLACEMENT = "\ufffd"


@dataclass(kw_only=True)
class TokenView:
    """One episode, token by token."""

    episode_id: int
    """Id of the episode."""
    tokens: list[str]
    """Text of each token, "" where it is only a part of a character that a later one completes."""
    own: list[bool]
    """Whether the policy chose the token."""
    quantities: dict[str, list[float | None]]
    """Name -> a number for each token that the policy chose, None elsewhere."""
    total: float
    """Return of the episode."""
    ended: str
    """Either "terminated" (by EOS, a stop string or the partner) or "truncated" (by a budget); in episodes of
    several turns with the stop reason."""
    speakers: list[tuple[int, str, float | None]] = field(default_factory=list)
    """In episodes of several turns: (index of the first token, role, reward of the turn) of each turn and
    reply. A reply has no reward."""


def token_views(
    episodes: EpisodeBatch,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quantities: Mapping[str, Tensor] | None = None,
    count: int | None = None,
) -> list[TokenView]:
    """Views of the first episodes: reward, its terms where there are several, values, log-probs, and more.

    Args:
        episodes: B episodes.
        tokenizer: that their ids belong to.
        quantities: further numbers per token, name -> (B, L), such as ``{"advantage": ..., "KL": ...}``.
        count: how many; None is all B.

    Raises:
        ValueError: if a quantity does not have the shape (B, L).
    """
    shape = tuple(episodes.input_ids.shape)
    for name, tensor in (quantities or {}).items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"quantity {name!r} must have shape {shape}, got {tuple(tensor.shape)}")
    found: dict[str, Tensor] = {"reward": episodes.rewards}
    terms = {name: term for name, term in episodes.reward_terms.items() if counts(name)}
    if len(terms) > 1:
        found |= {f"reward: {name}": term for name, term in terms.items()}
    if episodes.values is not None:
        found["value"] = episodes.values
    found |= dict(quantities or {})
    if episodes.log_probs is not None:
        found.setdefault("log-prob", episodes.log_probs)
    lengths, masks = episodes.lengths.tolist(), episodes.action_mask.tolist()
    ids, returns, truncated = episodes.input_ids.tolist(), episodes.returns.tolist(), episodes.truncated
    views = []
    reasons = episodes.extras.get(STOP_REASON)
    for i in range(len(episodes) if count is None else min(count, len(episodes))):
        own = masks[i][: lengths[i]]
        views.append(
            TokenView(
                episode_id=int(episodes.episode_id[i]),
                tokens=token_texts(ids[i][: lengths[i]], tokenizer),
                own=own,
                quantities={
                    name: [
                        value if mine and math.isfinite(value) else None
                        for value, mine in zip(tensor[i, : lengths[i]].tolist(), own, strict=True)
                    ]
                    for name, tensor in found.items()
                },
                total=returns[i],
                ended=("truncated" if bool(truncated[i]) else "terminated")
                + ("" if reasons is None else f" ({reasons[i]})"),
                speakers=_speakers(episodes, i),
            )
        )
    return views


def _speakers(episodes: EpisodeBatch, i: int) -> list[tuple[int, str, float | None]]:
    """Where each turn and reply of an episode begins; empty in an episode of one turn."""
    if REPLIES not in episodes.extras:
        return []
    length = int(episodes.lengths[i])
    own, rewards = episodes.action_mask[i, :length].tolist(), episodes.rewards[i, :length].tolist()
    starts = [k for k in range(1, length) if own[k] != own[k - 1]]
    roles = iter(str(reply["role"]) for reply in episodes.extras[REPLIES][i])
    found: list[tuple[int, str, float | None]] = []
    for start, end in pairwise([*starts, length]):
        found.append((start, POLICY, sum(rewards[start:end])) if own[start] else (start, next(roles), None))
    return found


def speaker_labels(view: TokenView) -> dict[int, str]:
    """Index of a token -> who speaks from there on, with the reward of a turn of the policy.

    >>> speaker_labels(TokenView(episode_id=0, tokens=["a", "b", "c"], own=[False, True, False],
    ...     quantities={}, total=0.5, ended="", speakers=[(1, "policy", 0.5), (2, "user", None)]))
    {1: 'policy +0.5', 2: 'user'}
    """
    signs = {i: "+" if reward is not None and reward > 0 else "" for i, _, reward in view.speakers}
    return {i: role if r is None else f"{role} {signs[i]}{number(r)}" for i, role, r in view.speakers}


def training_views(
    batch: TrainingBatch, tokenizer: PreTrainedTokenizerBase, *, count: int | None = None
) -> list[TokenView]:
    """Views of what an agent learned from: KL from the reference, value and advantage, as far as it has them.

    Args:
        batch: B episodes with the tensors that policy-gradient agents give them.
        tokenizer: that their ids belong to.
        count: how many; None is all B.
    """
    given = batch.tensors
    quantities: dict[str, Tensor] = {}
    if "old_log_probs" in given and "ref_log_probs" in given:
        quantities["KL"] = given["old_log_probs"] - given["ref_log_probs"]
    if "old_values" in given:
        quantities["value"] = given["old_values"]
    if "advantages" in given:
        quantities["advantage"] = given["advantages"]
    if "old_log_probs" in given:
        quantities["log-prob"] = given["old_log_probs"]
    shape = batch.episodes.input_ids.shape
    by_token = {name: tensor for name, tensor in quantities.items() if tensor.shape == shape}
    return token_views(batch.episodes, tokenizer, quantities=by_token, count=count)


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Text of each token as it reads in its place, so that together they are the text.

    A character that several tokens make up (bytes of a byte-level vocabulary) belongs to the last of them,
    the others are "". Bytes that are no character are U+FFFD.

    Args:
        ids: n token ids; special tokens are shown, too.
        tokenizer: that they belong to.
    """

    def decode(part: Sequence[int]) -> str:
        text = tokenizer.decode(list(part), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    texts = [""] * len(ids)
    # ids[start:] is decoded together, for a token reads differently at the beginning (blanks are dropped);
    # `given` of its characters are with their tokens, `waiting` is the first token that has no text so far.
    start = given = waiting = 0
    for i in range(len(ids)):
        text = decode(ids[start : i + 1])
        # Replacement characters at the end may become a character with the next token.
        whole = text if i + 1 == len(ids) else text.rstrip(_REPLACEMENT)
        fresh = whole[given:]
        if fresh:
            broken = len(fresh) - len(fresh.lstrip(_REPLACEMENT))
            for lost in range(waiting, min(i, waiting + broken)):
                texts[lost], fresh = _REPLACEMENT, fresh[1:]
            texts[i], given, waiting = fresh, len(whole), i + 1
        if whole == text:
            start, given, waiting = i, len(decode(ids[i : i + 1])), i + 1
    return texts


def save_views(views: Sequence[TokenView], path: str | os.PathLike[str], **facts: Any) -> None:
    """Write views, and further JSON values about them, as one JSON file."""
    content = {**facts, "episodes": [asdict(view) for view in views]}
    with atomic_file(path) as temporary:
        # Not ASCII only: the file should be readable. Half a surrogate pair has no UTF-8, hence the handler.
        text = json.dumps(content, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def load_views(path: str | os.PathLike[str]) -> list[TokenView]:
    """Read what ``save_views`` wrote.

    Raises:
        ValueError: if the file is damaged.
    """
    content = read_object(path, {"episodes": list})
    try:
        return [TokenView(**view) for view in content["episodes"]]
    except TypeError as error:
        raise ValueError(f"{path} is damaged, an episode is not as it was written: {error}") from error


# -- colours -------------------------------------------------------------------------------------------------


def spans(views: Sequence[TokenView]) -> dict[str, float]:
    """Name of each quantity -> the absolute value that has the strongest shade, over all views."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for view in views for name in view.quantities):
        sizes = sorted(
            abs(value) for view in views for value in view.quantities.get(name, []) if value is not None
        )
        # Most rewards are 0 (only one token has the reward); zeros would lower the quantile.
        sizes = [size for size in sizes if size > 0]
        found[name] = sizes[min(len(sizes) - 1, int(QUANTILE * len(sizes)))] if sizes else 0.0
    return found


def level(value: float | None, span: float) -> int:
    """Shade of a value: -LEVELS..LEVELS, 0 for none.

    >>> level(0.5, 1.0), level(-2.0, 1.0), level(0.01, 1.0), level(None, 1.0), level(0.0, 0.0)
    (5, -9, 1, 0, 0)
    """
    if value is None or value == 0 or span == 0:
        return 0
    steps = math.ceil(LEVELS * min(abs(value) / span, 1.0))
    return steps if value > 0 else -steps


def shade(steps: int) -> str:
    """The colour of a shade, from white to the strongest.

    >>> shade(0), shade(9), shade(-9)
    ('#ffffff', '#56a0e0', '#ec973e')
    """
    share = abs(steps) / LEVELS
    mixed = [round(255 + (c - 255) * share) for c in (ABOVE if steps > 0 else BELOW)]
    return f"#{mixed[0]:02x}{mixed[1]:02x}{mixed[2]:02x}"


# -- terminal ------------------------------------------------------------------------------------------------


def show(
    views: Sequence[TokenView], quantities: Sequence[str] | None = None, *, console: Console | None = None
) -> None:
    """Print views: for each episode a coloured text a quantity, with the range of its numbers.

    Args:
        views: from ``token_views``.
        quantities: which ones; None is all.
        console: where to print.

    Raises:
        ValueError: if there is no such quantity.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console() if console is None else console
    scale = spans(views)
    for name in quantities or ():
        if name not in scale:
            raise ValueError(f"quantities must be among {', '.join(scale)}, got {name!r}")
    for view in views:
        title = f"episode {view.episode_id}  return {number(view.total)}  {printable(view.ended)}"
        console.rule(Text(title), align="left")
        for name in quantities or view.quantities:
            console.print(terminal_text(view, name, scale[name]))


def terminal_text(view: TokenView, quantity: str, span: float) -> Text:
    """A view as rich text, coloured by a quantity; no token is read as markup.

    Args:
        view: the episode.
        quantity: one of its quantities.
        span: absolute value that has the strongest shade.
    """
    from rich.text import Text

    values = view.quantities[quantity]
    numbers = [value for value in values if value is not None]
    text = Text()
    text.append(f"{printable(quantity)} ", style="bold")
    if numbers:
        text.append(f"sum {number(sum(numbers))}, {number(min(numbers))} to {number(max(numbers))}  ", "dim")
    text.append(f" -{number(span)} ", f"#000000 on {shade(-LEVELS)}")
    text.append(" 0 ", f"#000000 on {shade(0)}")
    text.append(f" +{number(span)} ", f"#000000 on {shade(LEVELS)}")
    text.append("\n")
    labels = speaker_labels(view)
    for i, (token, own, value) in enumerate(zip(view.tokens, view.own, values, strict=True)):
        if i in labels:
            text.append(f"\n{printable(labels[i])}: ", style="bold")
        shown = printable(token) or PARTIAL
        text.append(shown, f"#000000 on {shade(level(value, span))}" if own else "dim")
    return text
