"""Log-probabilities of the actions of finished episodes: teacher-forced, differentiable, thrifty.

The LM head runs at action positions only (the hidden state at column p-1 scores token p), in chunks by a byte
budget, and the log-probability is the token's logit minus the logsumexp: nothing of shape (B, L, V) is ever
made. Episodes of unlike length are forwarded in a few groups so that little padding is computed, or packed
several to a row. Shape letters: B episodes, L tokens, A actions of the batch, V vocabulary, W logits of the
model, d width of the LM head's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from textenv.envs.token_constraints import TokenConstraints
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.fused_log_probs import linear_log_probs
from textenv.modeling.nucleus import RestrictLogits, TokenRestriction
from textenv.modeling.packing import packed_states
from textenv.modeling.split_model import SplitModel, split_model, vocabulary_size
from textenv.utils.checks import check_positive

LogitsProcessor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(legal logits (a, V), hidden (a, d), t (a,)) -> logits (a, V)."""

MAX_BYTES = 1 << 29
"""Default budget for one chunk of logits, in bytes."""
_GROUP_TOKENS = {"cpu": 48, "cuda": 4096}
"""What one more forward and backward pass costs, in tokens: below it, padding is cheaper than another
group."""


class TokenLogProbs(NamedTuple):
    """What the teacher-forced forward says about a batch; (B, L) are 0 where ``action_mask`` is False."""

    log_probs: Tensor
    """(B, L) log-probability of each action."""
    entropy: Tensor | None
    """(B, L) entropy in nats of the distribution each action was drawn from."""
    hidden: Tensor | None
    """(B, L, d) input of the LM head; column p is the state after token p. 0 on padding."""
    values: Tensor | None
    """(B, L) ``value_head`` of the state before each action, that is of column p-1."""


def token_log_probs(
    model: nn.Module,
    episodes: EpisodeBatch,
    *,
    temperature: float = 1.0,
    legality: TokenConstraints | None = None,
    max_bytes: int = MAX_BYTES,
    with_entropy: bool = False,
    with_hidden: bool = False,
    value_head: Callable[[Tensor], Tensor] | None = None,
    logits_processor: LogitsProcessor | None = None,
    restriction: TokenRestriction | None = None,
    packing: bool = False,
) -> TokenLogProbs:
    """Log-probs of the actions under ``model``, in the order and shape of the episodes.

    Computed in float32, or in float64 for a float64 model. Several chunks of logits are computed again in the
    backward pass, a single one is not.

    Args:
        model: a transformers causal LM, used in whichever mode (train or eval) it is in.
        episodes: B episodes; moved to the model's device, and the result is there.
        temperature: logits are divided by it.
        legality: which tokens are legal at which step; None = all logits of the model.
        max_bytes: budget for one chunk of logits.
        with_entropy: also the entropy at each action.
        with_hidden: also the LM head's inputs.
        value_head: hidden (A, d) -> (A,); also its values.
        logits_processor: (legal logits (a, V), hidden (a, d), t (a,)) -> logits (a, V) changes the logits
            before the temperature divides them, as it does when a ``DecodingPolicy`` acts.
        restriction: excludes further tokens in each state, except the ones that were chosen.
        packing: forward several episodes in one row, in a model that passes ``check_packing``.

    Raises:
        ValueError: if the temperature is not positive, ``max_bytes`` is below 1, the model has fewer logits
            than the rule's vocabulary, or a hidden state is asked of a model that cannot be split.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16))
        >>> found = token_log_probs(model, EpisodeBatch.from_ids([[5, 6], [1]], [[7, 8, 9], [2]]))
        >>> found.log_probs.shape, (found.log_probs != 0).sum(-1).tolist()
        (torch.Size([2, 5]), [3, 1])
    """
    check_positive("temperature", temperature)
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be >= 1, got {max_bytes}")
    split = split_model(model)
    episodes = episodes.to(next(model.parameters()).device)
    if split.output is None and (with_hidden or value_head is not None or logits_processor is not None):
        raise ValueError(f"{type(model).__name__} does not expose its LM head's input")
    size, device = episodes.input_ids.shape, episodes.device
    if 0 in size:
        empty = torch.zeros(size, device=device)
        return TokenLogProbs(empty, empty if with_entropy else None, None, empty if value_head else None)

    steps = episodes.turn_steps
    rows, columns, inputs, states = [], [], [], []
    needed = episodes.lengths if with_hidden else _needed(episodes)
    for index, row, column, hidden, at in _forward(split, episodes, needed, packing, whole=with_hidden):
        rows.append(index[row])
        columns.append(column)
        inputs.append(hidden[at(row, column - 1)])
        if with_hidden:
            row, column = episodes.attention_mask[index].nonzero(as_tuple=True)
            whole = hidden.new_zeros(len(index), size[1], hidden.shape[-1])
            states.append((index, whole.index_put((row, column), hidden[at(row, column)])))
    place = (torch.cat(rows), torch.cat(columns))
    hidden = torch.cat(inputs)
    tokens, t = episodes.input_ids[place], steps[place]
    restrict: RestrictLogits | None = None
    if restriction is not None:
        restrict = restriction.at_actions(
            lambda other: _states_at_actions(other, episodes, needed, packing),
            legality=legality,
            temperature=temperature,
        )
    log_probs, entropy = _score(
        split,
        hidden,
        tokens,
        t,
        temperature,
        legality,
        max_bytes,
        with_entropy,
        logits_processor,
        restrict,
    )

    def spread(values: Tensor) -> Tensor:
        return torch.zeros(size, dtype=values.dtype, device=device).index_put(place, values)

    return TokenLogProbs(
        spread(log_probs),
        None if entropy is None else spread(entropy),
        _in_order(states) if with_hidden else None,
        None if value_head is None else spread(value_head(hidden).reshape(len(hidden))),
    )


