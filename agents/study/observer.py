"""Callback of a study's runs: evenly spaced evaluations with held-out judge and KL, and the budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from textenv.agents.base.callbacks import Callback, RunningAgent
from textenv.agents.base.iteration import SPENT
from textenv.agents.study.config import Budget
from textenv.rewards.registry import make_reward

if TYPE_CHECKING:
    from textenv.agents.evaluation.evaluator import Evaluation
    from textenv.episodes.batch import EpisodeBatch

JUDGE, KL, SECONDS = "judge/mean", "start_kl", "train_seconds"
"""Metrics that it adds to an evaluation."""


class Observer(Callback):
    """Evaluate a run ``evaluations`` times with judge and KL, and stop it when its budget is spent.

    Args:
        evaluations: how many, evenly spaced over the run; the last is at its end.
        budget: limits of the run's cost; the run's progress is that of the limit closest to being reached.
        judge: reward spec of the held-out reward, None for none.
        reference: policy that the KL is measured from.
    """

    def __init__(self, evaluations: int, budget: Budget, judge: Any, reference: Any) -> None:
        self.evaluations, self.limits, self.reference = evaluations, budget.limits(), reference
        self.judge = None if judge is None else make_reward(judge)
        self.seconds = 0.0
        self.due = 1

    def on_start(self, agent: RunningAgent) -> None:
        """Save a checkpoint with each evaluation, unless the settings say how often."""
        if not agent.config.checkpoint_every:
            every = max(1, agent.planned_iterations() // self.evaluations)
            agent.config = agent.config.replace(checkpoint_every=every)

    def wants_evaluation(self, agent: RunningAgent, metrics: Mapping[str, float]) -> bool:
        """Count the seconds; whether the next evaluation's time has come."""
        # "time/waiting" is a part of "time/rollout".
        parts = [name for name in metrics if name.startswith("time/") and name != "time/waiting"]
        self.seconds += sum(metrics[name] for name in parts)
        reached = int(self.progress(agent) * self.evaluations + 1e-9)
        if reached < self.due:
            return False
        self.due = reached + 1
        return True

    def on_evaluation(self, agent: RunningAgent, evaluation: Evaluation) -> None:
        """Add the judge's score, the KL from the initial policy, and the seconds of training."""
        metrics, episodes = evaluation.metrics, evaluation.episodes
        if self.judge is not None:
            self.judge.bind(agent.eval_envs.unwrapped)
            metrics[JUDGE] = float(judged(self.judge, episodes).mean())
        # Best-of-n reports its KL: its texts are not samples of its policy, so no estimate is made here.
        stated = metrics.get("objective/kl") if agent.reference is None else None
        metrics[KL] = kl_from(agent.policy, self.reference, episodes) if stated is None else stated
        metrics[SECONDS] = self.seconds

    def on_iteration(self, agent: RunningAgent, metrics: Mapping[str, float]) -> bool:
        """End the run when its budget is spent."""
        return agent.iteration < agent.planned_iterations() and self.progress(agent) >= 1

    def progress(self, agent: RunningAgent) -> float:
        """Fraction of the run that is done: the largest of those of iterations and budgets."""
        spent = {name: float(getattr(agent, name)) for name in SPENT} | {"seconds": self.seconds}
        fractions = [spent[name] / limit for name, limit in self.limits.items()]
        return max(agent.iteration / agent.planned_iterations(), *fractions, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far, and which evaluation comes next."""
        return {"seconds": self.seconds, "due": self.due}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.seconds, self.due = state["seconds"], state["due"]


@torch.no_grad()
def judged(term: Any, episodes: EpisodeBatch) -> torch.Tensor:
    """Scores of a bound reward term, float64: (B,)."""
    scores = term.score(episodes)
    if scores.dim() == 2:
        scores = torch.where(episodes.action_mask, scores, 0.0).sum(-1)
    return scores.double()


def kl_from(policy: Any, reference: Any, episodes: EpisodeBatch) -> float:
    """KL from the reference: k1 estimate, summed over action tokens, mean nats per episode."""
    episodes = episodes.to(policy.device)
    difference = policy.log_prob(episodes) - reference.log_prob(episodes)
    return float(difference[episodes.action_mask].double().sum()) / len(episodes)
