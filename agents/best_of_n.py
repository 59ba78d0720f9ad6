"""Best-of-n sampling: no training; the baseline for comparisons of reward against KL.

Shape letters: B episodes, P prompts, n samples per prompt, k of which the best is chosen.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from textenv.agents.base.agent import Agent
from textenv.agents.base.arguments import refuse_dataset
from textenv.agents.base.groups import check_groups, group_rows
from textenv.agents.base.registry import register_agent
from textenv.agents.evaluation.evaluator import Evaluation
from textenv.agents.losses.best_of_n import best_of_k, best_of_n_kl
from textenv.agents.settings.samples import BestOfNConfig
from textenv.episodes.batch import EpisodeBatch
from textenv.utils.names import nearest


@register_agent("best-of-n")
class BestOfN(Agent):
    """Best-of-n sampling: n samples per prompt, the best by reward; nothing is trained.

    ``learn`` only evaluates, and saves the policy in ``run_dir``; ``act`` samples once, as the policy does.
    """

    online = True
    config_class = BestOfNConfig
    config: BestOfNConfig

    @classmethod
    def group_size(cls, config: Any, *, evaluation: bool = False) -> int:
        """Episodes per prompt: n in evaluation."""
        return config.n if evaluation else 1

    def setup(self) -> None:
        """Refuse a data set.

        Raises:
            ValueError: if there is one.
        """
        refuse_dataset(self, "on best-of-n, which trains nothing")

    def planned_iterations(self) -> int:
        """One: an evaluation without an update."""
        return 1

    def planned_steps(self) -> int:
        """0 optimizer steps."""
        return 0

    def train_loop(self) -> None:
        """Evaluate, if there is an environment for it."""
        if self.iteration == 0:
            self.iteration = 1
            self.end_iteration({})

    def best(self, episodes: EpisodeBatch) -> tuple[EpisodeBatch, Tensor]:
        """The best episode of each group, and estimates of the return of the best of k.

        Args:
            episodes: B = P n episodes with rewards, with n consecutive episode ids per prompt.

        Returns:
            P episodes, and (P, n) float64 unbiased estimates for k = 1..n, see ``best_of_k``.

        Raises:
            ValueError: if the groups are incomplete, or the reward term ``choose_by`` is missing.
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
        """Generate n episodes on each of ``episodes`` prompts and measure the best ones.

        See ``Agent.evaluate``. Further metrics: ``objective/kl``, the bound ``best_of_n_kl`` in nats;
        ``best_of_k/return@K`` for K = 1, 2, 4, ... and n, unbiased estimates from all samples; and
        ``best_of_k/kl@K``.

        Raises:
            ValueError: if the environment does not generate n episodes per prompt.
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
