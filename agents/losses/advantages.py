"""Advantage estimators as pure functions, and the registry that names them.

Tensors are (B, L), aligned with ``input_ids``; ``mask`` marks own tokens. Only own tokens are time steps:
between two of them, across tokens of others, V and A are carried unchanged. Nothing is whitened here
(``losses.masked_whiten`` does it). Results are float32 or wider and 0 off the mask. Shape letters: B
episodes, L tokens, T most own tokens in a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from textenv.utils.names import nearest, registrar

AdvantageFunction = Callable[..., tuple[Tensor, Tensor]]

ADVANTAGES: dict[str, AdvantageFunction] = {}
"""Name -> fn(rewards, mask, *, values, final_values, groups, scores, gamma, gae_lambda), which gives
(advantages, returns). ``scores`` (B,) are the returns without a KL penalty."""


def register_advantage(name: str) -> Callable[[AdvantageFunction], AdvantageFunction]:
    """Decorator: make an estimator known by ``name``.

    It is called as ``ADVANTAGES`` says and should take ``**_`` for the keywords that it does not use.

    Raises:
        ValueError: if the name is malformed or taken.
    """
    return registrar("advantage", name, ADVANTAGES)


def get_advantage(name: str) -> AdvantageFunction:
    """The estimator called ``name``.

    Raises:
        ValueError: if there is none; the error lists the known ones, the nearest first.
    """
    if name in ADVANTAGES:
        return ADVANTAGES[name]
    raise ValueError(f"unknown advantage {name!r}; {nearest(name, ADVANTAGES)}")


def discounted_sums(steps: Tensor, mask: Tensor, factor: float, tail: Tensor | None = None) -> Tensor:
    """S_t = x_t + factor S_next over own tokens, S after the last one = ``tail`` (0): (B, L) -> (B, L).

    Runs in ceil(log2(T)) vectorised passes over packed rows (S over 2^k steps from two S over 2^(k-1) steps),
    not T.

    Args:
        steps: (B, L) x; read at own tokens only.
        mask: (B, L) bool, own tokens.
        factor: discount per own token.
        tail: (B,) value after the last own token.

    Example:
        >>> mask = torch.tensor([[False, True, False, True]])
        >>> discounted_sums(torch.tensor([[0.0, 1.0, 0.0, 2.0]]), mask, 0.5).tolist()
        [[0.0, 2.0, 0.0, 2.0]]
    """
    steps = _at_least_float32(steps)
    rows, columns = mask.nonzero(as_tuple=True)
    slots = (mask.cumsum(-1) - 1)[rows, columns]
    counts = mask.sum(-1)
    width = int(counts.max()) if len(rows) else 0
    packed = steps.new_zeros(len(mask), width + 1)
    packed[rows, slots] = steps[rows, columns]
    if tail is not None:
        packed.scatter_(1, counts.unsqueeze(-1), tail.to(steps).unsqueeze(-1))
    stride, power = 1, factor
    while stride <= width:
        packed = packed + power * torch.nn.functional.pad(packed[:, stride:], (0, stride))
        stride, power = 2 * stride, power * power
    sums = torch.zeros_like(steps)
    sums[rows, columns] = packed[rows, slots]
    return sums


def next_own_values(values: Tensor, mask: Tensor, tail: Tensor | None = None) -> Tensor:
    """V of the next own token's state, across tokens of others: (B, L) -> (B, L), 0 off the mask.

    Args:
        values: (B, L) V of the state before the token.
        mask: (B, L) bool, own tokens.
        tail: (B,) V after the last own token, None = 0.

    Example:
        >>> mask = torch.tensor([[False, True, False, True]])
        >>> next_own_values(torch.tensor([[9.0, 1.0, 9.0, 2.0]]), mask).tolist()
        [[0.0, 2.0, 0.0, 0.0]]
    """
    length = mask.shape[1]
    columns = torch.arange(length, device=mask.device).expand_as(mask)
    following = torch.full_like(columns, length)
    own = torch.where(mask, columns, length)
    following[:, :-1] = own[:, 1:].flip(-1).cummin(-1).values.flip(-1)
    last = values.new_zeros(len(values)) if tail is None else tail.to(values)
    return torch.where(mask, torch.cat([values, last.unsqueeze(-1)], dim=-1).gather(1, following), 0.0)


@register_advantage("gae")
def gae(
    rewards: Tensor,
    mask: Tensor,
    *,
    values: Tensor,
    final_values: Tensor | None = None,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    delta_t = r_t + gamma V_next - V_t and A_t = sum over k of (gamma lambda)^k delta_{t+k}, over own tokens.

    Args:
        rewards: (B, L) paid at own tokens.
        mask: (B, L) bool, own tokens.
        values: (B, L) V of the state before the token.
        final_values: (B,) V after the last own token; None = 0. To bootstrap truncated episodes only, pass
            ``torch.where(truncated, final_values, 0)``.
        gamma: discount per own token.
        gae_lambda: lambda.

    Returns:
        (advantages, returns = advantages + values), each (B, L), detached, 0 off the mask.
    """
    values = torch.where(mask, _at_least_float32(values.detach()), 0.0)
    tail = None if final_values is None else final_values.detach()
    deltas = rewards.to(values) + gamma * next_own_values(values, mask, tail) - values
    advantages = discounted_sums(deltas, mask, gamma * gae_lambda)
    return advantages, advantages + values


