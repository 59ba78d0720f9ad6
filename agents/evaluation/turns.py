"""Metrics of episodes of several turns."""

from __future__ import annotations

from textenv.envs.turns import STOP_REASONS
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.conversations import ERRORS, STOP_REASON, TIMEOUTS, TURNS


def turn_metrics(episodes: EpisodeBatch) -> dict[str, float]:
    """Of episodes with a partner: turns per episode, failed calls, and the share of each stop reason.

    >>> turn_metrics(EpisodeBatch.from_ids([[1]], [[2]]))
    {}
    """
    extras = episodes.extras
    if STOP_REASON not in extras:
        return {}
    reasons = extras[STOP_REASON]
    row = {
        "rollout/turns": sum(map(len, extras[TURNS])) / max(1, len(episodes)),
        "rollout/partner_errors": float(sum(extras[ERRORS])),
        "rollout/partner_timeouts": float(sum(extras[TIMEOUTS])),
    }
    for reason in STOP_REASONS:
        row[f"rollout/stop_reason/{reason}"] = reasons.count(reason) / max(1, len(episodes))
    return row
