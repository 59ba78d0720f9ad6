"""Kullback-Leibler divergence between policy and reference: sampled estimators and the full sum.

Pure functions on tensors. Shape letters: B episodes, L tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textenv.modeling.bounded_exp import bounded_expm1

KL_ESTIMATORS = ("k1", "k2", "k3")
"""The estimators that need only the log-probs of the sampled tokens."""


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, kind: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) per token from the log-probs of the sampled tokens.

    With d = log_probs - ref_log_probs (Schulman 2020, "Approximating KL divergence"):
    ``k1`` = d, unbiased, may be negative; ``k2`` = d^2 / 2, low variance, biased;
    ``k3`` = exp(-d) - 1 + d, unbiased and never negative; where d < -20 the exponential goes on as its
    tangent, so that it cannot overflow (``bounded_exp``).

    Args:
        log_probs: any shape, log-probs under the policy of tokens that were sampled from it.
        ref_log_probs: same shape, under the reference.
        kind: "k1", "k2" or "k3".

    Returns:
        Same shape, in nats.

    Raises:
        ValueError: if ``kind`` is unknown or the shapes differ.

    Example:
        >>> p, q = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.0])
        >>> [[round(x, 4) for x in kl_estimate(p, q, kind).tolist()] for kind in ("k1", "k2", "k3")]
        [[0.5, 0.0], [0.125, 0.0], [0.1065, 0.0]]
    """
    if kind not in KL_ESTIMATORS:
        raise ValueError(f"kind must be one of {', '.join(KL_ESTIMATORS)}, got {kind!r}")
    if log_probs.shape != ref_log_probs.shape:
        raise ValueError(
            f"ref_log_probs must have the shape of log_probs {tuple(log_probs.shape)}, "
            f"got {tuple(ref_log_probs.shape)}"
        )
    difference = log_probs - ref_log_probs
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference.square()
    # expm1 keeps k3 accurate near 0, where exp(-d) - 1 + d would cancel.
    return bounded_expm1(-difference) + difference


def kl_full(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(policy || reference) of whole next-token distributions, without sampling noise.

    Sums pi(v) (log pi(v) - log pi_ref(v)) over the vocabulary. Logits of minus infinity (illegal tokens) have
    probability 0 and add nothing; where only the reference forbids a token the divergence is infinite.

    Args:
        logits: (..., V) of the policy, already divided by the temperature, with illegal tokens at minus
            infinity.
        ref_logits: (..., V) of the reference, treated alike.

    Returns:
        (...) in nats.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> [round(x, 4) for x in kl_full(p, q).tolist()]
        [0.1201]
        >>> kl_full(p, p).tolist()
        [0.0]
    """
    if logits.shape != ref_logits.shape:
        raise ValueError(
            f"ref_logits must have the shape of logits {tuple(logits.shape)}, got {tuple(ref_logits.shape)}"
        )
    log_p = torch.log_softmax(logits, dim=-1)
    log_q = torch.log_softmax(ref_logits, dim=-1)
    possible = log_p > -torch.inf
    # Masked before the product: 0 * (-inf - -inf) is NaN in the value and in the gradient.
    difference = torch.where(possible, log_p, 0.0) - torch.where(possible, log_q, 0.0)
    return (torch.where(possible, log_p, -torch.inf).exp() * difference).sum(-1)
