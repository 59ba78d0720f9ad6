"""`RunSetup`: the arguments of ``train``, and the steps that make a run from them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

from textenv.agents.base.agent import Agent
from textenv.agents.base.arguments import check_callbacks, check_config, check_policy_kwargs
from textenv.agents.base.callbacks import BestCheckpoint
from textenv.agents.base.registry import get_agent
from textenv.agents.checkpointing.fresh_start import fresh_start, has_begun
from textenv.agents.checkpointing.resume import settings_to_resume
from textenv.agents.checkpointing.run_folder import RunFolder
from textenv.agents.distributed import process_group
from textenv.agents.distributed.devices import device_of, on_device
from textenv.agents.loggers.registry import check_loggers
from textenv.agents.make import check_arguments, make_agent
from textenv.agents.reports.recorder import RunReport
from textenv.agents.settings.offline import SFTConfig
from textenv.agents.train_setup import evaluation
from textenv.agents.train_setup.arguments import check_sources_of, check_without_task, divide, tokenizer_of
from textenv.agents.train_setup.environments import RunEnvs, make_run_envs, takes_eval_envs, training_data
from textenv.agents.train_setup.task_settings import TaskSettings, task_settings
from textenv.agents.train_setup.task_start import described, make_start, own_dataset, own_model, start_config
from textenv.modeling.saved_runs import latest_whole
from textenv.rewards.registry import reward_list
from textenv.tasks.prompts import load_tokenizer, model_tokenizer, with_prompts
from textenv.tasks.stop_tokens import generation_ends
from textenv.tasks.turns import partner_source
from textenv.utils.checks import check_at_least


@dataclass(kw_only=True)
class RunSetup:
    """Arguments of ``train``, which its steps complete in the order of the methods."""

    agent: str | type[Agent]
    model: Any
    task: Any
    prompts: Any
    reward: Any
    dataset: Any
    eval_dataset: Any
    eval_prompts: Any
    tokenizer: Any
    config: Any
    num_envs: int | None
    start: Any
    env_kwargs: Any
    policy_kwargs: Any
    run_dir: str | os.PathLike[str] | None
    resume: bool | str
    loggers: Sequence[Any]
    callbacks: Sequence[Any]
    metric_fn: Any
    rollouts: Any
    seed: int | None
    changes: dict[str, Any]
    """Settings and arguments of the agent that were given by name."""

    cls: type[Agent] = field(init=False)
    """Class of the agent."""
    of_task: TaskSettings = field(init=False)
    """Settings that the task has for the agent."""
    own_start: SFTConfig | None = field(init=False)
    """Settings of the fine-tuning of the task's own model; None is no fine-tuning."""
    folder: RunFolder | None = field(init=False)
    """Folder of the run; None leaves no files."""
    settings: Any = field(init=False)
    """Complete settings of the agent."""
    arguments: dict[str, Any] = field(init=False)
    """Those of ``changes`` that are arguments of the agent's class."""
    made: RunEnvs = field(init=False)
    """The environments of the run."""

    def check(self) -> None:
        """Check the arguments and the run's folder before anything is loaded; start the process group."""
        self.cls = cls = get_agent(self.agent)
        if not isinstance(self.config, Mapping):
            check_config(self.config, cls.config_class)
        self.env_kwargs, self.changes = divide(cls, self.env_kwargs, self.changes)
        if self.env_kwargs.get("partner") is not None and self.cls.online:
            known = self.tokenizer
            if known is None and self.model is not None:
                known = tokenizer_of(self.model)
            given = self.env_kwargs.get("task_kwargs")
            self.task, self.prompts, own = partner_source(
                self.env_kwargs["partner"], self.task, self.prompts, known, given
            )
            if own is not given:
                self.env_kwargs["task_kwargs"] = own
        check_policy_kwargs(self.policy_kwargs, cls)
        if self.num_envs is not None:
            check_at_least("num_envs", self.num_envs, 1)
        self.of_task = task_settings(self.task, self.agent)
        self.num_envs = self.of_task.num_envs if self.num_envs is None else self.num_envs
        own = self.of_task.start if self.model is None and self.task is not None else None
        self.own_start = start_config(own, self.start)
        if self.own_start is not None and (self.task is None or self.model is not None):
            raise ValueError(
                f"start is for a task's own model, got {self.start!r} with a model or without task="
            )
        self.folder = _run_folder(self.run_dir, self.resume)
        check_loggers(self.loggers, self.run_dir)
        process_group.start()
        process_group.barrier()  # no process writes before all have checked the folder

    def choose_sources(self) -> None:
        """Choose the device, and where prompts and tokenizer come from."""
        self.env_kwargs, self.policy_kwargs = on_device(
            self.cls, self.model, self.env_kwargs, self.policy_kwargs
        )
        check_sources_of(self.agent, self.cls, self.prompts)
        if self.task == "prompts" and self.prompts is not None:  # the data of that task, under another name
            self.env_kwargs["task_kwargs"] = with_prompts(self.env_kwargs.get("task_kwargs"), self.prompts)
            self.prompts = None
        if self.task is None:
            check_without_task(
                self.agent,
                self.cls,
                self.model,
                prompts=self.prompts,
                reward=self.reward,
                dataset=self.dataset,
            )
            if self.tokenizer is None:
                self.tokenizer = model_tokenizer(tokenizer_of(self.model))
            else:
                self.tokenizer = load_tokenizer(self.tokenizer)

    def choose_settings(self) -> None:
        """Complete the agent's settings: from the checkpoint of a resumed run, or else from the task."""
        changes, settings = self.changes, None
        if self.seed is not None:
            changes["seed"] = self.seed
        if self.folder is not None and self.resume:
            path = self.folder.path
            settings = settings_to_resume(self.cls.config_class, path, self.config, changes)
            if settings is not None:
                changes = {}
            if self.resume is True or latest_whole(path)[0] is not None:
                self.own_start = None  # the checkpoint holds the weights, and those of the reference
        check_arguments(self.agent, changes)
        names = {spec.name for spec in fields(self.cls.config_class)}
        self.arguments = {name: value for name, value in changes.items() if name not in names}
        if settings is None:
            given = {name: value for name, value in changes.items() if name in names}
            settings = self.of_task.fill(self.agent, self.config, given)
            self._announce(settings)
        self.settings = settings

    def _announce(self, settings: Any) -> None:
        """Print the task's settings if the logger "rich" is used; warn if the agent can't learn the task."""
        if not process_group.is_main():
            return
        of_task, num_envs = self.of_task, self.num_envs
        assert num_envs is not None
        if of_task.known and self._shows():
            begins = described(self.own_start)
            words = "random weights" if self.model is None else "the model given"
            print(of_task.line(settings, num_envs, begins or words), file=sys.stderr)
        if of_task.cannot is not None and self.dataset is None:
            task, _, agent = of_task.source.partition(" for ")
            warnings.warn(f"{agent} cannot learn {task}: {of_task.cannot}", stacklevel=5)

    def _shows(self) -> bool:
        return any(isinstance(name, str) and name == "rich" for name in self.loggers)

    def make_environments(self) -> None:
        """Make the environments for training and evaluation, and load the task's data, model and start."""
        samples, eval_samples = _group_sizes(self.cls, self.settings)
        env_kwargs: dict[str, Any] = {
            "num_envs": self.num_envs,
            "model_stop_token_ids": generation_ends(self.model),
            "samples_per_prompt": samples,
            **self.env_kwargs,
            **({} if self.reward is None else {"rewards": reward_list(self.reward)}),
            **({} if self.tokenizer is None else {"tokenizer": self.tokenizer}),
        }
        self.made = make_run_envs(
            self.cls,
            self.model,
            task=self.task,
            prompts=self.prompts,
            eval_prompts=self.eval_prompts,
            env_kwargs=env_kwargs,
            chosen=self.env_kwargs,
            eval_samples=eval_samples,
        )
        if self.cls.online and isinstance(self.tokenizer, str | os.PathLike):
            self.tokenizer = None  # the agent takes the environment's, which was loaded by this name
        if self.task is not None and (self.model is None or not self.cls.online):
            self._use_task_data(env_kwargs)

    def _use_task_data(self, env_kwargs: Mapping[str, Any]) -> None:
        """Take tokenizer, model, start and data set from the task, where they were not given."""
        data = training_data(self.task, env_kwargs, self.made.source)
        self.tokenizer = data.tokenizer
        self.model = own_model(self.task, data) if self.model is None else self.model
        if self.own_start is not None:
            self.model = make_start(
                self.model,
                data,
                self.own_start.replace(seed=self.settings.seed),
                seed=self.settings.seed,
                policy_kwargs=self.policy_kwargs,
                loggers=["rich"] if self._shows() else [],
            ).model
        if self.dataset is None and not self.cls.online:
            preferences = getattr(self.cls, "from_preferences", False)
            self.dataset = own_dataset(self.task, data, preferences=preferences)

    def make_agent(self) -> Any:
        """Make the agent with its callbacks."""
        check_callbacks(self.callbacks)
        callbacks = [*self.callbacks]
        if self.folder is not None and self.made.held_out:
            callbacks.append(BestCheckpoint())
        reported = any(isinstance(callback, RunReport) for callback in callbacks)
        if issubclass(self.cls, Agent) and not reported:
            callbacks.append(RunReport())
        pieces = {
            "envs": self.made.envs,
            "dataset": self.dataset,
            "eval_envs": self.made.eval_envs,
            "eval_dataset": self.eval_dataset,
            "policy_kwargs": dict(self.policy_kwargs) if self.policy_kwargs else None,
            "metric_fn": self.metric_fn,
            "rollouts": self.rollouts,
        }
        return make_agent(
            self.agent,
            self.model,
            config=self.settings,
            tokenizer=self.tokenizer,
            callbacks=callbacks,
            loggers=self.loggers,
            run_dir=self.run_dir,
            **{name: piece for name, piece in pieces.items() if piece is not None},
            **self.arguments,
        )

    def learn(self, learner: Any) -> Any:
        """Train the agent and evaluate it; ``result.evaluated_on`` names the evaluation data."""
        last_envs, on = None, self.made.evaluated_on
        if self.eval_dataset is not None and not self.made.held_out:
            on = evaluation.EVAL_DATASET
        if self.made.eval_envs is None and not self.cls.online and takes_eval_envs(self.cls):
            on = evaluation.DATA_PROMPTS
            assert self.num_envs is not None
            last_envs = evaluation.envs_of_data(
                learner,
                num_envs=self.num_envs,
                reward=self.reward,
                tokenizer=self.tokenizer,
                env_kwargs=self.env_kwargs,
            )
            if last_envs is not None and learner.config.eval_every:
                learner.eval_envs = last_envs
        if self.folder is None:
            return evaluation.finish(learner.learn(), last_envs, on)
        with fresh_start(self.folder.path) if process_group.is_main() else nullcontext():
            self._begin(learner, self.folder)
            return evaluation.finish(learner.learn(), last_envs, on)

    def _begin(self, learner: Any, folder: RunFolder) -> None:
        """Load the newest checkpoint if the run is resumed, and write or update ``run.json``."""
        found = None
        if self.resume:
            found = learner.restore(folder.path, missing="start" if self.resume == "auto" else "error")
        if not process_group.is_main():
            return
        agent, model, device = self.agent, self.model, device_of(learner)
        with folder.running():
            if found is not None:
                folder.note_resume(learner.iteration, device=device)
                return
            folder.write_info(
                learner.config,
                agent=agent if isinstance(agent, str) else f"{agent.__module__}:{agent.__qualname__}",
                task=getattr(self.task, "name", self.task),
                model=os.fspath(model) if isinstance(model, str | os.PathLike) else None,
                start=described(self.own_start),
                num_envs=self.num_envs,
                device=device,
            )


def _run_folder(run_dir: str | os.PathLike[str] | None, resume: bool | str) -> RunFolder | None:
    """The run's folder; nothing is written.

    Raises:
        ValueError: if ``resume`` is none of True, False and "auto", or needs a folder.
        FileExistsError: if the folder holds another run that is not to be resumed.
    """
    folder = None if run_dir is None else RunFolder(run_dir)
    if (isinstance(resume, int) and not isinstance(resume, bool)) or resume not in (True, False, "auto"):
        raise ValueError(f"resume must be True, False or 'auto', got {resume!r}")
    if resume and folder is None:
        raise ValueError(f"resume={resume!r} needs run_dir=, got None")
    if folder is not None and not resume and has_begun(folder.path):
        raise FileExistsError(f"{folder.path} holds another run; say resume=True, or choose another run_dir")
    return folder


def _group_sizes(cls: type[Agent], config: Any) -> tuple[int, int]:
    """Episodes per prompt in training and in evaluation, by the agent's ``group_size``."""
    needed = getattr(cls, "group_size", None)
    return (1, 1) if needed is None else (needed(config), needed(config, evaluation=True))