def _needed(episodes: EpisodeBatch) -> Tensor:
    """Tokens of each episode that log-probs depend on: those before its last action, (B,) int64."""
    columns = torch.arange(episodes.input_ids.shape[1], device=episodes.device)
    return torch.where(episodes.action_mask, columns, 0).amax(-1)


def _forward(
    split: SplitModel, episodes: EpisodeBatch, needed: Tensor, packing: bool, *, whole: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]]:
    """Run the backbone over parts of the episodes, each as far as its first ``needed`` (B,) tokens.

    States count where actions are emitted, and with ``whole`` everywhere.

    Yields:
        Indices of the part's episodes (b,); rows among them and columns of their actions (a,); states (rows,
        columns, d), or logits where the model cannot be split; and where in the states the part's token at
        (row, column) is.
    """
    if packing:
        columns = torch.arange(episodes.input_ids.shape[1], device=episodes.device)
        row, column = episodes.action_mask.nonzero(as_tuple=True)
        states, layout = packed_states(
            split,
            episodes.input_ids,
            columns < needed.unsqueeze(-1),
            read=None if whole else (row, column - 1),
        )
        yield torch.arange(len(episodes), device=episodes.device), row, column, states, layout.place
        return
    for index, width in length_groups(needed, _GROUP_TOKENS.get(episodes.device.type, 1024)):
        ids = episodes.input_ids[index, :width]
        row, column = episodes.action_mask[index].nonzero(as_tuple=True)
        # Causal attention never looks at the padding on the right, so no mask has to hide it.
        if split.output is None:
            states = split.logits(ids, torch.ones_like(ids))
        else:
            read = None if whole else row * width + column - 1
            states = split.backbone(ids, torch.ones_like(ids), read=read)
        yield index, row, column, states, lambda row, column: (row, column)


@torch.no_grad()
def _states_at_actions(model: nn.Module, episodes: EpisodeBatch, needed: Tensor, packing: bool) -> Tensor:
    """Another model's input of the LM head where actions are emitted, in the order of the parts: (A, d)."""
    found = []
    for _, row, column, hidden, at in _forward(split_model(model), episodes, needed, packing):
        found.append(hidden[at(row, column - 1)])
    return torch.cat(found)


