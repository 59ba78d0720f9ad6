"""Log-probabilities and entropies through a linear LM head without storing all logits.

A custom autograd function: the backward pass needs only the softmax minus the one-hot token, so nothing else
of the logits' size is stored; with several chunks it is recomputed. Shape
letters: A actions, V legal vocabulary, W rows of the head's weight, d width of its input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textenv.envs.token_constraints import TokenConstraints


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    t: Tensor,
    *,
    temperature: float = 1.0,
    legality: TokenConstraints | None = None,
    max_bytes: int = 1 << 29,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of ``tokens`` under softmax of (hidden weight^T + bias) / temperature over legal tokens.

    Args:
        hidden: (A, d).
        weight: (W, d), of the same dtype.
        bias: (W,) or None.
        tokens: (A,) int64.
        t: (A,) int64, the step of each token.
        temperature: divides the logits.
        legality: None = all W tokens.
        max_bytes: budget for one chunk of float logits.
        with_entropy: compute the entropies, too, with exact gradient.

    Returns:
        log-probs (A,) and entropies (A,) or None; float64 for float64 inputs, else float32.

    Raises:
        ValueError: if W is below the vocabulary of ``legality``.
    """
    vocabulary = weight.shape[0]
    if legality is not None:
        vocabulary = legality.vocab_size
        if weight.shape[0] < vocabulary:
            legality.apply(hidden.new_empty(0, weight.shape[0]), t[:0])
    item = 8 if hidden.dtype == torch.float64 else 4
    chunk = max(1, max_bytes // (item * max(vocabulary, 1)))
    rule = None if legality is None or legality.is_trivial else legality
    log_probs, entropy = _LinearLogProbs.apply(
        hidden, weight, bias, tokens, t, temperature, rule, vocabulary, chunk, with_entropy
    )
    return log_probs, entropy if with_entropy else None


class _LinearLogProbs(torch.autograd.Function):
    """With one chunk q = softmax - onehot is stored; with several it is recomputed chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        t: Tensor,
        temperature: float,
        rule: TokenConstraints | None,
        vocabulary: int,
        chunk: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.rule, ctx.vocabulary, ctx.chunk = temperature, rule, vocabulary, chunk
        ctx.with_entropy = with_entropy
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        log_probs = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
        entropy = torch.empty_like(log_probs) if with_entropy else log_probs.new_empty(0)
        keep = any(ctx.needs_input_grad[:3]) and len(hidden) <= chunk
        kept: tuple[Tensor | None, Tensor | None] = (None, None)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[part], weight, bias, t[part], temperature, rule, vocabulary)
            chosen = tokens[part].unsqueeze(-1)
            log_prob = logits.gather(1, chosen)
            best = logits.amax(-1, keepdim=True)
            probs = torch.softmax(logits, dim=-1)
            # The softmax is fused and vectorised, logsumexp is not: compute the normaliser from the most
            # likely token.
            log_total = best - probs.amax(-1, keepdim=True).log_()
            log_probs[part] = (log_prob - log_total).squeeze(-1)
            if with_entropy:
                logits = logits.sub_(log_total).masked_fill_(probs == 0, 0.0)
                entropy[part] = -torch.linalg.vecdot(probs, logits)
            if keep:
                residual = probs.scatter_add_(1, chosen, probs.new_full(chosen.shape, -1.0)).to(hidden.dtype)
                kept = (residual, logits if with_entropy else None)
        ctx.save_for_backward(hidden, weight, bias, tokens, t, entropy, *kept)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_log_probs, grad_entropy = grads
        hidden, weight, bias, tokens, t, entropy, residual, log_softmax = ctx.saved_tensors
        if not ctx.with_entropy:
            grad_entropy = None
        if grad_log_probs is None and grad_entropy is None:
            return (None,) * 10
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        vocabulary = ctx.vocabulary
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        if grad_weight is not None:
            grad_weight[vocabulary if len(hidden) else 0 :] = 0.0
        grad_bias = torch.zeros_like(bias) if needs_bias and bias is not None else None
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            state = hidden[part]
            chosen = tokens[part].unsqueeze(-1)
            q = residual
            if q is None:
                logits = _logits(state, weight, bias, t[part], ctx.temperature, ctx.rule, vocabulary)
                q = torch.softmax(logits, dim=-1)
                if grad_entropy is not None:
                    log_total = logits.amax(-1, keepdim=True) - q.amax(-1, keepdim=True).log_()
                    log_softmax = logits.sub_(log_total).masked_fill_(q == 0, 0.0)
                q = q.scatter_add_(1, chosen, q.new_full(chosen.shape, -1.0)).to(hidden.dtype)
            # d log_prob / d logits = onehot - softmax = -q, scaled per row: scale the narrow factors, not q.
            scale = None if grad_log_probs is None else grad_log_probs[part].unsqueeze(-1) / -ctx.temperature
            if grad_entropy is not None:
                rate = grad_entropy[part].unsqueeze(-1) / -ctx.temperature
                q = _with_entropy(q, log_softmax, chosen, entropy[part].unsqueeze(-1), scale, rate)
                scale = None
            scaled = state if scale is None else (state * scale).to(state.dtype)
            if grad_weight is not None:
                rows = grad_weight[:vocabulary]
                rows.addmm_(q.T, scaled) if start else torch.mm(q.T, scaled, out=rows)
            if grad_bias is not None:
                ones = torch.ones_like(state[:, 0]) if scale is None else scale.squeeze(-1).to(q.dtype)
                grad_bias[:vocabulary].addmv_(q.T, ones)
            if grad_hidden is not None:
                product = q @ weight[:vocabulary]
                grad_hidden[part] = product if scale is None else product * scale
        return grad_hidden, grad_weight, grad_bias, *(None,) * 7


def _logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    t: Tensor,
    temperature: float,
    rule: TokenConstraints | None,
    vocabulary: int,
) -> Tensor:
    """Legal logits divided by the temperature, float32 or float64: (a, d) -> (a, V)."""
    bias = None if bias is None else bias[:vocabulary]
    logits = torch.nn.functional.linear(hidden, weight[:vocabulary], bias)
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    if temperature != 1.0:
        logits.div_(temperature)
    return logits if rule is None else rule.apply(logits, t)


def _with_entropy(
    q: Tensor, log_softmax: Tensor, chosen: Tensor, entropy: Tensor, scale: Tensor | None, rate: Tensor
) -> Tensor:
    """Gradient at the raw logits: q scale + p (log p + H) rate, since dH/dz = -p (log p + H).

    Args:
        q: (a, V) softmax minus one-hot.
        log_softmax: (a, V), 0 where the softmax is 0.
        chosen: (a, 1) the tokens.
        entropy: (a, 1) H.
        scale: (a, 1) minus the log-prob's gradient divided by the temperature, or None.
        rate: (a, 1) the same for the entropy.
    """
    probs = q.to(log_softmax.dtype).scatter_add(1, chosen, torch.ones_like(chosen, dtype=log_softmax.dtype))
    grad = (log_softmax + entropy).mul_(probs).mul_(rate)
    if scale is not None:
        grad += q * scale
    return grad.to(q.dtype)
