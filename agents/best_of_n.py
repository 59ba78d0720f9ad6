"""Best-of-n sampling: no training at all, and hard to beat; the anchor of comparisons along the KL.

Shape letters: B episodes, P prompts, n samples of a prompt, k of them that a choice is made from.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from textenv.agents.base.agent import Agent
from textenv.agents.base.groups import check_groups, group_rows
from textenv.agents.base.registry import register_agent
from textenv.agents.evaluation.evaluator import Evaluation
from textenv.agents.settings.effects import refuse_dataset
from textenv.agents.settings.samples import BestOfNConfig
from textenv.episodes.batch import EpisodeBatch
from textenv.utils.names import nearest


def best_of_n_kl(n: int) -> float:
    """Nats by which best-of-n sampling departs from the policy that it samples: log n - (n - 1) / n.

    Stiennon et al. 2020, "Learning to summarize from human feedback", appendix G.3. Exact where no two
    samples score alike, and an upper bound always (Beirami et al. 2024, "Theoretical guarantees on the
    best-of-n alignment policy", theorem 3.1).

    Raises:
        ValueError: if n is below 1.

    >>> best_of_n_kl(1), round(best_of_n_kl(4), 4)
    (0.0, 0.6363)
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_k(scores: Tensor, values: Tensor | None = None) -> Tensor:
    """Unbiased estimates of what the best of k samples is worth, for every k up to n, from n samples.

    The mean over all subsets of k samples (Nakano et al. 2021, "WebGPT", appendix I): the i-th smallest score
    is the best of comb(i - 1, k - 1) of the comb(n, k) subsets.

    Args:
        scores: (P, n) by which the best is chosen.
        values: (P, n) what the chosen one is worth, the scores by default; samples that score alike are
            chosen equally often.

    Returns:
        (P, n) float64; column k - 1 is the estimate for the best of k.

    Raises:
        ValueError: if the shapes are not as said.

    Example:
        >>> [[round(x, 4) for x in row] for row in best_of_k(torch.tensor([[1.0, 4.0, 2.0]])).tolist()]
        [[2.3333, 3.3333, 4.0]]
    """
    values = scores if values is None else values
    if scores.dim() != 2 or not scores.shape[1] or values.shape != scores.shape:
        shapes = f"{tuple(scores.shape)} and {tuple(values.shape)}"
        raise ValueError(f"scores and values must both have the shape (P, n), n >= 1, got {shapes}")
    n = scores.shape[1]
    worth = torch.stack([_tie_means(*row) for row in zip(scores, values.double(), strict=True)])
    worth = worth.gather(1, scores.argsort(1))
    # comb(i - 1, k - 1) / comb(n, k) from the largest score down, without huge numbers.
    k = torch.arange(1, n + 1, dtype=torch.float64, device=scores.device)
    shares = [k / n]
    for i in range(n - 1, 0, -1):
        shares.append(shares[-1] * (i - k + 1).clamp_min(0) / i)
    return worth @ torch.stack(shares[::-1])


def _tie_means(scores: Tensor, values: Tensor) -> Tensor:
    """The mean value of all samples that score as each does: (n,), (n,) -> (n,)."""
    index = scores.unique(return_inverse=True)[1]
    sums = torch.zeros_like(values).index_add(0, index, values)
    return (sums / index.bincount(minlength=len(values)))[index]


@register_agent("best-of-n")
class BestOfN(Agent):
    """Best-of-n sampling: the policy as it is, n samples a prompt, the best by reward; nothing is trained.

    ``learn`` only evaluates (and saves the policy in ``run_dir``); ``act`` samples once, as the policy does.
    """

    online = True
    config_class = BestOfNConfig
    config: BestOfNConfig

    @classmethod
    def group_size(cls, config: Any, *, evaluation: bool = False) -> int:
        """Episodes on each prompt: n, in evaluation."""
        return config.n if evaluation else 1

    def setup(self) -> None:
        """Refuse a data set.

        Raises:
            ValueError: if there is one.
        """
        refuse_dataset(self, "on best-of-n, which trains nothing")

    def planned_iterations(self) -> int:
        """One, which holds an evaluation and no update."""
        return 1

    def planned_steps(self) -> int:
        """No optimizer step at all."""
        return 0

    def train_loop(self) -> None:
        """Evaluate, where there is something to evaluate on."""
        if self.iteration == 0:
            self.iteration = 1
            self.end_iteration({})

    def best(self, episodes: EpisodeBatch) -> tuple[EpisodeBatch, Tensor]:
        """The best episode of each group, and what the best of k would have returned.

        Args:
            episodes: B = P n episodes with rewards, n consecutive tickets on each prompt.

        Returns:
            P episodes, and (P, n) float64 unbiased estimates for k = 1..n, see ``best_of_k``.

        Raises:
            ValueError: if the episodes are no whole groups, or have no such reward term.
        """
        rows = group_rows(episodes, self.config.n)
        returns, name = episodes.returns, self.config.choose_by
        if name is not None and name not in episodes.reward_terms:
            known = nearest(name, episodes.reward_terms)
            raise ValueError(f"choose_by must be a reward term of the environment, got {name!r}; {known}")
        scores = (returns if name is None else episodes.reward_terms[name].sum(-1))[rows]
        chosen = rows.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
        return episodes.select(chosen), best_of_k(scores, returns[rows])

    def evaluate(self, envs: Any = None, episodes: int | None = None, **options: Any) -> Evaluation:
        """Play n episodes on each of ``episodes`` prompts and measure the best ones; see ``Agent.evaluate``.

        Further metrics: ``objective/kl``, nats, the bound ``best_of_n_kl``; ``best_of_k/return@K`` for K = 1,
        2, 4, ... and n, unbiased estimates from all samples, and ``best_of_k/kl@K``.

        Raises:
            ValueError: if the environment does not deal n episodes of each prompt.
        """
        n = self.config.n
        envs = next(found for found in (envs, self.eval_envs, self.envs) if found is not None)
        check_groups(envs, n, who=f"best-of-n with n={n}")
        curves: list[Tensor] = []

        def keep(played: EpisodeBatch) -> EpisodeBatch:
            kept, curve = self.best(played)
            curves.append(curve)
            return kept

        found = super().evaluate(envs, n * (episodes or self.config.eval_episodes), keep=keep, **options)
        returns = curves[0].mean(0).tolist()
        for k in sorted({n, *(2**i for i in range(n.bit_length()))} & set(range(1, n + 1))):
            found.metrics[f"best_of_k/return@{k}"] = returns[k - 1]
            found.metrics[f"best_of_k/kl@{k}"] = best_of_n_kl(k)
        found.metrics["objective/kl"] = best_of_n_kl(n)
        return found
