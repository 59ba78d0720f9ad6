"""Advantage estimators as pure functions, and their registry.

Tensors are (B, L), aligned with ``input_ids``; ``mask`` marks the action tokens. Only action tokens are time
steps: positions between two of them are skipped. Nothing is whitened here (``masked_whiten`` does that).
Results are float32 or wider, and 0 outside the mask. Shape letters: B episodes, L tokens, T the largest
number of action tokens in a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from textenv.agents.losses.turns import at_turns, step_discounts, turn_sums
from textenv.episodes.turns import turn_starts
from textenv.utils.names import nearest, registrar

AdvantageFunction = Callable[..., tuple[Tensor, Tensor]]

ADVANTAGES: dict[str, AdvantageFunction] = {}
"""Name -> fn(rewards, mask, *, values, final_values, groups, scores, gamma, gae_lambda, discount), which
gives (advantages, returns). ``scores`` (B,) are the task returns: returns without KL penalties. ``discount``
is "token" or "turn": whether gamma counts per action token, or between turns."""

PER_TURN: set[str] = set()
"""Names of estimators whose values belong to turns: V is trained at the first action token of each turn."""


def register_advantage(
    name: str, *, per_turn: bool = False
) -> Callable[[AdvantageFunction], AdvantageFunction]:
    """Decorator: register an advantage estimator under ``name``.

    It is called with the arguments that ``ADVANTAGES`` lists; ``**_`` takes those that it does not use.

    Args:
        name: of the estimator.
        per_turn: V is trained at the first action token of each turn only.

    Raises:
        ValueError: if the name is malformed or taken.
    """
    decorate = registrar("advantage", name, ADVANTAGES)
    if per_turn:
        PER_TURN.add(name)
    return decorate


def get_advantage(name: str) -> AdvantageFunction:
    """The estimator registered under ``name``.

    Raises:
        ValueError: if there is none; the error lists the registered names, the most similar first.
    """
    if name in ADVANTAGES:
        return ADVANTAGES[name]
    raise ValueError(f"unknown advantage {name!r}; {nearest(name, ADVANTAGES)}")


def value_mask(advantage: str, mask: Tensor) -> Tensor:
    """Where an estimator's values are trained: (B, L) bool action tokens -> (B, L) bool.

    All action tokens, or the first one of each turn for an estimator in ``PER_TURN``.
    """
    return turn_starts(mask) if advantage in PER_TURN else mask


def discounted_sums(
    steps: Tensor, mask: Tensor, factor: float | Tensor, tail: Tensor | None = None
) -> Tensor:
    """S_t = x_t + factor S_next over action tokens: (B, L) -> (B, L).

    Takes ceil(log2(T)) vectorized passes instead of T: a sum over 2^k steps is made from two sums over
    2^(k-1) steps.

    Args:
        steps: (B, L) x; read at action tokens only.
        mask: (B, L) bool, action tokens.
        factor: discount per action token; or (B, L), from each action token to the next.
        tail: (B,) S after the last action token, None = 0.

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
    if isinstance(factor, Tensor):
        power = torch.ones_like(packed)
        power[rows, slots] = factor.to(packed)[rows, columns]
    while stride <= width:
        packed = packed + power * _shifted(packed, stride)
        power = power * (_shifted(power, stride) if isinstance(power, Tensor) else power)
        stride *= 2
    sums = torch.zeros_like(steps)
    sums[rows, columns] = packed[rows, slots]
    return sums


