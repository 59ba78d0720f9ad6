"""The common face of all agents, and the two loops: one online, one offline.

An agent supplies what is its own: ``advantages(batch)`` (online) and ``loss(batch, totals)``. Everything else
(rollout, minibatches, micro-batches, optimizer step, logging, evaluation, checkpoints) is here, once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from textenv import scoring as scorer
from textenv.agents.batch import TrainingBatch, epoch_order
from textenv.agents.callbacks import make_callbacks
from textenv.agents.config import AgentConfig, OfflineConfig, OnlineConfig
from textenv.agents.evaluation import Evaluation, evaluate
from textenv.agents.failure import Diverged, save_failure
from textenv.agents.loggers import Loggers, make_loggers
from textenv.agents.optim import clip_gradients, make_optimizer, make_schedule
from textenv.agents.policy import LanguagePolicy
from textenv.collect import collect
from textenv.episodes import EpisodeBatch

Stats = dict[str, Tensor]


@dataclass
class TrainResult:
    """What ``learn`` returns."""

    history: list[dict[str, float]]
    """The logged metrics, one row an iteration (online) or logged optimizer step (offline)."""
    evaluation: Evaluation | None
    """The last evaluation, if there were ``eval_envs``."""
    episodes: int
    """Episodes generated (online) or visited (offline)."""
    optimizer_steps: int
    """Optimizer steps made."""
    seconds: float
    """Wall time of this call."""
    run_dir: Path | None = None
    """Where metrics and checkpoints are, if a folder was given."""


@dataclass
class Totals:
    """Denominators of one optimizer step, over all its micro-batches: losses divided by them add up."""

    tokens: float
    """Own tokens."""
    episodes: float
    """Episodes."""
    extra: dict[str, float] = field(default_factory=dict)
    """Further ones, by agents that need them."""

    @classmethod
    def of(cls, batch: TrainingBatch) -> Totals:
        """Of all rows of an optimizer step."""
        return cls(tokens=max(1.0, float(batch.mask.sum())), episodes=max(1.0, float(len(batch))))


class Agent:
    """An agent: a policy, how it learns, and where.

    Args:
        model: a ``LanguagePolicy``, or what one is made of: hub id, folder, config, or module.
        envs: vector environment that it plays in (online agents).
        dataset: what it learns from (offline agents).
        eval_envs: a separate environment for periodic evaluation.
        config: settings, an instance of ``config_class``.
        tokenizer: by default the environment's.
        callbacks: objects with hooks, or plain functions ``(agent, metrics)``.
        loggers: names ("rich", "wandb", "tensorboard") or objects; JSON lines are always written to ``run_dir``.
        run_dir: folder of this run, None keeps nothing.
        metric_fn: further evaluation metrics, ``(prompts, completions, **columns) -> {name: float or list}``.

    Raises:
        TypeError: if ``config`` is not of the agent's class.
        ValueError: if ``envs`` or ``dataset`` is missing.
    """

    config_class: ClassVar[type[AgentConfig]]
    """The class of its settings."""
    online: ClassVar[bool]
    """Whether it generates the episodes that it learns from."""

    def __init__(
        self,
        model: Any,
        *,
        envs: Any = None,
        dataset: Any = None,
        eval_envs: Any = None,
        config: AgentConfig | None = None,
        tokenizer: Any = None,
        callbacks: Sequence[Any] = (),
        loggers: Sequence[Any] = (),
        run_dir: str | os.PathLike[str] | None = None,
        metric_fn: Any = None,
    ) -> None:
        config = self.config_class() if config is None else config
        if not isinstance(config, self.config_class):
            raise TypeError(f"config must be a {self.config_class.__name__}, got {type(config).__name__}")
        if self.online and envs is None:
            raise ValueError(f"{type(self).__name__} learns online and needs envs=, got None")
        if not self.online and dataset is None:
            raise ValueError(f"{type(self).__name__} learns offline and needs dataset=, got None")
        self.envs, self.eval_envs = envs, eval_envs
        spare = next((e.unwrapped for e in (envs, eval_envs) if e is not None), None)
        self.tokenizer = tokenizer if tokenizer is not None else getattr(spare, "tokenizer", None)
        self.callbacks = make_callbacks(callbacks)
        self.logger_specs = loggers
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.metric_fn = metric_fn
        self.configure(config)
        torch.manual_seed(config.seed)
        self.policy: LanguagePolicy = self.make_policy(model)
        self.policy.autocast = config.autocast
        self.policy.max_tokens = config.max_tokens_per_microbatch
        self.reference: Any = None
        self.iteration = self.optimizer_steps = self.episodes_seen = 0
        self.dataset = None if dataset is None else self.load_dataset(dataset)
        self.setup()
        module = self.trainable()
        self.optimizer = make_optimizer(
            module,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=config.adam_betas,
            eps=config.adam_eps,
        )
        self.schedule = make_schedule(
            self.optimizer,
            config.lr_schedule,
            total_steps=self.planned_steps(),
            warmup_steps=config.warmup_steps,
        )
        self._parameters = [p for p in module.parameters() if p.requires_grad]

    # -- what an agent may supply ----------------------------------------------------------------------------

    def configure(self, config: Any) -> None:
        """Keep the settings."""
        self.config = config

    def make_policy(self, model: Any) -> LanguagePolicy:
        """The policy around ``model``."""
        if isinstance(model, LanguagePolicy):
            return model
        return LanguagePolicy(model, tokenizer=self.tokenizer, seed=self.config.seed)

    def load_dataset(self, dataset: Any) -> Any:
        """Turn what the user gave into episodes."""
        return dataset

    def setup(self) -> None:
        """Make what else it needs (references, reward terms) before the optimizer is made."""

    def trainable(self) -> torch.nn.Module:
        """The module whose parameters the optimizer moves."""
        return self.policy

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run, for the learning-rate schedule."""
        raise NotImplementedError

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """Loss of a micro-batch divided by ``totals``, and statistics that add up over micro-batches."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every optimizer step (target networks, averages)."""

    # -- one optimizer step ----------------------------------------------------------------------------------

    def step(self, batch: TrainingBatch) -> dict[str, float]:
        """One optimizer step on all rows of ``batch``; the gradient does not depend on how it is split.

        Raises:
            Diverged: on a NaN or infinite loss or gradient, before the weights change; the episodes are saved.
        """
        totals = self.totals(batch)
        sums: Stats = {}
        self.policy.train()
        for part in batch.microbatches(self.config.max_tokens_per_microbatch):
            loss, stats = self.loss(part, totals)
            stats = {"loss": loss.detach(), **stats}
            for name, value in stats.items():
                sums[name] = sums[name] + value if name in sums else value
            if not bool(torch.isfinite(loss)):
                self.optimizer.zero_grad(set_to_none=True)
                raise self.failure("loss", {k: float(v) for k, v in stats.items()}, part.episodes)
            loss.backward()
        try:
            norm = clip_gradients(self._parameters, self.config.max_grad_norm)
        except ValueError as error:
            self.optimizer.zero_grad(set_to_none=True)
            raise self.failure("gradient", {k: float(v) for k, v in sums.items()}, batch.episodes) from error
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_steps += 1
        self.after_step()
        names, values = list(sums), torch.stack([*(v.double() for v in sums.values()), norm.double()]).tolist()
        return dict(zip([*names, "grad_norm"], values, strict=True))

    def totals(self, batch: TrainingBatch) -> Totals:
        """Denominators of one optimizer step."""
        return Totals.of(batch)

    def failure(self, term: str, values: Mapping[str, float], episodes: EpisodeBatch) -> Diverged:
        """Save the offending episodes and say what happened."""
        where = save_failure(self.run_dir, self.iteration, term, values, episodes)
        return Diverged(term, self.iteration, self.optimizer_steps, values, where)

    # -- around the loops ------------------------------------------------------------------------------------

    def open_loggers(self, total: int) -> Loggers:
        """Loggers of this run; a resumed one appends."""
        resume = self.iteration if self.iteration else None
        return make_loggers(
            self.logger_specs, self.run_dir, self.config, total_steps=total, resume_step=resume
        )

    def finish(self, row: dict[str, float], loggers: Loggers, *, last: bool) -> bool:
        """End an iteration: evaluate, log, callbacks, checkpoint. Returns whether a callback stops the run."""
        cfg, now = self.config, self.iteration
        row["episodes"], row["optimizer_steps"] = float(self.episodes_seen), float(self.optimizer_steps)
        if self.eval_envs is not None and (last or (cfg.eval_every and now % cfg.eval_every == 0)):
            self.evaluation = self.evaluate()
            self.callbacks.on_evaluation(self, self.evaluation)
            row |= {f"eval/{name}": value for name, value in self.evaluation.metrics.items()}
            loggers.log_table("eval/samples", *self.evaluation.sample_table(), now)
        if last or now % cfg.log_every == 0:
            loggers.log(row, now)
            self.history.append(row)
        stop = self.callbacks.on_iteration(self, row)
        due = cfg.checkpoint_every and now % cfg.checkpoint_every == 0
        if self.run_dir is not None and (last or stop or due):
            self.checkpoint()
        return stop

    def checkpoint(self) -> Path:
        """Save everything into the run folder and drop the oldest checkpoints."""
        from textenv.agents.run_folder import RunFolder

        assert self.run_dir is not None
        folder = RunFolder(self.run_dir)
        with folder.checkpoint(self.iteration) as path:
            self.save(path)
        folder.prune(self.config.keep_checkpoints)
        final = folder.checkpoint_dir(self.iteration)
        self.callbacks.on_checkpoint(self, final)
        return final

    def learn(self) -> TrainResult:
        """Train to the end of the budget (from where a loaded agent stood)."""
        started = time.perf_counter()
        self.history: list[dict[str, float]] = []
        self.evaluation: Evaluation | None = None
        self.callbacks.on_start(self)
        self.run_loop()
        result = TrainResult(
            history=self.history,
            evaluation=self.evaluation,
            episodes=self.episodes_seen,
            optimizer_steps=self.optimizer_steps,
            seconds=time.perf_counter() - started,
            run_dir=self.run_dir,
        )
        self.callbacks.on_end(self, result)
        return result

    def run_loop(self) -> None:
        """The training loop."""
        raise NotImplementedError

    # -- use -------------------------------------------------------------------------------------------------

    def act(self, obs: Mapping[str, Any], key: Any = None, **options: Any) -> Any:
        """Actions for a batch of observations: (N,) token ids."""
        return self.policy.act(obs, key, **options)[0]

    def evaluate(self, envs: Any = None, episodes: int | None = None, **options: Any) -> Evaluation:
        """Play ``episodes`` on ``envs`` (default ``eval_envs``, then ``envs``) and measure; nothing learns."""
        envs = envs if envs is not None else self.eval_envs if self.eval_envs is not None else self.envs
        if envs is None:
            raise ValueError("evaluate needs envs=, got None and the agent has no eval_envs")
        options = {"metric_fn": self.metric_fn, "reference": self.reference, **options}
        return evaluate(self.policy, envs, episodes or self.config.eval_episodes, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write model, heads, optimizer, counters and settings into the folder ``path``."""
        from textenv.agents.checkpoint import save_agent

        save_agent(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Rebuild an agent from ``save``'s folder; ``envs``, ``dataset`` and the like are given anew."""
        from textenv.agents.checkpoint import load_agent

        return load_agent(cls, path, **kwargs)


class OnlineAgent(Agent):
    """An agent that learns from the episodes that it generates."""

    online = True
    config: OnlineConfig

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.num_iterations * self.config.epochs * self.config.minibatches

    def run_loop(self) -> None:
        """Collect, prepare, learn, report; until the budget is spent or a callback stops."""
        total = self.config.num_iterations
        with self.open_loggers(total) as loggers:
            while self.iteration < total:
                self.iteration += 1
                clock = _Clock()
                episodes = self.collect()
                clock.lap("rollout")
                self.score(episodes)
                batch = self.advantages(episodes)
                clock.lap("score")
                row = self.describe(batch) | self.update(batch)
                clock.lap("update")
                row |= clock.metrics(float(batch.episodes.response_lengths.sum()), self.config.epochs)
                if self.finish(row, loggers, last=self.iteration == total):
                    break

    def collect(self) -> EpisodeBatch:
        """Play this iteration's tickets; which ones is a function of the seed and the counter alone."""
        episodes = collect(
            self.envs,
            self.policy,
            self.config.episodes_per_iteration,
            seed=self.config.seed,
            first_ticket=self.episodes_seen,
            score=False,
        )
        self.episodes_seen += len(episodes)
        return episodes

    def score(self, episodes: EpisodeBatch) -> None:
        """Pay the rewards and let adaptive terms learn.

        Raises:
            Diverged: if a reward is NaN or infinite.
        """
        wrappers = scorer.reward_wrappers(self.envs)
        try:
            if not episodes.reward_terms:
                scorer.score(episodes, wrappers)
        except scorer.RewardError as error:
            where = save_failure(self.run_dir, self.iteration, "reward", {}, episodes)
            error.add_note(f"in iteration {self.iteration}; the episodes are in {where}")
            raise
        scorer.update(episodes, wrappers)

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """What the loss needs besides the episodes: old log-probs, advantages, returns, ..."""
        raise NotImplementedError

    def update(self, batch: TrainingBatch) -> dict[str, float]:
        """``epochs`` passes of ``minibatches`` optimizer steps; returns the mean of each statistic."""
        cfg = self.config
        rows: list[dict[str, float]] = []
        for epoch in range(cfg.epochs):
            order = epoch_order(len(batch), seed=cfg.seed, epoch=self.iteration * cfg.epochs + epoch)
            for index in order.tensor_split(cfg.minibatches):
                rows.append(self.step(batch.select(index)))
                if self.stop_early(rows[-1]):
                    return {**_mean(rows), "policy/stopped_early": 1.0}
        return _mean(rows)

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
        return row


class OfflineAgent(Agent):
    """An agent that learns from a data set."""

    online = False
    config: OfflineConfig

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.total_steps(len(self.dataset))

    def run_loop(self) -> None:
        """Pass over the data in a fresh order each epoch until the budget is spent or a callback stops."""
        cfg, rows = self.config, len(self.dataset)
        total, per_epoch = self.planned_steps(), -(-rows // cfg.batch_size)
        with self.open_loggers(total) as loggers:
            while self.iteration < total:
                epoch, position = divmod(self.iteration, per_epoch)
                order = epoch_order(rows, seed=cfg.seed, epoch=epoch)
                index = order[position * cfg.batch_size : (position + 1) * cfg.batch_size]
                self.iteration += 1
                clock = _Clock()
                row = self.step(self.batch(index))
                clock.lap("update")
                self.episodes_seen += len(index)
                row |= {"time/update": clock.seconds["update"], "lr": self.schedule.get_last_lr()[0]}
                if self.finish(row, loggers, last=self.iteration == total):
                    break

    def batch(self, index: Tensor) -> TrainingBatch:
        """The rows ``index`` of the data set."""
        return TrainingBatch(self.dataset.select(index))


class _Clock:
    """Seconds of the parts of an iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now

    def metrics(self, tokens: float, epochs: int) -> dict[str, float]:
        row = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        row["throughput/rollout_tokens_s"] = tokens / max(self.seconds["rollout"], 1e-9)
        row["throughput/train_tokens_s"] = tokens * epochs / max(self.seconds["update"], 1e-9)
        return row


def _mean(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    rows = list(rows)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
