"""Task returns: returns of episodes without KL penalties.

Agents that compare the episodes of a prompt use task returns, because returns with KL penalties differ at
least by the noise of the KL estimate. Shape letters: B episodes, L tokens.
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
    """The reward wrappers that add a KL penalty, innermost first."""
    return [w for w in scorer.reward_wrappers(envs) if isinstance(w.term, KLPenalty)]


def kl_penalties(episodes: EpisodeBatch, envs: Any) -> Tensor:
    """Sum of the KL penalties in the rewards: (B, L)."""
    kl = torch.zeros_like(episodes.rewards)
    for wrapper in kl_wrappers(envs):
        kl = kl + episodes.reward_terms[wrapper.name]
    return kl


def is_penalty(term: Any) -> bool:
    """Whether a reward term is a KL penalty, or a shaping term that contains only KL penalties."""
    inner = term.terms if isinstance(term, Shaped) else []
    return isinstance(term, KLPenalty) or (bool(inner) and all(is_penalty(one) for one in inner))


def task_returns(episodes: EpisodeBatch, envs: Any) -> Tensor:
    """Returns without KL penalties: (B,) float64.

    Computed as the sum of the other reward terms, so that equal task returns are exactly equal. If another
    wrapper changes rewards, terms do not sum to the return; then the penalties are subtracted from it.

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
    returns = episodes.returns.new_zeros(len(episodes)).double()
    for name, values in terms.items():
        if name not in penalties and not name.startswith(RAW):
            returns = returns + values.double().sum(-1)
    return returns
