"""The KL metrics of rollouts and evaluations."""

from __future__ import annotations


def kl_row(total: float, *, episodes: int, tokens: int) -> dict[str, float]:
    """KL to the reference in nats, per episode and per token, from its sum over all response tokens.

    >>> kl_row(6.0, episodes=2, tokens=12)
    {'objective/kl': 3.0, 'objective/kl_per_token': 0.5}
    """
    return {"objective/kl": total / episodes, "objective/kl_per_token": total / max(1, tokens)}
