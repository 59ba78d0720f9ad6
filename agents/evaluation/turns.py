"""Metrics of episodes of several turns."""

from __future__ import annotations

from textenv.envs.turns import STOP_REASONS
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.conversations import ERRORS, REPLIES, STOP_REASON, TIMEOUTS, TURNS
from textenv.partners.tools import tool_counts


def turn_metrics(episodes: EpisodeBatch) -> dict[str, float]:
    """Of episodes with a partner: turns per episode, failed calls, and the share of each stop reason.

    With the partner "tools" also the calls of tools, and the failed ones, per episode.

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
    if any("tool_calls" in reply["info"] for replies in extras[REPLIES] for reply in replies):
        calls, failed = zip(*map(tool_counts, extras[REPLIES]), strict=True)
        row["rollout/tool_calls"] = sum(calls) / len(episodes)
        row["rollout/tool_errors"] = sum(failed) / len(episodes)
    return row
