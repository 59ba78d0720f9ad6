"""The online loop: collect, score, advantages, minibatches, report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing, nullcontext

from textenv import scoring as scorer
from textenv.agents.base.agent import Agent
from textenv.agents.base.equal_returns import EqualReturns
from textenv.agents.base.result import Clock, mean_row
from textenv.agents.checkpointing.failure import save_failure
from textenv.agents.data.batch import TrainingBatch, epoch_order
from textenv.agents.distributed import process_group
from textenv.agents.distributed.batch_sharding import check_shares, gather_episodes, score_share, spread
from textenv.agents.settings.base import OnlineConfig
from textenv.episodes.batch import EpisodeBatch
from textenv.rollout import collect
from textenv.tasks.stop_tokens import warn_of_missing_ends


class OnlineAgent(Agent):
    """An agent that learns from the episodes that it generates."""

    online = True
    config: OnlineConfig
    next_ticket = 0
    """Where the next iteration begins in the stream of prompts: the first ticket that none has learned from.
    ``episodes_seen`` counts what was generated, which may be more: a ticket may be played twice."""

    def planned_iterations(self) -> int:
        """Times of collecting and learning in the whole run."""
        return self.config.num_iterations

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.num_iterations * self.config.epochs * self.config.minibatches

    def run_loop(self) -> None:
        """Collect, prepare, learn, report; until the budget is spent or a callback stops."""
        total = self.planned_iterations()
        check_shares(self.config)
        warn_of_missing_ends(self.envs, self.policy)
        returns = EqualReturns()
        playing = nullcontext() if self.rollouts is None else closing(self.rollouts)
        with self.open_loggers(total) as loggers, playing:
            while self.iteration < total:
                self.iteration += 1
                clock, played, trained = Clock(), self.env_tokens, self.gradient_tokens
                with self.engine.gathered():
                    episodes = self.collect()
                    clock.lap("rollout")
                    self.score(episodes)
                    returns.see(episodes, self.envs, self.iteration, total)
                    self.last_batch = batch = self.advantages(spread(episodes))
                clock.lap("score")
                row = self.describe(batch) | self.update(batch)
                clock.lap("update")
                row |= clock.metrics(self.env_tokens - played, self.gradient_tokens - trained)
                if self.finish(row, loggers, last=self.iteration == total):
                    break

    def collect(self) -> EpisodeBatch:
        """Play the next tickets; which ones is a function of the seed and the counter alone."""
        episodes = self.play(self.next_ticket)
        self.next_ticket += len(episodes)
        return episodes

    def play(self, first_ticket: int) -> EpisodeBatch:
        """Play ``episodes_per_iteration`` tickets from this one on, unpaid; the cost is counted.

        Each process plays its share of them; all get all episodes. With ``rollouts`` actors play instead. No
        values are recorded: ``policy.values`` gives those of whole episodes at a fraction of the cost.
        """
        if self.rollouts is not None:
            episodes = self.rollouts.collect(self, first_ticket)
        else:
            with process_group.joined("a rollout"), self.policy.decoding.without_values():
                own = collect(
                    self.envs,
                    self.policy,
                    self.config.episodes_per_iteration,
                    seed=self.config.seed,
                    first_ticket=first_ticket,
                    score=False,
                    **process_group.place(),
                )
            episodes = gather_episodes(own, self.policy.device)
        self.episodes_seen += len(episodes)
        self.env_tokens += int(episodes.response_lengths.sum())
        return episodes

    def score(self, episodes: EpisodeBatch) -> None:
        """Pay the rewards and let adaptive terms learn."""
        self.pay(episodes)
        scorer.update(episodes, scorer.reward_wrappers(self.envs))

    def pay(self, episodes: EpisodeBatch) -> None:
        """Pay the rewards, unless the rollout did; the cost is counted.

        Raises:
            RewardError: if a reward fails, or is NaN or infinite; the episodes are saved.
        """
        wrappers = scorer.reward_wrappers(self.envs)
        try:
            if not episodes.reward_terms:
                score_share(episodes, wrappers)
        except scorer.RewardError as error:
            where = save_failure(self.run_dir, self.iteration, "reward", {}, episodes)
            error.add_note(f"in iteration {self.iteration}; the episodes are in {where}")
            raise
        self.reward_calls += len(episodes)

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """What the loss needs besides the episodes: old log-probs, advantages, returns, ..."""
        raise NotImplementedError

    def update(self, batch: TrainingBatch) -> dict[str, float]:
        """``epochs`` passes of ``minibatches`` optimizer steps, no more than rows; the mean statistics."""
        cfg = self.config
        rows: list[dict[str, float]] = []
        for epoch in range(cfg.epochs):
            order = epoch_order(len(batch), seed=cfg.seed, epoch=self.pass_number(epoch))
            for index in order.tensor_split(min(cfg.minibatches, len(order))):
                rows.append(self.step(batch if len(index) == len(batch) else batch.select(index)))
                if self.stop_early(rows[-1]):
                    return {**mean_row(rows), "policy/stopped_early": 1.0}
        return mean_row(rows)

    def pass_number(self, epoch: int) -> int:
        """Number of pass ``epoch`` of this round of learning in the whole run; its order is drawn by it."""
        return self.iteration * self.config.epochs + epoch

    def stop_early(self, stats: Mapping[str, float]) -> bool:
        """Whether to end this iteration's passes after this step."""
        return False

    def describe(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the collected episodes."""
        episodes = batch.episodes
        row = {
            "objective/reward": float(episodes.returns.mean()),
            "episode/length": float(episodes.response_lengths.float().mean()),
            "episode/eos_rate": float(episodes.terminated.float().mean()),
        }
        for name, values in episodes.reward_terms.items():
            row[f"terms/{name}"] = float(values.sum(-1).mean())
        return row if self.rollouts is None else row | self.rollouts.metrics

    def counters(self) -> dict[str, int]:
        """Where the run stands, and in the stream of prompts."""
        return {**super().counters(), "next_ticket": self.next_ticket}

    def set_counters(self, counters: Mapping[str, int]) -> None:
        """Stand where a saved run stood; in older ones every episode generated moved on in the stream."""
        super().set_counters({"next_ticket": counters["episodes_seen"], **counters})
