"""`train`: one line from a model and a reward to a trained agent."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

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
from textenv.agents.policies.adapter_files import tokenizer_source
from textenv.agents.reports.recorder import RunReport
from textenv.agents.settings.base import AgentConfig
from textenv.agents.train_setup import evaluation
from textenv.agents.train_setup.arguments import check_sources_of, check_without_task, divide
from textenv.agents.train_setup.environments import make_run_envs, takes_eval_envs, training_data
from textenv.agents.train_setup.task_settings import TaskSettings, task_settings
from textenv.agents.train_setup.task_start import described, make_start, own_dataset, own_model, start_config
from textenv.modeling.pretrained import trusting
from textenv.modeling.saved_runs import latest_whole
from textenv.rewards.registry import reward_list
from textenv.tasks.prompts import load_tokenizer, model_tokenizer, with_prompts
from textenv.tasks.stop_tokens import generation_ends
from textenv.utils.checks import check_at_least
from textenv.utils.quiet import quiet_libraries

if TYPE_CHECKING:
    from textenv.agents.base.result import TrainResult
    from textenv.agents.settings.engine_rollouts import EngineRollouts
    from textenv.agents.settings.ray_rollouts import RayRollouts

P = ParamSpec("P")
R = TypeVar("R")


def _with_trust(function: Callable[P, R]) -> Callable[P, R]:
    """Apply ``trust_remote_code`` in ``policy_kwargs`` to everything that a call loads."""

    @functools.wraps(function)
    def trusted(*args: P.args, **kwargs: P.kwargs) -> R:
        given: Any = kwargs.get("policy_kwargs") or {}
        said = given.get("trust_remote_code", False) if isinstance(given, Mapping) else False
        with trusting(said):
            return function(*args, **kwargs)

    return trusted


@_with_trust
def train(
    agent: str | type[Agent],
    model: Any = None,
    *,
    task: str | None = None,
    prompts: Any = None,
    reward: Any = None,
    dataset: Any = None,
    eval_dataset: Any = None,
    eval_prompts: Any = None,
    tokenizer: Any = None,
    config: AgentConfig | Mapping[str, Any] | None = None,
    num_envs: int | None = None,
    start: bool | Mapping[str, Any] = True,
    env_kwargs: Mapping[str, Any] | None = None,
    policy_kwargs: Mapping[str, Any] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool | Literal["auto"] = False,
    loggers: Sequence[Any] = ("rich",),
    callbacks: Sequence[Any] = (),
    metric_fn: Any = None,
    rollouts: RayRollouts | EngineRollouts | None = None,
    seed: int | None = None,
    **config_overrides: Any,
) -> TrainResult:
    """Make an environment and an agent, and train it.

    A task has prompts, a tokenizer, rewards, a small model and a validation split, on which the agent is
    evaluated. It also has settings for each agent and a fine-tuned start for its model (``Task.settings``).
    Arguments override what the task has.
    Without a task, give ``prompts`` and ``reward`` (online agents) or ``dataset`` (offline agents). The agent
    is evaluated on ``eval_prompts``, or else on its training prompts, at the end and after every
    ``eval_every`` iterations. A reward model is evaluated on ``eval_dataset``, or else on its training data.
    ``result.evaluated_on`` names the evaluation data. With ``run_dir`` and a held-out evaluation the best
    agent is kept in ``run_dir/best``.

    Args:
        agent: name of a registered agent, or its class.
        model: hub id, folder (of a model, a checkpoint, or a run, which stands for its model), config, module
            or ``LanguagePolicy``; None is the task's small model.
        task: name of a registered task.
        prompts: list of texts or message lists, file, data set or hub id, instead of the task's.
        reward: a function ``(prompts, completions, **columns) -> list``, a reward's name, ``["name",
            {arguments}]``, or a list of them, in which "task" stands for the task's own; None is the task's.
        dataset: training data of an offline agent; None is the task's demonstrations (for a reward model its
            preferences).
        eval_dataset: held-out data, for agents that are evaluated on data (reward models).
        eval_prompts: prompts to evaluate on, instead of the task's validation split.
        tokenizer: name, folder or object; None is the task's or the model's.
        config: settings of the agent, as an object of its settings class or by name. Those that neither it
            nor ``config_overrides`` names are the task's, or else the defaults of the class.
        num_envs: texts generated in parallel; None is the task's setting, or else 16.
        start: whether the task's small model is first fine-tuned on the task's demonstrations, as the task
            says; the agent's reference is the fine-tuned model. A mapping changes settings of the
            fine-tuning, ``{"steps": 50}``. A model given by ``model`` is not changed.
        env_kwargs: further arguments of ``textenv.tasks.make.make_vec_env``. Arguments that are not settings
            of the agent may also be given directly, such as ``max_new_tokens=16``. The default of
            ``samples_per_prompt`` is what the agent needs.
        policy_kwargs: further arguments of the ``LanguagePolicy`` made around ``model``, such as ``lora``.
            ``trust_remote_code`` applies to everything that is loaded, also tokenizer, references and reward
            models. Without ``device`` the model and the environments use this process's GPU if there is one;
            a module stays on its device.
        run_dir: folder for metrics, samples and checkpoints; None leaves no files.
        resume: continue the run in ``run_dir`` from its newest complete checkpoint. Give the same arguments
            as before; settings of the agent that are not given are those of the checkpoint. "auto" starts a
            new run if there is no checkpoint.
        loggers: see ``textenv.agents.loggers.registry.make_loggers``.
        callbacks: see ``textenv.agents.base.callbacks.make_callbacks``.
        metric_fn: further evaluation metrics, see ``textenv.agents.evaluation.evaluate``.
        rollouts: how an online agent's episodes are generated, see ``textenv.agents.rollouts``.
        seed: changes ``config.seed``.
        config_overrides: fields of the agent's settings, such as ``learning_rate=1e-5``, and arguments of the
            environment.

    Raises:
        ValueError: if what the agent needs is missing, a name is unknown, or ``start`` is given with a model.
        TypeError: if an override is no field of the agent's settings and no argument of the environment, or
            is given twice.
        FileExistsError: if ``run_dir`` holds another run.
        FileNotFoundError: if ``resume`` is True and there is no whole checkpoint.

    Warns:
        UserWarning: if the task says that this agent can't learn it, with the reason.

    Example:
        >>> import textenv
        >>> def short(prompts, completions, **columns):
        ...     return [-float(len(text)) for text in completions]
        >>> result = textenv.train(  # doctest: +SKIP
        ...     "ppo", "gpt2", prompts=["Once upon a time"], reward=short
        ... )
    """
    quiet_libraries()
    cls = get_agent(agent)
    if not isinstance(config, Mapping):
        check_config(config, cls.config_class)
    env_kwargs, config_overrides = divide(cls, env_kwargs, config_overrides)
    check_policy_kwargs(policy_kwargs, cls)
    if num_envs is not None:
        check_at_least("num_envs", num_envs, 1)
    of_task = task_settings(task, agent)
    num_envs = of_task.num_envs if num_envs is None else num_envs
    own_start = start_config(of_task.start if model is None and task is not None else None, start)
    if own_start is not None and (task is None or model is not None):
        raise ValueError(f"start is for a task's own model, got {start!r} with a model or without task=")
    folder = _run_folder(run_dir, resume)
    check_loggers(loggers, run_dir)
    process_group.start()
    process_group.barrier()  # no process writes before all have checked the folder

    env_kwargs, policy_kwargs = on_device(cls, model, env_kwargs, policy_kwargs)
    check_sources_of(agent, cls, prompts)
    if task == "prompts" and prompts is not None:  # the data of that task, under another name
        env_kwargs["task_kwargs"] = with_prompts(env_kwargs.get("task_kwargs"), prompts)
        prompts = None
    if task is None:
        check_without_task(agent, cls, model, prompts=prompts, reward=reward, dataset=dataset)
        tokenizer = model_tokenizer(tokenizer_of(model)) if tokenizer is None else load_tokenizer(tokenizer)

    if seed is not None:
        config_overrides["seed"] = seed
    settings: Any = None
    if folder is not None and resume:
        settings = settings_to_resume(cls.config_class, folder.path, config, config_overrides)
        if settings is not None:
            config_overrides = {}
        if resume is True or latest_whole(folder.path)[0] is not None:
            own_start = None  # the checkpoint holds the weights, and those of the reference
    check_arguments(agent, config_overrides)
    given, arguments = _split(config_overrides, {spec.name for spec in fields(cls.config_class)})
    if settings is None:
        settings = of_task.fill(agent, config, given)
        begins = described(own_start) or ("random weights" if model is None else "the model given")
        _announce(of_task, settings, num_envs, begins, loggers, dataset)

    samples, eval_samples = _group_sizes(cls, settings)
    full_env_kwargs: dict[str, Any] = {
        "num_envs": num_envs,
        "model_stop_token_ids": generation_ends(model),
        "samples_per_prompt": samples,
        **env_kwargs,
        **({} if reward is None else {"rewards": reward_list(reward)}),
        **({} if tokenizer is None else {"tokenizer": tokenizer}),
    }
    made = make_run_envs(
        cls,
        model,
        task=task,
        prompts=prompts,
        eval_prompts=eval_prompts,
        env_kwargs=full_env_kwargs,
        chosen=env_kwargs,
        eval_samples=eval_samples,
    )
    if cls.online and isinstance(tokenizer, str | os.PathLike):
        tokenizer = None  # the agent takes the environment's, which was loaded by this name
    if task is not None and (model is None or not cls.online):
        data = training_data(task, full_env_kwargs, made.source)
        tokenizer = data.tokenizer
        model = own_model(task, data) if model is None else model
        if own_start is not None:
            model = make_start(
                model,
                data,
                own_start.replace(seed=settings.seed),
                seed=settings.seed,
                policy_kwargs=policy_kwargs,
                loggers=[name for name in loggers if isinstance(name, str) and name == "rich"],
            ).model
        if dataset is None and not cls.online:
            dataset = own_dataset(task, data, preferences=getattr(cls, "from_preferences", False))
    check_callbacks(callbacks)
    if folder is not None and made.held_out:
        callbacks = [*callbacks, BestCheckpoint()]
    if issubclass(cls, Agent) and not any(isinstance(callback, RunReport) for callback in callbacks):
        callbacks = [*callbacks, RunReport()]
    pieces = {
        "envs": made.envs,
        "dataset": dataset,
        "eval_envs": made.eval_envs,
        "eval_dataset": eval_dataset,
        "policy_kwargs": dict(policy_kwargs) if policy_kwargs else None,
        "metric_fn": metric_fn,
        "rollouts": rollouts,
    }
    learner = make_agent(
        agent,
        model,
        config=settings,
        tokenizer=tokenizer,
        callbacks=callbacks,
        loggers=loggers,
        run_dir=run_dir,
        **{name: piece for name, piece in pieces.items() if piece is not None},
        **arguments,
    )

    last_envs, on = None, made.evaluated_on
    if eval_dataset is not None and not made.held_out:
        on = evaluation.EVAL_DATASET
    if made.eval_envs is None and not cls.online and takes_eval_envs(cls):
        on = evaluation.DATA_PROMPTS
        last_envs = evaluation.envs_of_data(
            learner, num_envs=num_envs, reward=reward, tokenizer=tokenizer, env_kwargs=env_kwargs
        )
        if last_envs is not None and learner.config.eval_every:
            learner.eval_envs = last_envs
    if folder is None:
        return evaluation.finish(learner.learn(), last_envs, on)
    info = {
        "agent": agent if isinstance(agent, str) else f"{agent.__module__}:{agent.__qualname__}",
        "task": getattr(task, "name", task),
        "model": os.fspath(model) if isinstance(model, str | os.PathLike) else None,
        "start": described(own_start),
        "num_envs": num_envs,
    }
    with fresh_start(folder.path) if process_group.is_main() else nullcontext():
        _begin(learner, folder, info, resume)
        return evaluation.finish(learner.learn(), last_envs, on)


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


def _begin(learner: Any, folder: RunFolder, info: Mapping[str, Any], resume: bool | str) -> None:
    """Load the newest checkpoint if the run is resumed, and write or update ``run.json``."""
    found = None
    if resume:
        found = learner.restore(folder.path, missing="start" if resume == "auto" else "error")
    if not process_group.is_main():
        return
    device = device_of(learner)
    with folder.running():
        if found is not None:
            folder.note_resume(learner.iteration, device=device)
        else:
            folder.write_info(learner.config, **info, device=device)


def _split(given: Mapping[str, Any], names: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries with these names, and the others."""
    inside = {name: value for name, value in given.items() if name in names}
    return inside, {name: value for name, value in given.items() if name not in names}


