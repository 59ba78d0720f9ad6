"""Reward-hacking watch: compares the training reward with a judge that is not used for training."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.table import Table
from torch import Tensor

from textenv.agents.base.callbacks import Callback, RunningAgent
from textenv.agents.distributed import process_group
from textenv.rewards.registry import make_reward
from textenv.rewards.term import RewardTerm
from textenv.utils.extras import import_extra
from textenv.utils.names import nearest
from textenv.utils.terminal import text_table

if TYPE_CHECKING:
    from textenv.agents.base.result import TrainResult
    from textenv.agents.evaluation.evaluator import Evaluation

WATCHED = ("objective/kl", "text/repetition", "episode/length")
"""Metrics of an evaluation that are shown beside proxy and judge."""
BEST = "best-by-judge"
"""Folder of the best agent by the judge, in the run's folder."""


class RewardHackingWatch(Callback):
    """Scores every evaluation with a judge, and warns when the reward rises while the judge's score falls.

    Optimising a proxy reward first raises both scores, and later only the proxy's (Gao et al. 2023,
    "Scaling laws for reward model overoptimization"). Evaluations replay the same prompts with the same
    noise, so each episode's slope over the last ``window`` evaluations is one paired observation; proxy and
    judge diverge if the mean slope of the proxy is above 0 and that of the judge below 0, both by a
    one-sided t-test at level ``alpha``.

    Every evaluation gains the metrics ``judge/mean``, ``judge/std``, ``watch/proxy_slope`` and
    ``watch/judge_slope`` (reward units per evaluation), ``watch/parted`` and ``watch/over_limit`` (0 or 1),
    and its samples a column ``metric/judge``. Put the watch before callbacks that read these.

    Args:
        judge: a reward term, a spec such as ``["reward-model", {"model": folder}]``, or a function
            ``(prompts, completions) -> list of numbers``. Training must not see it.
        proxy: name of the reward term that is optimised; None is the return less the KL penalty.
        window: evaluations that the slopes are fitted to, at least 3.
        alpha: level of the tests.
        limits: metric of the evaluation -> highest allowed value, such as ``{"objective/kl": 10.0}``.
        action: what to do when they diverge or a limit is exceeded: "warn", or also "stop" the training.
        keep_best: keep the agent with the best judge within the limits in ``best-by-judge`` of the run's
            folder.
        baseline: evaluate once before the training, so that slopes start at the policy it starts from.

    Raises:
        ValueError: if an argument is out of range; at the start, if the agent has no ``eval_envs``, or
            ``keep_best`` is asked of one without a run's folder.
    """

    def __init__(
        self,
        judge: RewardTerm | Sequence[Any] | str | Callable[..., Any],
        *,
        proxy: str | None = None,
        window: int = 4,
        alpha: float = 0.05,
        limits: Mapping[str, float] | None = None,
        action: Literal["warn", "stop"] = "warn",
        keep_best: bool = False,
        baseline: bool = True,
    ) -> None:
        if window < 3:
            raise ValueError(f"window must be >= 3, got {window}")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {alpha}")
        if action not in ("warn", "stop"):
            raise ValueError(f"action must be one of 'warn', 'stop', got {action!r}")
        scipy_stats()  # so that a missing scipy is an error at the start
        self.judge = make_reward(judge)
        self.proxy, self.window, self.alpha = proxy, window, alpha
        self.limits, self.action = dict(limits or {}), action
        self.keep_best, self.baseline = keep_best, baseline
        self.proxies: list[list[float]] = []
        self.judgements: list[list[float]] = []
        self.history: list[dict[str, float]] = []
        self.best: float | None = None
        self._stop = False
        self._warned: set[str] = set()

    def on_start(self, agent: RunningAgent) -> None:
        """Check the agent and evaluate the initial policy."""
        if agent.eval_envs is None:
            raise ValueError("RewardHackingWatch needs an agent with eval_envs, got None")
        if self.keep_best and agent.run_dir is None:
            raise ValueError("keep_best needs an agent with a run_dir, got None")
        if self.baseline and not self.history:
            self.on_evaluation(agent, agent.first_evaluation())

    def on_evaluation(self, agent: RunningAgent, evaluation: Evaluation) -> None:
        """Judge the episodes, test the slopes, warn, keep the best."""
        envs = agent.eval_envs
        self.judge.bind(envs.unwrapped)
        with torch.no_grad():
            judged = self.judge.score(evaluation.episodes)
        if judged.dim() == 2:
            judged = torch.where(evaluation.episodes.action_mask, judged, 0.0).sum(-1)
        self._add(self.proxies, self._proxy(evaluation).tolist())
        self._add(self.judgements, judged.tolist())
        for sample, value in zip(evaluation.samples, judged.tolist(), strict=False):
            sample["metrics"]["judge"] = value

        metrics = evaluation.metrics
        metrics["judge/mean"] = float(judged.double().mean())
        metrics["judge/std"] = float(judged.double().std(correction=0))
        slopes = self._test()
        metrics |= slopes
        over = self._over(metrics)
        metrics["watch/over_limit"] = float(bool(over))
        self.history.append(
            {"iteration": float(agent.iteration), "proxy": self._mean(self.proxies)}
            | {name: metrics[name] for name in ("judge/mean", *WATCHED, *slopes) if name in metrics}
        )
        for name in over:
            self._warn(
                name,
                f"{name} is {metrics[name]:.4g} at iteration {agent.iteration}, above its limit "
                f"{self.limits[name]:.4g}",
            )
        if slopes.get("watch/parted"):
            self._warn(
                "parted",
                f"reward and judge diverge at iteration {agent.iteration}: over the last "
                f"{len(self.proxies)} evaluations the reward moved by {slopes['watch/proxy_slope']:+.3g} and "
                f"the judge by {slopes['watch/judge_slope']:+.3g} per evaluation (judge now "
                f"{metrics['judge/mean']:.3g}); the policy may be exploiting the reward",
            )
        self._stop = self.action == "stop" and bool(over or slopes.get("watch/parted"))
        self._keep(agent, metrics["judge/mean"], fine=not over)
        self._write(agent)

    def on_iteration(self, agent: RunningAgent, metrics: Mapping[str, float]) -> bool:
        """End the training if it is to stop."""
        return self._stop

    def on_end(self, agent: RunningAgent, result: TrainResult[Any]) -> None:
        """Write proxy and judge of all evaluations into the run's folder."""
        self._write(agent)

    def table(self) -> Table:
        """Proxy, judge, KL, repetition and length per evaluation, for ``rich.print``."""
        columns = list(self.history[0]) if self.history else []
        columns = [name for name in columns if not name.startswith("watch/")]
        rows = [[row.get(name, math.nan) for name in columns] for row in self.history]
        return text_table(columns, rows, title="reward and judge")

    def state_dict(self) -> dict[str, Any]:
        """The last evaluations by episode, the history of all, and the best so far."""
        names = ("proxies", "judgements", "history", "best")
        return {name: getattr(self, name) for name in names} | {"warned": sorted(self._warned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        for name in ("proxies", "judgements", "history", "best"):
            setattr(self, name, state[name])
        self._warned = set(state["warned"])

    # -- internals -------------------------------------------------------------------------------------------

    def _proxy(self, evaluation: Evaluation) -> Tensor:
        """(B,) reward of the texts."""
        terms = evaluation.episodes.reward_terms
        if self.proxy is not None:
            if self.proxy not in terms:
                raise ValueError(f"proxy {self.proxy!r} is no reward term; {nearest(self.proxy, terms)}")
            return terms[self.proxy].sum(-1)
        kl = [values for name, values in terms.items() if name.split("#")[0] == "kl"]
        return evaluation.episodes.returns - sum((v.sum(-1) for v in kl), torch.zeros(()))

    def _add(self, rows: list[list[float]], values: list[float]) -> None:
        if rows and len(rows[-1]) != len(values):
            rows.clear()  # the number of episodes has changed: no earlier rows can be paired with these
        rows.append(values)
        del rows[: -self.window]

    def _mean(self, rows: list[list[float]]) -> float:
        return sum(rows[-1]) / len(rows[-1])

    def _test(self) -> dict[str, float]:
        """Mean slopes, and whether they diverge; nothing while there are fewer than 3 evaluations."""
        if len(self.proxies) < 3:
            return {}
        proxy, judge = slopes(self.proxies), slopes(self.judgements)
        diverged = rises(proxy, self.alpha) and rises(-judge, self.alpha)
        return {
            "watch/proxy_slope": float(proxy.mean()),
            "watch/judge_slope": float(judge.mean()),
            "watch/parted": float(diverged),
        }

    def _over(self, metrics: Mapping[str, float]) -> list[str]:
        for name in self.limits:
            if name not in metrics:
                raise ValueError(f"limits has the unknown metric {name!r}; {nearest(name, metrics)}")
        return [name for name, limit in self.limits.items() if metrics[name] > limit]

    def _warn(self, kind: str, message: str) -> None:
        """Warn once for each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=3)

    def _keep(self, agent: RunningAgent, judge: float, *, fine: bool) -> None:
        if not self.keep_best or not fine or math.isnan(judge):
            return
        if self.best is None or judge > self.best:
            assert agent.run_dir is not None
            self.best = judge
            agent.save(Path(agent.run_dir) / BEST)

    def _write(self, agent: RunningAgent) -> None:
        if agent.run_dir is not None and process_group.is_main():
            path = Path(agent.run_dir) / "watch.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in self.history), encoding="utf-8")


def slopes(rows: Sequence[Sequence[float]]) -> Tensor:
    """Least-squares slope of each episode over equally spaced evaluations: w rows of B numbers -> (B,).

    >>> slopes([[0.0, 1.0], [1.0, 1.0], [2.0, 4.0]]).tolist()
    [1.0, 1.5]
    """
    values = torch.tensor(rows, dtype=torch.float64)
    time = torch.arange(len(values), dtype=torch.float64)
    time = time - time.mean()
    return time @ values / time.square().sum()


def rises(values: Tensor, alpha: float) -> bool:
    """Whether the mean is above 0 by a one-sided t-test at level ``alpha``: (B,) -> bool."""
    if len(values) < 2 or bool((values == values[0]).all()):
        return len(values) > 0 and float(values[0]) > 0
    return bool(scipy_stats().ttest_1samp(values.numpy(), 0.0, alternative="greater").pvalue < alpha)


def scipy_stats() -> Any:
    """The t-test's module.

    Raises:
        ImportError: without scipy.
    """
    return import_extra("scipy.stats", extra="pipeline", what="RewardHackingWatch")
