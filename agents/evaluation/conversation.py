"""Episodes of several turns as conversations, for samples, reports and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textenv.agents.losses.turns import turn_sums
from textenv.envs.rendering import POLICY
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.conversations import LAST_REPLY, OPENING, REPLIES, TURN_EXTRAS, TURNS
from textenv.utils.terminal import number

Message = dict[str, Any]
"""``{"role", "text", "reward"}``: the reward of a policy turn, or None."""


def conversations(episodes: EpisodeBatch) -> list[list[Message]] | None:
    """Who said what in each of the B episodes; None for episodes of one turn.

    The roles are "opening" (what the partner said before the first turn; messages have their own roles),
    "policy", and those of the replies. The reward of a turn is the sum over its tokens, of all reward
    terms. The last message may be the reply that ended the episode, which the policy did not see.

    Args:
        episodes: B episodes.
    """
    extras = episodes.extras
    if not all(name in extras for name in TURN_EXTRAS):
        return None
    rewards = turn_sums(episodes.rewards.double(), episodes.action_mask).tolist()
    columns = (extras[name] for name in (OPENING, TURNS, REPLIES, LAST_REPLY))
    found = []
    for opening, turns, replies, last, earned in zip(*columns, rewards, strict=True):
        messages = _opening(opening)
        for i, text in enumerate(turns):
            messages.append({"role": POLICY, "text": text, "reward": earned[i]})
            if i < len(replies) and (i < len(turns) - 1 or last):
                messages.append({"role": replies[i]["role"], "text": replies[i]["text"], "reward": None})
        found.append(messages)
    return found


def _opening(opening: Any) -> list[Message]:
    if not opening:
        return []
    if isinstance(opening, str):
        return [{"role": OPENING, "text": opening, "reward": None}]
    texts = [(said["role"], str(said.get("content") or "")) for said in opening]
    return [{"role": role, "text": text, "reward": None} for role, text in texts]


def conversation_line(messages: Sequence[Mapping[str, Any]]) -> str:
    """Turns and replies on one line, each policy turn with its reward; without the opening.

    >>> said = {"role": "policy", "text": "5", "reward": -0.1}
    >>> conversation_line([said, {"role": "user", "text": "lower"}])
    'policy (-0.1): 5 / user: lower'
    """
    first = next((i for i, said in enumerate(messages) if said["role"] == POLICY), 0)
    parts = []
    for said in messages[first:]:
        reward = said.get("reward")
        earned = "" if reward is None else f" ({'+' if reward > 0 else ''}{number(reward)})"
        parts.append(f"{said['role']}{earned}: {said['text']}")
    return " / ".join(parts)
