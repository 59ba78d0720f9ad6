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
    ``k3`` = exp(-d) - 1 + d, unbiased and never negative. For d < -20 the exponential is replaced by its
    tangent at -20, so it cannot overflow (``bounded_exp``).

    Args:
        log_probs: any shape, log-probs under the policy of tokens that were sampled from it.
        ref_log_probs: same shape, log-probs of the same tokens under the reference.
        kind: "k1", "k2" or "k3".

    Returns:
        The estimates in nats, in the same shape.

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
    """Exact KL(policy || reference) of next-token distributions.

    The sum of pi(v) (log pi(v) - log pi_ref(v)) over the vocabulary. Logits of minus infinity (illegal
    tokens) have probability 0 and add nothing. If a token is illegal only under the reference, the divergence
    is infinite.

    Args:
        logits: (..., V) logits of the policy, divided by the temperature, minus infinity for illegal tokens.
        ref_logits: (..., V) logits of the reference, processed in the same way.

    Returns:
        (...) divergences in nats.

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
    # Masked before the product, because 0 * (-inf - -inf) is NaN in the value and in the gradient.
    difference = torch.where(possible, log_p, 0.0) - torch.where(possible, log_q, 0.0)
    return (torch.where(possible, log_p, -torch.inf).exp() * difference).sum(-1)