@register_advantage("monte-carlo")
def monte_carlo(
    rewards: Tensor,
    mask: Tensor,
    *,
    values: Tensor | None = None,
    final_values: Tensor | None = None,
    gamma: float = 1.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Discounted return to go, minus V if there is one (GAE at lambda 1).

    Args:
        rewards: (B, L) paid at own tokens.
        mask: (B, L) bool, own tokens.
        values: (B, L) baseline, None = 0.
        final_values: (B,) V after the last own token, None = 0.
        gamma: discount per own token.

    Returns:
        (advantages, returns), each (B, L), 0 off the mask.
    """
    tail = None if final_values is None else final_values.detach()
    returns = discounted_sums(rewards, mask, gamma, tail)
    if values is None:
        return returns, returns
    return returns - torch.where(mask, values.detach().to(returns), 0.0), returns


@register_advantage("batch-mean")
def batch_mean(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0, **_: object) -> tuple[Tensor, Tensor]:
    """REINFORCE baseline: return to go minus the mean over episodes of their return.

    Args:
        rewards: (B, L) paid at own tokens.
        mask: (B, L) bool, own tokens.
        gamma: discount per own token.

    Returns:
        (advantages, returns), each (B, L), 0 off the mask.
    """
    returns = discounted_sums(rewards, mask, gamma)
    starts = mask & (mask.cumsum(-1) == 1)
    baseline = returns[starts].mean() if bool(starts.any()) else 0.0
    return torch.where(mask, returns - baseline, 0.0), returns


@register_advantage("rloo")
def rloo(rewards: Tensor, mask: Tensor, *, groups: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    """Leave-one-out baseline: R_i minus the mean R of the other episodes of its group (Ahmadian et al. 2024).

    Args:
        rewards: (B, L); R_i is their sum over own tokens.
        mask: (B, L) bool, own tokens.
        groups: (B,) int64, equal for episodes on the same prompt.

    Returns:
        (advantages, returns), each (B, L), constant over an episode's own tokens.

    Raises:
        ValueError: if a group has one episode.
    """
    scores = torch.where(mask, _at_least_float32(rewards), 0.0).sum(-1)
    above, sums, _squares, counts = group_moments(scores, groups)
    advantages = above - (sums - above) / (counts - 1)
    return _spread(advantages, mask), _spread(scores, mask)


@register_advantage("grpo")
def grpo(
    rewards: Tensor,
    mask: Tensor,
    *,
    groups: Tensor,
    scores: Tensor | None = None,
    scale: bool = True,
    eps: float = 1e-4,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Group-relative: (R_i - mean) / (std + eps), sample std, over the group (Shao et al. 2024, 4.1.2).

    In a group whose scores are all equal the deviation is left as it is: it is 0, or with a KL penalty in the
    rewards the noise of the KL, which a division would blow up to variance 1.

    Args:
        rewards: (B, L); R_i is their sum over own tokens.
        mask: (B, L) bool, own tokens.
        groups: (B,) int64, equal for episodes on the same prompt.
        scores: (B,) returns without a KL penalty; None = R.
        scale: False leaves the division out (Dr. GRPO, Liu et al. 2025).
        eps: keeps a group without spread at advantage 0.

    Returns:
        (advantages, returns), each (B, L), constant over an episode's own tokens.

    Raises:
        ValueError: if a group has one episode.
    """
    returns = torch.where(mask, _at_least_float32(rewards), 0.0).sum(-1)
    above, sums, squares, counts = group_moments(returns, groups)
    advantages = above - sums / counts
    if scale:
        divisors = (squares / (counts - 1)).sqrt() + eps
        if scores is not None:
            flat = group_moments(scores, groups)[2] == 0
            divisors = torch.where(flat, 1.0, divisors)
        advantages = advantages / divisors
    return _spread(advantages, mask), _spread(returns, mask)


@register_advantage("dr_grpo")
def dr_grpo(rewards: Tensor, mask: Tensor, *, groups: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    """R_i minus the group's mean, without a division (Dr. GRPO, Liu et al. 2025): ``grpo`` unscaled."""
    return grpo(rewards, mask, groups=groups, scale=False)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _spread(per_episode: Tensor, mask: Tensor) -> Tensor:
    """(B,) -> (B, L): the episode's number at each own token."""
    return torch.where(mask, per_episode.unsqueeze(-1), 0.0)


def group_moments(scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An episode beside its group, all counted from the group's lowest score: (B,), (B,) -> 4 x (B,).

    So a group whose scores are all equal gives exact zeros, without rounding.

    Args:
        scores: (B,).
        groups: (B,) int64, equal for episodes on the same prompt.

    Returns:
        The score above the lowest one; its sum over the group; the sum of squared deviations from the mean;
        the group's size.

    Raises:
        ValueError: if a group has one episode.

    Example:
        >>> scores, groups = torch.tensor([5.0, 0.1, 7.0, 0.1]), torch.tensor([3, 8, 3, 8])
        >>> [moment.tolist() for moment in group_moments(scores, groups)[:3]]
        [[0.0, 0.0, 2.0, 0.0], [2.0, 0.0, 2.0, 0.0], [2.0, 0.0, 2.0, 0.0]]
    """
    _, index, sizes = groups.unique(return_inverse=True, return_counts=True)
    if int(sizes.min()) < 2:
        lonely = groups[sizes[index] == 1]
        raise ValueError(
            f"every group needs at least 2 episodes, got 1 for group {int(lonely[0])}; "
            "set samples_per_prompt >= 2"
        )
    none = torch.zeros(len(sizes), dtype=scores.dtype, device=scores.device)
    above = scores - none.scatter_reduce(0, index, scores, "amin", include_self=False)[index]
    sums = none.index_add(0, index, above)
    squares = none.index_add(0, index, (above - (sums / sizes)[index]).square())
    return above, sums[index], squares[index], sizes[index].to(scores)
