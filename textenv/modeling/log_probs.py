"""Teacher-forced log-probabilities of the actions of finished episodes, with gradients and bounded memory.

The LM head runs at action positions only (the hidden state at column p-1 scores token p), in chunks of a byte
budget, and the log-probability is the token's logit minus the logsumexp: no tensor of shape (B, L, V) is
created. Episodes are forwarded in a few groups of similar length, so that little padding is computed, or
several are packed into one row. Shape letters: B episodes, L tokens, A actions of the batch, V vocabulary, W
logits of the model, d width of the LM head's input.
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
from textenv.modeling.split_model import SplitModel, model_vocab_size, split_model
from textenv.utils.checks import check_positive

LogitsProcessor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(legal logits (a, V), hidden (a, d), t (a,)) -> logits (a, V)."""

MAX_BYTES = 1 << 29
"""Default budget for one chunk of logits, in bytes."""
_GROUP_TOKENS = {"cpu": 48, "cuda": 4096}
"""Cost of one more forward and backward pass, in tokens: below it, padding is cheaper than another group."""


class TokenLogProbs(NamedTuple):
    """Result of a teacher-forced pass; tensors (B, L) are 0 where ``action_mask`` is False."""

    log_probs: Tensor
    """(B, L) log-probability of each action."""
    entropy: Tensor | None
    """(B, L) entropy of the distribution of each action, in nats."""
    hidden: Tensor | None
    """(B, L, d) input of the LM head; column p is the state after token p. 0 on padding."""
    values: Tensor | None
    """(B, L) ``value_head`` of the state before each action (column p-1)."""


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

    Computed in float32, or in float64 for a float64 model. If there are several chunks of logits, they are
    recomputed in the backward pass.

    Args:
        model: a transformers causal LM; its mode (train or eval) is not changed.
        episodes: B episodes; moved to the model's device, and the result is there.
        temperature: logits are divided by it.
        legality: which tokens are legal at each step; None = all.
        max_bytes: budget for one chunk of logits.
        with_entropy: compute the entropy at each action, too.
        with_hidden: return the LM head's inputs, too.
        value_head: hidden (A, d) -> (A,); return its values, too.
        logits_processor: (legal logits (a, V), hidden (a, d), t (a,)) -> logits (a, V) changes the logits
            before they are divided by the temperature, as in ``DecodingPolicy.act``.
        restriction: excludes further tokens in each state, except the ones that were chosen.
        packing: forward several episodes in one row, in a model that passes ``check_packing``.

    Raises:
        ValueError: if the temperature is not positive, ``max_bytes`` is below 1, the model has fewer logits
            than the vocabulary of ``legality``, or a hidden state is needed and the model cannot be split.

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

    def to_columns(values: Tensor) -> Tensor:
        return torch.zeros(size, dtype=values.dtype, device=device).index_put(place, values)

    return TokenLogProbs(
        to_columns(log_probs),
        None if entropy is None else to_columns(entropy),
        _in_order(states) if with_hidden else None,
        None if value_head is None else to_columns(value_head(hidden).reshape(len(hidden))),
    )


def _needed(episodes: EpisodeBatch) -> Tensor:
    """Number of tokens before the last action of each episode, on which log-probs depend: (B,) int64."""
    columns = torch.arange(episodes.input_ids.shape[1], device=episodes.device)
    return torch.where(episodes.action_mask, columns, 0).amax(-1)


def _forward(
    split: SplitModel, episodes: EpisodeBatch, needed: Tensor, packing: bool, *, whole: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]]:
    """Run the backbone over parts of the episodes, up to the first ``needed`` (B,) tokens of each.

    States are valid before actions, and everywhere if ``whole``.

    Yields:
        Indices of the part's episodes (b,); rows among them and columns of their actions, both (a,); states
        (rows, columns, d), or logits if the model cannot be split; and a function that maps (row, column) of
        the part to the place of its state.
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
        # Causal attention does not read the padding on the right, so no mask is needed.
        if split.output is None:
            states = split.logits(ids, torch.ones_like(ids))
        else:
            read = None if whole else row * width + column - 1
            states = split.backbone(ids, torch.ones_like(ids), read=read)
        yield index, row, column, states, lambda row, column: (row, column)


@torch.no_grad()
def _states_at_actions(model: nn.Module, episodes: EpisodeBatch, needed: Tensor, packing: bool) -> Tensor:
    """Another model's inputs of the LM head before each action, in the order of the parts: (A, d)."""
    found = []
    for _, row, column, hidden, at in _forward(split_model(model), episodes, needed, packing):
        found.append(hidden[at(row, column - 1)])
    return torch.cat(found)


def _in_order(states: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Concatenate groups of rows, each (its indices, (b, L, d)), in the order of the indices."""
    order = torch.cat([index for index, _ in states])
    return torch.cat([state for _, state in states])[order.argsort()]


_single_group = False


@contextmanager
def single_length_group() -> Iterator[None]:
    """Disable grouping by length.

    Under sharded training all ranks must run the same number of forward passes, whatever the lengths of their
    rows.
    """
    global _single_group
    before, _single_group = _single_group, True
    try:
        yield
    finally:
        _single_group = before


def length_groups(lengths: Tensor, overhead: int) -> Iterator[tuple[Tensor, int]]:
    """Split rows into groups of similar length: fewest padded tokens plus ``overhead`` per group.

    Within ``single_length_group`` all rows form one group.

    Args:
        lengths: (B,) int64, tokens of each row.
        overhead: cost of one more group, in tokens.

    Yields:
        (row indices (b,) int64 on the device of ``lengths``, width of the group).

    Example:
        >>> [(rows.tolist(), width) for rows, width in length_groups(torch.tensor([9, 2, 2, 9]), 4)]
        [([0, 3], 9), ([1, 2], 2)]
    """
    if _single_group:
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
        # Rows of a group keep their order, so a single group is the batch itself.
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

    # An upper bound of W, which is known only after the head has run.
    width = max(model_vocab_size(split.model, 1), 1)
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
    """Run without storing the logits; the backward pass recomputes them."""
    result: Any = checkpoint(function, *args, use_reentrant=False)
    return result


def _is_plain(head: nn.Linear, hidden: Tensor) -> bool:
    """Whether the head is an ordinary linear layer, so that a fused kernel may read its weight."""
    return (
        type(head.weight) in (nn.Parameter, Tensor)
        and head.weight.dtype == hidden.dtype
        and not torch.is_autocast_enabled(hidden.device.type)
        and not head._forward_hooks
        and not head._forward_pre_hooks
    )