def _group_sizes(cls: type[Agent], config: Any) -> tuple[int, int]:
    """Episodes per prompt in training and in evaluation, by the agent's ``group_size``."""
    needed = getattr(cls, "group_size", None)
    return (1, 1) if needed is None else (needed(config), needed(config, evaluation=True))


def _announce(
    of_task: TaskSettings, config: AgentConfig, num_envs: int, start: Any, loggers: Any, dataset: Any
) -> None:
    """Print the task's settings if the logger "rich" is used; warn if the agent can't learn the task."""
    if not process_group.is_main():
        return
    if of_task.known and any(isinstance(name, str) and name == "rich" for name in loggers):
        print(of_task.line(config, num_envs, start), file=sys.stderr)
    if of_task.cannot is not None and dataset is None:
        task, _, agent = of_task.source.partition(" for ")
        warnings.warn(f"{agent} cannot learn {task}: {of_task.cannot}", stacklevel=5)


def tokenizer_of(model: Any) -> Any:
    """A model's tokenizer: the policy's, or the name or folder that the model was loaded from.

    Raises:
        ValueError: if the model does not say.
    """
    if isinstance(model, str | os.PathLike):
        return tokenizer_source(os.fspath(model))
    own = getattr(model, "tokenizer", None)
    if own is not None:
        return own
    name = getattr(getattr(model, "config", model), "name_or_path", "")
    if not name:
        kind = type(model).__name__
        raise ValueError(f"give tokenizer=: the {kind} does not say where it was loaded from")
    return name
