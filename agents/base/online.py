"""The online training loop: collect episodes, compute rewards and advantages, update, report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from textenv import scoring as scorer
from textenv.agents.base.agent import Agent
from textenv.agents.base.equal_returns import EqualReturns
from textenv.agents.base.metrics import Timer, mean_row
from textenv.agents.checkpointing.failure import save_failure
from textenv.agents.data.batch import TrainingBatch, epoch_order
from textenv.agents.distributed.data_parallel import check_minibatches, score_episodes
from textenv.agents.evaluation.turns import turn_metrics
from textenv.agents.rollouts.collector import RolloutRequest
from textenv.agents.settings.base import OnlineConfig
from textenv.envs.step_buffer import PARTNER
from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.stop_tokens import warn_of_missing_ends


class OnlineAgent(Agent):
    """An agent that learns from the episodes that it generates."""

    online = True
    config: OnlineConfig
    next_ticket = 0
    """``episode_id`` of the first episode of the next iteration. It can be lower than ``episodes_seen``:
    an agent may generate an episode twice."""

    def planned_iterations(self) -> int:
        """Iterations of the whole run."""
        return self.config.num_iterations

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.num_iterations * self.config.epochs * self.config.minibatches

    def train_loop(self) -> None:
        """Collect, score, update, report; until the budget is spent or a callback stops the run."""
        total = self.planned_iterations()
        check_minibatches(self.config.episodes_per_iteration, self.config.minibatches)
        warn_of_missing_ends(self.envs, self.policy)
        equal_returns = EqualReturns()
        with closing(self.collector):
            while self.iteration < total and not self.stopped:
                self.iteration += 1
                timer, generated, trained = Timer(), self.env_tokens, self.gradient_tokens
                with self.backend.summon_full_params():
                    with timer.measure("rollout"):
                        episodes = self.collect()
                    with timer.measure("score"):
                        self.score(episodes)
                        equal_returns.check(episodes, self.envs, self.iteration, total)
                        self.last_batch = batch = self.advantages(episodes)
                with timer.measure("update"):
                    metrics = self.rollout_metrics(batch) | self.update(batch)
                    self.after_update(batch)
                times = timer.metrics(self.env_tokens - generated, self.gradient_tokens - trained)
                self.end_iteration(metrics | times)

    def collect(self) -> EpisodeBatch:
        """Generate the next episodes; which ones depends only on the seed and ``next_ticket``."""
        episodes = self.generate(self.next_ticket)
        self.next_ticket += len(episodes)
        return episodes

    def generate(self, first_ticket: int) -> EpisodeBatch:
        """Generate ``episodes_per_iteration`` episodes, starting at ``first_ticket``, without rewards.

        Their number and response tokens are added to ``episodes_seen`` and ``env_tokens``. No values are
        recorded: ``policy.values`` computes those of whole episodes at a fraction of the cost.
        """
        episodes = self.collector.collect(self.rollout_request(first_ticket))
        self.episodes_seen += len(episodes)
        self.env_tokens += int(episodes.response_lengths.sum())
        return episodes

    def rollout_request(self, first_ticket: int) -> RolloutRequest:
        """The request to the collector: the episodes of one iteration, starting at ``first_ticket``."""
        cfg = self.config
        return RolloutRequest(
            policy=self.policy,
            envs=self.envs,
            episodes=cfg.episodes_per_iteration,
            first_ticket=first_ticket,
            seed=cfg.seed,
            iteration=self.iteration,
            planned_iterations=self.planned_iterations(),
            importance_correction=getattr(cfg, "importance_correction", None),
        )

    def score(self, episodes: EpisodeBatch) -> None:
        """Compute the rewards, and let adaptive reward terms (a KL coefficient) learn from the episodes."""
        self.compute_rewards(episodes)
        scorer.update(episodes, scorer.reward_wrappers(self.envs))

    def compute_rewards(self, episodes: EpisodeBatch) -> None:
        """Compute the rewards, in place, unless the rollout did; ``reward_calls`` counts the episodes.

        Raises:
            RewardError: if a reward fails, or is NaN or infinite; the episodes are saved.
        """
        wrappers = scorer.reward_wrappers(self.envs)
        try:
            if set(episodes.reward_terms) <= {PARTNER}:
                score_episodes(episodes, wrappers)
        except scorer.RewardError as error:
            where = save_failure(self.run_dir, self.iteration, "reward", {}, episodes)
            error.add_note(f"in iteration {self.iteration}; the episodes are in {where}")
            raise
        self.reward_calls += len(episodes)

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """What the loss needs beside the episodes. An agent defines this and ``loss``."""
        raise NotImplementedError

    def update(self, batch: TrainingBatch) -> dict[str, float]:
        """``epochs`` passes over the batch in ``minibatches`` optimizer steps each; mean statistics.

        A batch with fewer rows than ``minibatches`` makes one step per row.
        """
        cfg = self.config
        rows: list[dict[str, float]] = []
        for epoch in range(cfg.epochs):
            order = epoch_order(len(batch), seed=cfg.seed, epoch=self.pass_number(epoch))
            for index in order.tensor_split(min(cfg.minibatches, len(order))):
                minibatch = batch if len(index) == len(batch) else batch.select(index)
                rows.append(self.optimizer_step(minibatch))
                if self.should_stop_early(rows[-1]):
                    return {**mean_row(rows), "policy/stopped_early": 1.0}
        return mean_row(rows)

    def after_update(self, batch: TrainingBatch) -> None:
        """Called after the passes of each iteration (adaptive coefficients, copies of the policy)."""

    def pass_number(self, epoch: int) -> int:
        """Number of pass ``epoch`` of this iteration in the whole run; the row order depends on it."""
        return self.iteration * self.config.epochs + epoch

    def should_stop_early(self, stats: Mapping[str, float]) -> bool:
        """Whether to end this iteration's passes after the step with these statistics."""
        return False

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the collected episodes."""
        episodes = batch.episodes
        row = {
            "objective/reward": float(episodes.returns.mean()),
            "episode/length": float(episodes.response_lengths.float().mean()),
            "episode/eos_rate": float(episodes.terminated.float().mean()),
        }
        for name, values in episodes.reward_terms.items():
            row[f"terms/{name}"] = float(values.sum(-1).mean())
        return row | turn_metrics(episodes) | self.collector.metrics

    def counters(self) -> dict[str, int]:
        """Counters of the run, and ``next_ticket``."""
        return {**super().counters(), "next_ticket": self.next_ticket}

    def set_counters(self, counters: Mapping[str, int]) -> None:
        """Stand where a saved run stood; in older ones every episode generated moved on in the stream."""
        super().set_counters({"next_ticket": counters["episodes_seen"], **counters})
