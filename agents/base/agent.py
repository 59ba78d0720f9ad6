"""The base class of all agents: optimizer step, logging, evaluation and checkpoints.

An agent derives from ``OnlineAgent`` or ``OfflineAgent``, which have the two training loops, and defines
``advantages(episodes)`` (online agents) and ``loss(batch, totals)``.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from textenv.agents.base import arguments, renamed, saving
from textenv.agents.base.callbacks import make_callbacks
from textenv.agents.base.iteration import SPENT, end_iteration
from textenv.agents.base.logging import open_loggers
from textenv.agents.base.registry import name_of
from textenv.agents.base.result import TrainResult
from textenv.agents.checkpointing.failure import NonFiniteError, save_failure
from textenv.agents.checkpointing.fresh_start import starting
from textenv.agents.checkpointing.resume import earlier_rows
from textenv.agents.checkpointing.state import TrainingState
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.episodes import fitting
from textenv.agents.distributed import process_group
from textenv.agents.evaluation.evaluator import Evaluation, evaluate
from textenv.agents.loggers.registry import Loggers
from textenv.agents.optim.backend import Backend, Stats
from textenv.agents.optim.optimizer import check_trains, make_schedule
from textenv.agents.optim.setup import make_backend
from textenv.agents.optim.step import NonFinite, optimizer_step
from textenv.agents.policies.files import restore_policy
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.rollouts.collector import Collector
from textenv.agents.rollouts.factory import make_collector
from textenv.agents.settings.base import AgentConfig
from textenv.agents.settings.effects import Idle
from textenv.agents.settings.engine_rollouts import EngineRollouts
from textenv.agents.settings.ray_rollouts import RayRollouts
from textenv.utils.host_memory import keep_freed_memory


class Agent:
    """Base class of agents: a policy, its training, and the environment or data that it learns from.

    Args:
        model: a ``LanguagePolicy``, or what one is made of: hub id, folder, config, or module.
        envs: vector environment for the training episodes (online agents).
        dataset: training data (offline agents).
        eval_envs: a separate environment for periodic evaluation.
        config: settings, an instance of ``config_class``.
        tokenizer: by default the environment's.
        policy_kwargs: further arguments of the policy made around ``model``: ``lora``, ``device``, ...
        callbacks: objects with hooks, or functions ``(agent, metrics)``; ``RunReport()`` writes a report.
        loggers: names ("rich", "wandb", "tensorboard") or objects, beside the JSON lines in ``run_dir``.
        run_dir: folder of this run; None writes no files.
        metric_fn: further evaluation metrics, ``(prompts, completions, **columns) -> {name: float or list}``.
        rollouts: what generates an online agent's episodes; None is the agent's own process.

    Raises:
        TypeError: if ``config`` is not of the agent's class.
        ValueError: if ``envs`` or ``dataset`` is missing, or an offline agent gets ``rollouts``.
    """

    config_class: ClassVar[type[AgentConfig]]
    """The class of its settings."""
    online: ClassVar[bool]
    """Whether the agent generates the episodes that it learns from."""
    from_preferences: ClassVar[bool] = False
    """Whether the agent learns from a task's preferences instead of its demonstrations."""
    cannot: ClassVar[Mapping[str, str]] = {}
    """Guarantees that the agent cannot give, for example because it wraps another library: name -> reason."""
    policy_class: ClassVar[type[LanguagePolicy]] = LanguagePolicy
    """The class of its policy."""
    policy_arguments: ClassVar[Mapping[str, str]] = {}
    """Arguments of the policy that the agent sets, so that ``policy_kwargs`` can't: name -> where from."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Accept the old names of hooks that a subclass defines."""
        super().__init_subclass__(**kwargs)
        renamed.accept_old_names(cls)

    def __init__(
        self,
        model: Any,
        *,
        envs: Any = None,
        dataset: Any = None,
        eval_envs: Any = None,
        config: AgentConfig | None = None,
        tokenizer: Any = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        callbacks: Sequence[Any] = (),
        loggers: Sequence[Any] = (),
        run_dir: str | os.PathLike[str] | None = None,
        metric_fn: Any = None,
        rollouts: RayRollouts | EngineRollouts | Collector | None = None,
    ) -> None:
        process_group.start()
        config = self.config_class() if config is None else config
        arguments.check_config(config, self.config_class)
        arguments.check_sources(self, envs, eval_envs, dataset, rollouts)
        arguments.check_options(tokenizer, callbacks, metric_fn)
        arguments.check_policy_kwargs(policy_kwargs, self)
        self.collector: Collector = make_collector(rollouts)
        self.envs, self.eval_envs = envs, eval_envs
        spare = next((e.unwrapped for e in (envs, eval_envs) if e is not None), None)
        self.tokenizer = tokenizer if tokenizer is not None else getattr(spare, "tokenizer", None)
        self.callbacks = make_callbacks(callbacks)
        self.logger_specs = loggers
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.metric_fn = metric_fn
        self.policy_kwargs = dict(policy_kwargs or {})
        if self.policy_kwargs and isinstance(model, LanguagePolicy):
            raise ValueError(f"policy_kwargs {self.policy_kwargs} need a model to be made of, got a policy")
        self.configure(config)
        torch.manual_seed(config.seed)
        self.policy: LanguagePolicy = self.make_policy(model)
        check_trains(self.policy)
        if process_group.world_size() > 1:
            self.policy.to(process_group.device())
            process_group.broadcast_parameters(self.policy)
        self.policy.autocast = config.autocast
        self.policy.max_tokens = config.max_tokens_per_microbatch
        self.reference: Any = None
        self.iteration = self.optimizer_steps = self.episodes_seen = 0
        self.env_tokens = self.gradient_tokens = self.reward_calls = 0
        self.resumed = self.stopped = False
        self.history: list[dict[str, float]] = []
        self.loggers = Loggers()
        self.evaluation: Evaluation | None = None
        self.before: Evaluation | None = None
        self.last_batch: TrainingBatch | None = None
        self.dataset: Any = None if dataset is None else fitting(self.policy, self.load_dataset(dataset))
        if self.dataset is not None and not len(self.dataset):
            raise ValueError("dataset must hold at least one row, got none")
        self.setup()
        self.backend: Backend = make_backend(self.policy, self.trainable, config)
        self.schedule = make_schedule(
            self.backend.optimizer,
            config.lr_schedule,
            total_steps=self.planned_steps(),
            warmup_steps=config.warmup_steps,
        )
        arguments.check_effects(self)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the trainable parameters."""
        return self.backend.optimizer

    @property
    def parameters(self) -> Sequence[torch.nn.Parameter]:
        """The trainable parameters."""
        return self.backend.parameters

    @classmethod
    def group_size(cls, config: Any, *, evaluation: bool = False) -> int:
        """Number of episodes per prompt that the agent needs, in training or in evaluation."""
        return 1

    def configure(self, config: Any) -> None:
        """Keep the settings."""
        self.config = config

    def make_policy(self, model: Any) -> LanguagePolicy:
        """The policy around ``model``."""
        if isinstance(model, LanguagePolicy):
            return model
        return LanguagePolicy(model, tokenizer=self.tokenizer, seed=self.config.seed, **self.policy_kwargs)

    def load_dataset(self, dataset: Any) -> Any:
        """Turn what the user gave into episodes."""
        return dataset

    def setup(self) -> None:
        """Make references, reward terms and the like, before the optimizer is made."""

    def trainable(self) -> torch.nn.Module:
        """The module whose parameters are trained."""
        return self.policy

    def idle(self) -> Idle:
        """Settings without effect given the environment, data or model; see ``Config.idle``."""
        return {}

    def planned_iterations(self) -> int:
        """Iterations of the training loop in the whole run."""
        raise NotImplementedError

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run, for the learning-rate schedule."""
        raise NotImplementedError

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """Loss of a micro-batch divided by ``totals``, and statistics that add up over micro-batches."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every optimizer step (target networks, averages)."""

    def optimizer_step(self, batch: TrainingBatch) -> dict[str, float]:
        """One optimizer step on all rows of ``batch``; the gradient does not depend on how it is split.

        A step that the float16 scaler skips leaves weights, schedule, averages and counters as they are.

        Returns:
            The sum of each statistic over the micro-batches, and ``grad_norm``, NaN for a skipped step.

        Raises:
            NonFiniteError: on a NaN or infinite loss or gradient, before the weights change; the episodes are
                saved.
        """
        self.gradient_tokens += int(batch.episodes.attention_mask.sum())
        batch = batch.to(self.policy.device)
        self.policy.train()
        limit = self.config.max_tokens_per_microbatch
        try:
            stats, applied = optimizer_step(
                batch, self.totals(batch), self.loss, self.backend, max_tokens=limit
            )
        except NonFinite as error:
            where = save_failure(self.run_dir, self.iteration, error.term, error.values, error.episodes)
            raise NonFiniteError(
                error.term, self.iteration, self.optimizer_steps, error.values, where
            ) from error
        if applied:
            self.schedule.step()
            self.optimizer_steps += 1
            self.after_step()
            self.backend.sync_weights()
        return stats

    def totals(self, batch: TrainingBatch) -> Totals:
        """Denominators of one optimizer step."""
        return Totals.of(batch)

    def open_loggers(self, total: int) -> Loggers:
        """Loggers of this run, in the main process; a resumed run appends to its files."""
        return open_loggers(self, self.logger_specs, total)

    def end_iteration(self, metrics: Mapping[str, float], *, last: bool | None = None) -> None:
        """End an iteration: evaluate if it is time to, run the callbacks, log, save a checkpoint.

        Args:
            metrics: of the iteration; the counters are added to them.
            last: whether the run ends here; None compares with ``planned_iterations()``.
        """
        last = self.iteration >= self.planned_iterations() if last is None else last
        end_iteration(self, metrics, last=last)

    def checkpoint(self) -> Path:
        """Write a checkpoint of this iteration into the run's folder; the oldest ones are removed."""
        assert self.run_dir is not None
        path = saving.save_checkpoint(self, self.run_dir)
        self.callbacks.on_checkpoint(self, path)
        return path

    def resume(
        self, run_dir: str | os.PathLike[str] | None = None, *, missing: Literal["error", "start"] = "error"
    ) -> TrainResult[Self]:
        """Continue an interrupted run from its newest whole checkpoint, exactly as without the interruption.

        The agent must be made as the run's was: same model, settings, environment or data, and callbacks.
        Rows of ``metrics.jsonl`` after the checkpoint are dropped.

        Args:
            run_dir: folder of the run, None for the agent's own.
            missing: without a whole checkpoint: "error", or "start" to begin anew.

        Raises:
            FileNotFoundError: if there is no whole checkpoint and ``missing`` is "error".
            ValueError: if the run was made by another kind of agent, or with other settings or data.
        """
        self.run_dir = self.run_dir if run_dir is None else Path(run_dir)
        if self.run_dir is None:
            raise ValueError("resume needs run_dir=, got None and the agent has none of its own")
        self.restore(self.run_dir, missing=missing)
        return self.learn()

    def restore(
        self, run_dir: str | os.PathLike[str], *, missing: Literal["error", "start"] = "error"
    ) -> Path | None:
        """Load the newest whole checkpoint of a run and return it, None if there is none; see ``resume``."""
        return saving.restore(self, run_dir, missing=missing)

    def learn(self) -> TrainResult[Self]:
        """Train to the end of the budget; a loaded agent continues where it was saved."""
        arguments.check_effects_in_run(self)
        started = time.perf_counter()
        self.history = earlier_rows(self.run_dir, self.iteration) if self.resumed else []
        self.evaluation = None
        if self.policy.device.type == "cpu":
            keep_freed_memory()
        own = self.run_dir if process_group.is_main() else None
        with nullcontext() if own is None else starting(own):
            self.callbacks.on_start(self)
            if self.resumed and self.stopped:
                warnings.warn(f"a callback ended this run in iteration {self.iteration}", stacklevel=2)
            elif renamed.has_old_loop(self):
                renamed.call_old_loop(self)
            else:
                self.stopped = False
                with self.open_loggers(self.planned_iterations()) as self.loggers:
                    self.train_loop()
        result = TrainResult(
            agent=self,
            history=self.history,
            evaluation=self.evaluation,
            episodes=self.episodes_seen,
            optimizer_steps=self.optimizer_steps,
            seconds=time.perf_counter() - started,
            run_dir=self.run_dir,
        )
        self.callbacks.on_end(self, result)
        return result

    def train_loop(self) -> None:
        """The training loop: until ``planned_iterations()`` or until a callback stops the run.

        Each iteration adds 1 to ``iteration`` and ends with ``end_iteration(metrics)``.
        """
        raise NotImplementedError

    @classmethod
    def registered_name(cls) -> str:
        """The name that the class is registered under; an error if it is not registered."""
        return name_of(cls)

    def counters(self) -> dict[str, int]:
        """Counters of the run: iteration, optimizer steps, episodes, cost."""
        names = ("iteration", "optimizer_steps", "episodes_seen", *SPENT)
        return {name: getattr(self, name) for name in names}

    def set_counters(self, counters: Mapping[str, int]) -> None:
        """Restore the counters of a saved run."""
        for name, value in counters.items():
            setattr(self, name, int(value))

    def training_state(self) -> TrainingState:
        """All that an exact resume needs beside the policy's files. A subclass adds its own state."""
        return saving.training_state(self)

    def load_training_state(self, state: TrainingState) -> None:
        """Restore what ``training_state`` gave; the policy was loaded before."""
        saving.load_training_state(self, state)

    def act(self, obs: Mapping[str, Any], key: Any = None, **options: Any) -> Any:
        """Actions for a batch of observations: (N,) token ids."""
        return self.policy.act(obs, key, **options)[0]

    def evaluate(self, envs: Any = None, episodes: int | None = None, **options: Any) -> Evaluation:
        """Generate ``episodes`` on ``envs`` (default ``eval_envs``, then ``envs``) and measure them."""
        envs = envs if envs is not None else self.eval_envs if self.eval_envs is not None else self.envs
        if envs is None:
            raise ValueError("evaluate needs envs=, got None and the agent has no eval_envs")
        options = {"metric_fn": self.metric_fn, "reference": self.reference, **options}
        with self.backend.summon_full_params():
            return evaluate(self.policy, envs, episodes or self.config.eval_episodes, **options)

    def first_evaluation(self) -> Evaluation:
        """The evaluation before training; made once, even if several callbacks need it."""
        if self.before is None:
            self.before = self.evaluate()
        return self.before

    def save_policy(self, path: Path) -> None:
        """Write the policy's files: ``LanguagePolicy.load`` and plain transformers read them."""
        self.policy.save(path, reference=self.reference is not None)

    def restore_policy(self, path: Path) -> None:
        """Load the files of ``save_policy`` into the policy, which was made like the saved one."""
        if isinstance(self.policy, LanguagePolicy):
            restore_policy(self.policy, path)
        else:
            self.policy.load_state_dict(self.policy_class.load(path).state_dict())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write model, heads, optimizer, counters and settings into a folder; see ``saving.save``."""
        saving.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Rebuild an agent from the folder that ``save`` wrote, or from a checkpoint.

        ``kwargs`` are those of the constructor: ``envs``, ``dataset``, ...; see ``saving.load``.
        """
        loaded: Self = saving.load(cls, path, **kwargs)
        return loaded


renamed.add_old_names(Agent)