def next_action_values(values: Tensor, mask: Tensor, tail: Tensor | None = None) -> Tensor:
    """V of the state of the next action token: (B, L) -> (B, L), 0 outside the mask.

    Args:
        values: (B, L) V of the state before the token.
        mask: (B, L) bool, action tokens.
        tail: (B,) V after the last action token, None = 0.

    Example:
        >>> mask = torch.tensor([[False, True, False, True]])
        >>> next_action_values(torch.tensor([[9.0, 1.0, 9.0, 2.0]]), mask).tolist()
        [[0.0, 2.0, 0.0, 0.0]]
    """
    length = mask.shape[1]
    columns = torch.arange(length, device=mask.device).expand_as(mask)
    following = torch.full_like(columns, length)
    actions = torch.where(mask, columns, length)
    following[:, :-1] = actions[:, 1:].flip(-1).cummin(-1).values.flip(-1)
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
    discount: str = "token",
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16).

    delta_t = r_t + gamma V_next - V_t and A_t = sum over k of (gamma lambda)^k delta_{t+k}; the time steps
    are the action tokens. With ``discount="turn"`` gamma is 1 between two tokens of a turn.

    Args:
        rewards: (B, L) rewards at action tokens.
        mask: (B, L) bool, action tokens.
        values: (B, L) V of the state before the token.
        final_values: (B,) V after the last action token; None = 0. To bootstrap truncated episodes only, see
            ``textenv.agents.policies.critics.bootstrap_values``.
        gamma: discount per action token, or per turn.
        gae_lambda: lambda, per action token.
        discount: "token" or "turn", see ``textenv.agents.losses.turns.step_discounts``.

    Returns:
        (advantages, returns = advantages + values), each (B, L), detached, 0 outside the mask.
    """
    values = torch.where(mask, _at_least_float32(values.detach()), 0.0)
    tail = None if final_values is None else final_values.detach()
    factor = step_discounts(mask, gamma, discount, values.dtype)
    deltas = rewards.to(values) + factor * next_action_values(values, mask, tail) - values
    advantages = discounted_sums(deltas, mask, factor * gae_lambda)
    return advantages, advantages + values


@register_advantage("turn-gae", per_turn=True)
def turn_gae(
    rewards: Tensor,
    mask: Tensor,
    *,
    values: Tensor,
    final_values: Tensor | None = None,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation with turns as time steps.

    delta_k = R_k + gamma V(s_{k+1}) - V(s_k) and A_k = delta_k + gamma lambda A_{k+1}. R_k is the sum of the
    rewards of turn k, V(s_k) the value at its first action token. All action tokens of turn k get A_k.

    Args:
        rewards: (B, L) rewards at action tokens.
        mask: (B, L) bool, action tokens.
        values: (B, L) V of the state before the token; read at the first action token of each turn.
        final_values: (B,) V after the last action token, None = 0.
        gamma: discount per turn.
        gae_lambda: lambda, per turn.

    Returns:
        Advantages, constant over a turn, and returns A_k + V(s_k) at the first action token of each turn
        (where V is trained, see ``PER_TURN``); each (B, L), detached, 0 elsewhere.
    """
    starts = turn_starts(mask)
    values = torch.where(starts, _at_least_float32(values.detach()), 0.0)
    sums = at_turns(turn_sums(rewards.to(values), mask), mask)
    advantages, returns = gae(
        sums, starts, values=values, final_values=final_values, gamma=gamma, gae_lambda=gae_lambda
    )
    return at_turns(turn_sums(advantages, mask), mask), returns


