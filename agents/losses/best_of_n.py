"""Best-of-n sampling: its KL from the sampled policy, and the expected value of the best of k samples.

Shape letters: P prompts, n samples per prompt, k of which the best is chosen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n sampling from the sampled policy, in nats per response: log n - (n - 1) / n.

    Stiennon et al. 2020, "Learning to summarize from human feedback", appendix G.3. Exact if no two samples
    have the same score, otherwise an upper bound (Beirami et al. 2024, "Theoretical guarantees on the
    best-of-n alignment policy", theorem 3.1).

    Raises:
        ValueError: if n is below 1.

    >>> best_of_n_kl(1), round(best_of_n_kl(4), 4)
    (0.0, 0.6363)
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_k(scores: Tensor, values: Tensor | None = None) -> Tensor:
    """Unbiased estimates of the expected value of the best of k samples, for k = 1..n, from n samples.

    The mean over all subsets of k samples (Nakano et al. 2021, "WebGPT", appendix I): the i-th smallest score
    is the best of comb(i - 1, k - 1) of the comb(n, k) subsets.

    Args:
        scores: (P, n); the sample with the highest score is chosen.
        values: (P, n) value of each sample, by default its score. Samples with equal scores are chosen with
            equal probability.

    Returns:
        (P, n) float64; column k - 1 is the estimate for the best of k.

    Raises:
        ValueError: if the shapes differ, or are not (P, n) with n >= 1.

    Example:
        >>> [[round(x, 4) for x in row] for row in best_of_k(torch.tensor([[1.0, 4.0, 2.0]])).tolist()]
        [[2.3333, 3.3333, 4.0]]
    """
    values = scores if values is None else values
    if scores.dim() != 2 or not scores.shape[1] or values.shape != scores.shape:
        shapes = f"{tuple(scores.shape)} and {tuple(values.shape)}"
        raise ValueError(f"scores and values must both have the shape (P, n), n >= 1, got {shapes}")
    n = scores.shape[1]
    worth = torch.stack([_mean_of_ties(*row) for row in zip(scores, values.double(), strict=True)])
    worth = worth.gather(1, scores.argsort(1))
    # comb(i - 1, k - 1) / comb(n, k) from the largest score down, without huge numbers.
    k = torch.arange(1, n + 1, dtype=torch.float64, device=scores.device)
    weights = [k / n]
    for i in range(n - 1, 0, -1):
        weights.append(weights[-1] * (i - k + 1).clamp_min(0) / i)
    return worth @ torch.stack(weights[::-1])


def _mean_of_ties(scores: Tensor, values: Tensor) -> Tensor:
    """For each sample the mean value of all samples with the same score: (n,), (n,) -> (n,)."""
    index = scores.unique(return_inverse=True)[1]
    sums = torch.zeros_like(values).index_add(0, index, values)
    return (sums / index.bincount(minlength=len(values)))[index]