def _in_order(states: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Join groups of rows, each (its indices, (b, L, d)), in the order of the indices."""
    order = torch.cat([index for index, _ in states])
    return torch.cat([state for _, state in states])[order.argsort()]


_undivided = False


@contextmanager
def undivided() -> Iterator[None]:
    """Within the block rows of unlike length are one group.

    For passes that several processes make in step: however their rows differ, they must make as many.
    """
    global _undivided
    before, _undivided = _undivided, True
    try:
        yield
    finally:
        _undivided = before


def length_groups(lengths: Tensor, overhead: int) -> Iterator[tuple[Tensor, int]]:
    """Split rows into groups of like length so that padded tokens plus ``overhead`` a group are fewest.

    Within ``undivided`` all rows are one group.

    Args:
        lengths: (B,) int64, tokens of each row.
        overhead: cost of one more group, in tokens.

    Yields:
        (row indices (b,) int64 on the device of ``lengths``, width of the group).

    Example:
        >>> [(rows.tolist(), width) for rows, width in length_groups(torch.tensor([9, 2, 2, 9]), 4)]
        [([0, 3], 9), ([1, 2], 2)]
    """
    if _undivided:
        yield torch.arange(len(lengths), device=lengths.device), max(int(lengths.amax()), 1)
        return
    order = torch.argsort(lengths, descending=True, stable=True)
    sizes = lengths[order].cpu().numpy().astype(np.int64)
    count = len(sizes)
    # best[i]: least cost of the i longest rows; the last group of those runs from cut[i] to i.
    best, cut = np.zeros(count + 1, dtype=np.int64), np.zeros(count + 1, dtype=np.int64)
    for i in range(1, count + 1):
        costs = best[:i] + sizes[:i] * (i - np.arange(i))
        cut[i] = costs.argmin()
        best[i] = costs[cut[i]] + overhead
    stops = [count]
    while stops[-1]:
        stops.append(int(cut[stops[-1]]))
    for start, stop in zip(stops[:0:-1], stops[-2::-1], strict=True):
        # Rows of a group in their own order: the plain case of one group is then the batch as it stands.
        yield order[start:stop].sort().values, max(int(sizes[start]), 1)


def _score(
    split: SplitModel,
    hidden: Tensor,
    tokens: Tensor,
    t: Tensor,
    temperature: float,
    legality: TokenConstraints | None,
    max_bytes: int,
    with_entropy: bool,
    logits_processor: LogitsProcessor | None = None,
    restrict: RestrictLogits | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs and entropies (A,) of tokens at steps t (A,), from hidden (A, d) or logits (A, W)."""
    head = split.output
    plain = logits_processor is None and restrict is None
    if plain and split.linear and isinstance(head, nn.Linear) and _is_plain(head, hidden):
        return linear_log_probs(
            hidden,
            head.weight,
            head.bias,
            tokens,
            t,
            temperature=temperature,
            legality=legality,
            max_bytes=max_bytes,
            with_entropy=with_entropy,
        )

    def score(part: Tensor, chosen: Tensor, step: Tensor, start: int) -> tuple[Tensor, Tensor]:
        logits = part if head is None else split.head(part)
        if legality is not None:
            logits = legality.apply(logits, step)
        if logits_processor is not None:
            logits = logits_processor(logits, part, step)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if temperature != 1.0:
            logits = logits / temperature
        if restrict is not None:
            logits = restrict(logits, step, rows=slice(start, start + len(part)), chosen=chosen)
        log_total = logits.logsumexp(-1)
        log_prob = logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - log_total
        if not with_entropy:
            return log_prob, log_total
        expected = torch.softmax(logits, -1) * logits.masked_fill(logits.isneginf(), 0.0)
        return log_prob, log_total - expected.sum(-1)

    # An upper bound of W: the head's output is not known before it has run.
    width = max(vocabulary_size(split.model, 1), 1)
    chunk = max(1, max_bytes // (4 * width))
    pieces = hidden.split(chunk), tokens.split(chunk), t.split(chunk), range(0, len(hidden), chunk)
    parts = list(zip(*pieces, strict=True))
    if len(parts) == 1 or not torch.is_grad_enabled():
        scored = [score(*part) for part in parts]
    else:
        scored = [_checkpointed(score, *part) for part in parts]
    log_probs = torch.cat([pair[0] for pair in scored])
    return log_probs, torch.cat([pair[1] for pair in scored]) if with_entropy else None


def _checkpointed(
    function: Callable[..., tuple[Tensor, Tensor]], *args: Tensor | int
) -> tuple[Tensor, Tensor]:
    """Run without keeping the logits; the backward pass computes them again."""
    result: Any = checkpoint(function, *args, use_reentrant=False)
    return result


def _is_plain(head: nn.Linear, hidden: Tensor) -> bool:
    """Whether the head's weight is an ordinary tensor that a matrix product can read as it is."""
    return (
        type(head.weight) in (nn.Parameter, Tensor)
        and head.weight.dtype == hidden.dtype
        and not torch.is_autocast_enabled(hidden.device.type)
        and not head._forward_hooks
        and not head._forward_pre_hooks
    )