@register_advantage("monte-carlo")
def monte_carlo(
    rewards: Tensor,
    mask: Tensor,
    *,
    values: Tensor | None = None,
    final_values: Tensor | None = None,
    gamma: float = 1.0,
    discount: str = "token",
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Discounted return to go, minus V if there are values (GAE with lambda = 1).

    Args:
        rewards: (B, L) rewards at action tokens.
        mask: (B, L) bool, action tokens.
        values: (B, L) baseline, None = 0.
        final_values: (B,) V after the last action token, None = 0.
        gamma: discount per action token, or per turn.
        discount: "token" or "turn".

    Returns:
        (advantages, returns), each (B, L), 0 outside the mask.
    """
    tail = None if final_values is None else final_values.detach()
    returns = discounted_sums(rewards, mask, step_discounts(mask, gamma, discount), tail)
    if values is None:
        return returns, returns
    return returns - torch.where(mask, values.detach().to(returns), 0.0), returns


@register_advantage("batch-mean")
def batch_mean(
    rewards: Tensor, mask: Tensor, *, gamma: float = 1.0, discount: str = "token", **_: object
) -> tuple[Tensor, Tensor]:
    """Batch baseline of REINFORCE: return to go minus the mean return of the episodes (Williams 1992).

    Args:
        rewards: (B, L) rewards at action tokens.
        mask: (B, L) bool, action tokens.
        gamma: discount per action token, or per turn.
        discount: "token" or "turn".

    Returns:
        (advantages, returns), each (B, L), 0 outside the mask.
    """
    returns = discounted_sums(rewards, mask, step_discounts(mask, gamma, discount))
    starts = mask & (mask.cumsum(-1) == 1)
    baseline = returns[starts].mean() if bool(starts.any()) else 0.0
    return torch.where(mask, returns - baseline, 0.0), returns


@register_advantage("rloo")
def rloo(rewards: Tensor, mask: Tensor, *, groups: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    """Leave-one-out baseline: R_i minus the mean R of the other episodes of its group.

    Ahmadian et al. 2024, "Back to basics: revisiting REINFORCE style optimization for learning from human
    feedback in LLMs".

    Args:
        rewards: (B, L); R_i is their sum over action tokens.
        mask: (B, L) bool, action tokens.
        groups: (B,) int64, equal for the episodes of a group.

    Returns:
        (advantages, returns), each (B, L), constant over the action tokens of an episode.

    Raises:
        ValueError: if a group has one episode.
    """
    scores = torch.where(mask, _at_least_float32(rewards), 0.0).sum(-1)
    above, sums, _squares, counts = group_moments(scores, groups)
    advantages = above - (sums - above) / (counts - 1)
    return _expand_to_tokens(advantages, mask), _expand_to_tokens(scores, mask)


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
    """Group-relative: (R_i - mean) / (std + eps) with the sample std of the group (GRPO).

    Shao et al. 2024, "DeepSeekMath", section 4.1.2. In a group with equal scores R_i - mean is not divided:
    it is 0, or with a KL penalty in the rewards only the noise of the KL estimate, which the division would
    scale to variance 1.

    Args:
        rewards: (B, L); R_i is their sum over action tokens.
        mask: (B, L) bool, action tokens.
        groups: (B,) int64, equal for the episodes of a group.
        scores: (B,) task returns (without KL penalties); None = R.
        scale: False does not divide (Dr. GRPO, Liu et al. 2025).
        eps: added to the standard deviation.

    Returns:
        (advantages, returns), each (B, L), constant over the action tokens of an episode.

    Raises:
        ValueError: if a group has one episode.
    """
    returns = torch.where(mask, _at_least_float32(rewards), 0.0).sum(-1)
    above, sums, squares, counts = group_moments(returns, groups)
    advantages = above - sums / counts
    if scale:
        divisors = (squares / (counts - 1)).sqrt() + eps
        if scores is not None:
            equal = group_moments(scores, groups)[2] == 0
            divisors = torch.where(equal, 1.0, divisors)
        advantages = advantages / divisors
    return _expand_to_tokens(advantages, mask), _expand_to_tokens(returns, mask)


@register_advantage("dr_grpo")
def dr_grpo(rewards: Tensor, mask: Tensor, *, groups: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    """R_i minus the mean of the group, not divided by the std (Dr. GRPO, Liu et al. 2025)."""
    return grpo(rewards, mask, groups=groups, scale=False)


def _shifted(values: Tensor, count: int) -> Tensor:
    """The values moved ``count`` columns to the left, followed by zeros: (B, T) -> (B, T)."""
    return torch.nn.functional.pad(values[:, count:], (0, count))


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _expand_to_tokens(per_episode: Tensor, mask: Tensor) -> Tensor:
    """The number of each episode at each of its action tokens, 0 elsewhere: (B,) -> (B, L)."""
    return torch.where(mask, per_episode.unsqueeze(-1), 0.0)


def group_moments(scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moments of the group of each episode, relative to the lowest score of the group: (B,) -> 4 x (B,).

    Relative to the lowest score, equal scores give exact zeros without rounding errors.

    Args:
        scores: (B,).
        groups: (B,) int64, equal for the episodes of a group.

    Returns:
        The score minus the lowest score; its sum over the group; the sum of squared deviations from the mean;
        the size of the group.

    Raises:
        ValueError: if a group has one episode.

    Example:
        >>> scores, groups = torch.tensor([5.0, 0.1, 7.0, 0.1]), torch.tensor([3, 8, 3, 8])
        >>> [moment.tolist() for moment in group_moments(scores, groups)[:3]]
        [[0.0, 0.0, 2.0, 0.0], [2.0, 0.0, 2.0, 0.0], [2.0, 0.0, 2.0, 0.0]]
    """
    _, index, sizes = groups.unique(return_inverse=True, return_counts=True)
    if int(sizes.min()) < 2:
        single = groups[sizes[index] == 1]
        raise ValueError(
            f"every group needs at least 2 episodes, got 1 for group {int(single[0])}; "
            "set samples_per_prompt >= 2"
        )
    zeros = torch.zeros(len(sizes), dtype=scores.dtype, device=scores.device)
    above = scores - zeros.scatter_reduce(0, index, scores, "amin", include_self=False)[index]
    sums = zeros.index_add(0, index, above)
    squares = zeros.index_add(0, index, (above - (sums / sizes)[index]).square())
    return above, sums[index], squares[index], sizes[index].to(scores)


def group_std(scores: Tensor, groups: Tensor) -> Tensor:
    """Sample standard deviation of the group of each episode, exactly 0 for equal scores: (B,) -> (B,).

    Arguments and errors are those of ``group_moments``.
    """
    _, _, squares, counts = group_moments(scores, groups)
    return (squares / (counts - 1)).sqrt()
