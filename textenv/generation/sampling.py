"""Sample tokens from logits: top-k, top-p, greedy, and sampling with counter-based keys.

A sample is a function of (logits row, key) only, so it does not depend on the other rows of the batch. On the
CPU it inverts the cumulative distribution in two levels (blocks, then inside one block), with a single pass
over the vocabulary; on other devices it is the argmax of logits plus Gumbel noise hashed from (key, token).
The two give different samples from the same distribution. Shape letters: N rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from textenv.modeling.nucleus import nucleus_threshold
from textenv.utils.checks import check_at_least, check_number
from textenv.utils.hashing import hash_key, mix64, uniform

_BLOCK = 256


def sample(logits: Tensor, key: Tensor | None = None) -> Tensor:
    """Sample one token per row.

    Args:
        logits: (N, V) legal logits, already divided by the temperature; minus infinity is never sampled.
        key: (N,) int64 noise keys. None uses torch's global generator, which is not reproducible per row.

    Returns:
        (N,) int64.

    Example:
        >>> logits = torch.tensor([[0.0, -torch.inf, 1.0]]).expand(5, 3)
        >>> tokens = sample(logits, torch.arange(5))
        >>> bool((sample(logits[3:4], torch.tensor([3])) == tokens[3]).all()), 1 in tokens.tolist()
        (True, False)
    """
    return sample_with_log_prob(logits, key)[0]


def sample_with_log_prob(logits: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sample one token per row and return its log-probability under the same logits.

    Args:
        logits: (N, V) as for ``sample``.
        key: (N,) int64 or None, as for ``sample``.

    Returns:
        tokens (N,) int64 and log-probs (N,), float64 for float64 logits, else float32.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    if key is None:
        key = torch.randint(-(2**63), 2**63 - 1, logits.shape[:1], device=logits.device)
    if logits.device.type != "cpu":
        tokens = _gumbel_argmax(logits, key)
        return tokens, log_prob_of(logits, tokens)
    probs = torch.softmax(logits, dim=-1)
    tokens = _inverse_cdf(probs.detach(), uniform(mix64(key + 1)))
    # A sampled token's probability is far from float underflow, so the logarithm is as exact as the softmax.
    return tokens, probs.gather(1, tokens.unsqueeze(-1)).squeeze(-1).log_()


def greedy_with_log_prob(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely token of each row and its log-probability: (N, V) -> (N,) int64, (N,)."""
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    tokens = logits.argmax(-1)
    return tokens, log_prob_of(logits, tokens)


def log_prob_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of given tokens: (N, V), (N,) int64 -> (N,)."""
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def filter_top_k_top_p(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set logits outside the top k tokens, then outside the nucleus of mass p, to minus infinity.

    The nucleus (Holtzman et al. 2020) is the smallest set of most likely tokens with mass >= p after the
    top-k filter. Tokens tied with the last kept one are kept, too, so the result does not depend on a sort's
    order.

    Args:
        logits: (N, V); not modified.
        top_k: number of tokens to keep, 0 for all.
        top_p: mass to keep, in (0, 1].

    Raises:
        TypeError: if ``top_k`` is not an integer or ``top_p`` not a number.
        ValueError: if ``top_k`` is negative or ``top_p`` lies outside (0, 1].

    Example:
        >>> filter_top_k_top_p(torch.tensor([[0.0, 2.0, 1.0]]), top_k=2).tolist()
        [[-inf, 2.0, 1.0]]
    """
    check_at_least("top_k", top_k, 0)
    check_number("top_p", top_p)
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    vocabulary = logits.shape[-1]
    best: Tensor | None = None
    if 0 < top_k < vocabulary:
        best = logits.topk(top_k, dim=-1).values
        logits = logits.masked_fill(logits < best[..., -1:], -torch.inf)
    if top_p < 1.0:
        logits = logits.masked_fill(logits < nucleus_threshold(logits, top_p), -torch.inf)
    return logits


def _inverse_cdf(probs: Tensor, u: Tensor) -> Tensor:
    """Invert the cumulative distribution: probs (N, V), u (N,) float64 in (0, 1], on the CPU -> (N,) int64.

    Sums are float64, u is scaled by the last cumulative entry (probs need not sum to exactly 1) and kept
    below it, so a token of probability zero is never chosen.
    """
    vocabulary = probs.shape[-1]
    # NumPy: two dozen operations on small arrays follow, which torch dispatches five times slower.
    scaled = u.numpy()
    if vocabulary <= 4 * _BLOCK:
        cumulative = np.cumsum(probs.numpy(), axis=1, dtype=np.float64)
        return torch.from_numpy(_search(cumulative, scaled * cumulative[:, -1])[0])
    whole = vocabulary // _BLOCK * _BLOCK
    mass = np.zeros((len(probs), -(-vocabulary // _BLOCK)))
    mass[:, : whole // _BLOCK] = probs[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(-1).numpy()
    if whole < vocabulary:
        mass[:, -1] = probs[:, whole:].sum(-1).numpy()
    cumulative = np.cumsum(mass, axis=1)
    block, rest = _search(cumulative, scaled * cumulative[:, -1])
    columns = (block * _BLOCK)[:, None] + np.arange(_BLOCK)
    inside = np.take_along_axis(probs.numpy(), np.minimum(columns, vocabulary - 1), axis=1)
    inside[columns >= vocabulary] = 0.0
    index, _ = _search(np.cumsum(inside, axis=1, dtype=np.float64), rest)
    return torch.from_numpy(block * _BLOCK + index)


def _search(cumulative: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index whose cumulative mass exceeds ``target``, and ``target`` minus the mass before it.

    The target is kept below the total, so the index exists and has a positive mass.
    """
    total = cumulative[:, -1]
    target = np.minimum(target, np.nextafter(total, 0.0))
    index = (cumulative <= target[:, None]).sum(axis=1)
    before = cumulative[np.arange(len(index)), index - 1]
    return index, target - np.where(index > 0, before, 0.0)


def _gumbel_argmax(logits: Tensor, key: Tensor) -> Tensor:
    """Argmax of logits plus Gumbel noise hashed from (key, token): (N, V), (N,) -> (N,).

    An argmax of elementwise sums has no reduction whose rounding could depend on the batch's shape.
    """
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    u = uniform(hash_key(key.unsqueeze(-1), tokens)).clamp_max_(1 - 2.0**-53)
    return (logits - u.log_().neg_().log_()).argmax(-1)
