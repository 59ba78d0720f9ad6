"""Scores of a task: what episodes returned without the penalties for their KL divergence.

Agents that compare the episodes of a prompt judge by them whether there is anything to learn. Returns with
the KL in them nearly always differ, if only by the noise of its estimate. Shape letters: B episodes, L
tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textenv import scoring as scorer
from textenv.envs.step_buffer import RAW
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.kl import KLPenalty
from textenv.rewards.shaping import Shaped


def kl_wrappers(envs: Any) -> list[Any]:
    """The reward wrappers that pay a KL penalty, innermost first."""
    return [w for w in scorer.reward_wrappers(envs) if isinstance(w.term, KLPenalty)]


def paid_kl(episodes: EpisodeBatch, envs: Any) -> Tensor:
    """What KL penalties paid: (B, L)."""
    kl = torch.zeros_like(episodes.rewards)
    for wrapper in kl_wrappers(envs):
        kl = kl + episodes.reward_terms[wrapper.name]
    return kl


def is_penalty(term: Any) -> bool:
    """Whether a reward term pays for the KL and nothing else: a KL penalty, or a shaping term of such."""
    inner = term.terms if isinstance(term, Shaped) else []
    return isinstance(term, KLPenalty) or (bool(inner) and all(is_penalty(one) for one in inner))


def task_scores(episodes: EpisodeBatch, envs: Any) -> Tensor:
    """Returns without what KL penalties paid: (B,) float64.

    The sum of the other terms, not a difference: what is equal comes out equal, without rounding. Where a
    wrapper from elsewhere changes the rewards of a step, terms do not sum to them, and it is the difference.

    Args:
        episodes: B scored episodes.
        envs: the environment that they were scored in.
    """
    terms = episodes.reward_terms
    wrappers = [w for w in scorer.reward_wrappers(envs) if w.name in terms and is_penalty(w.term)]
    penalties = {wrapper.name for wrapper in wrappers}
    if not penalties:
        return episodes.returns.double()
    if scorer.foreign_reward_wrappers(envs):
        return episodes.returns.double() - sum(terms[name].double().sum(-1) for name in penalties)
    scores = episodes.returns.new_zeros(len(episodes)).double()
    for name, values in terms.items():
        if name not in penalties and not name.startswith(RAW):
            scores = scores + values.double().sum(-1)
    return scores
