"""The callback that keeps what a report shows (evaluations before and after, some episodes) and writes it.

run_dir/evaluations/before.json    the first evaluation: metrics, samples, score of each episode
run_dir/evaluations/after.json     the latest one
run_dir/evaluations/rollout.json   scores of the first episodes to learn from, which the policy wrote
                                   before it learned anything (online agents)
run_dir/episodes/first.json        per-token views of some episodes of the first iteration
run_dir/episodes/last.json         the same of the latest iteration that was saved
run_dir/episodes/first.jsonl       whole episodes of that iteration, 256 at most, for ``textenv rescore``
run_dir/episodes/last.jsonl        the same of the latest iteration that was saved

``textenv.agents.reports.report`` reads them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.agents.base.callbacks import Callback, RunningAgent
from textenv.agents.distributed import process_group
from textenv.utils.json_files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from textenv.agents.base.result import TrainResult
    from textenv.agents.evaluation.evaluator import Evaluation
    from textenv.episodes.batch import EpisodeBatch

EPISODES = 6
"""Episodes that are kept token by token."""
STORED = 256
"""Episodes that are kept whole, at most."""
enabled = True
"""Global switch of run records and reports; the setting ``report`` is the switch of a single agent."""


class RunReport(Callback):
    """Keeps in the run's folder what its report shows, and writes ``report.html`` when the run ends.

    ``textenv.train``, the command line, the pipeline and studies attach one, after the user's callbacks. An
    agent that is built by hand gets one by ``callbacks=[RunReport()]``. Without a ``run_dir``, or if the
    setting ``report`` is off, it does nothing.
    """

    def on_start(self, agent: RunningAgent) -> None:
        """Evaluate the policy as it is before it learns."""
        if not (enabled and agent.run_dir is not None and agent.config.report):
            return
        if agent.iteration == 0 and agent.eval_envs is not None:
            found = agent.first_evaluation()  # in every process: generation is collective
            if process_group.is_main():
                save_evaluation(found, self._place(agent, "evaluations/before.json"), 0)

    def on_evaluation(self, agent: RunningAgent, evaluation: Evaluation) -> None:
        """Keep the latest evaluation."""
        if self._wanted(agent):
            save_evaluation(evaluation, self._place(agent, "evaluations/after.json"), agent.iteration)

    def on_iteration(self, agent: RunningAgent, metrics: Mapping[str, float]) -> None:
        """Keep the scores and some episodes of the first iteration."""
        if self._wanted(agent) and agent.iteration == 1 and agent.last_batch is not None:
            episodes = agent.last_batch.episodes
            write_json(
                self._place(agent, "evaluations/rollout.json"), {"scores": scores_of(episodes)}, indent=None
            )
            self._keep_episodes(agent, "first")

    def on_checkpoint(self, agent: RunningAgent, path: Path) -> None:
        """Keep some episodes of this iteration."""
        if self._wanted(agent):
            self._keep_episodes(agent, "last")

    def on_end(self, agent: RunningAgent, result: TrainResult[Any]) -> None:
        """Write the report."""
        if self._wanted(agent):
            assert agent.run_dir is not None
            report_at_end(agent.run_dir)

    def keep_last(self, agent: RunningAgent, evaluation: Evaluation) -> None:
        """Keep an evaluation that was made when the run had ended, and write the report again."""
        if self._wanted(agent):
            assert agent.run_dir is not None
            self.on_evaluation(agent, evaluation)
            report_at_end(agent.run_dir)

    @staticmethod
    def _wanted(agent: RunningAgent) -> bool:
        return enabled and agent.run_dir is not None and agent.config.report and process_group.is_main()

    @staticmethod
    def _place(agent: RunningAgent, name: str) -> Path:
        assert agent.run_dir is not None
        return agent.run_dir / name

    def _keep_episodes(self, agent: RunningAgent, name: str) -> None:
        from textenv.agents.reports.tokens import save_views, training_views

        if agent.last_batch is not None and agent.tokenizer is not None:
            views = training_views(agent.last_batch, agent.tokenizer, count=EPISODES)
            save_views(views, self._place(agent, f"episodes/{name}.json"), iteration=agent.iteration)
            self._store(agent, name)

    def _store(self, agent: RunningAgent, name: str) -> None:
        """Keep whole episodes; columns of the prompts that are no JSON values are left out.

        Warns:
            UserWarning: if the episodes can't be stored.
        """
        episodes = agent.last_batch.episodes
        kept = episodes.select(slice(min(STORED, len(episodes)))).to("cpu")
        kept.extras = {key: column for key, column in kept.extras.items() if _is_json(column)}
        try:
            kept.save(self._place(agent, f"episodes/{name}.jsonl"), tokenizer=agent.tokenizer)
        except (TypeError, ValueError) as error:
            warnings.warn(f"the episodes of the run could not be stored: {error}", stacklevel=2)


def _is_json(column: Any) -> bool:
    try:
        json.dumps(column)
    except (TypeError, ValueError):
        return False
    return True


def report_at_end(run_dir: Path) -> None:
    """Write the report of a run that has come to its end; that it can't be written costs no training.

    Warns:
        UserWarning: if it can't be written.
    """
    if not enabled:
        return
    from textenv.agents.reports.report import write_report

    try:
        write_report(run_dir)
    except Exception as error:
        warnings.warn(
            f"the report of {run_dir} could not be written ({type(error).__name__}: {error}); the run itself "
            "is complete, and textenv report tries again",
            stacklevel=2,
        )


def save_evaluation(evaluation: Any, path: Path, iteration: int) -> None:
    """Write what an evaluation found as JSON, with the iteration, and each episode's score and prompt."""
    content = {"iteration": iteration, **evaluation.to_dict()}
    episodes = getattr(evaluation, "episodes", None)  # reward models are evaluated on data, not by playing
    if episodes is not None:
        content["scores"] = scores_of(episodes)
    write_json(path, content, indent=None)


def scores_of(episodes: EpisodeBatch) -> dict[str, list[Any]]:
    """Score of each of the B episodes (return less KL penalties), and which prompt it belongs to."""
    return {"prompt_index": episodes.prompt_index.tolist(), "score": scores(episodes).tolist()}


def scores(episodes: EpisodeBatch) -> Tensor:
    """Return of each episode without KL penalties: (B,)."""
    penalties = [term for name, term in episodes.reward_terms.items() if name.split("#")[0] == "kl"]
    return episodes.returns - sum((term.sum(-1) for term in penalties), episodes.returns * 0.0)
