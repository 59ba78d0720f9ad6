"""The environments of a run: the one that the agent learns in, and the one that it is evaluated in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textenv.agents.train_setup import evaluation
from textenv.agents.train_setup.arguments import fitting_budget
from textenv.tasks.make import make_vec_env
from textenv.tasks.registry import make_task
from textenv.tasks.source import EnvSource, make_source

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent
    from textenv.tasks.task import Task, TaskData

SOURCE_ARGUMENTS = (
    "task_kwargs",
    "split",
    "tokenizer",
    "max_prompt_tokens",
    "truncation_side",
    "chat_template",
)
"""Arguments of an environment that decide its prompts, beside ``task`` and ``prompts``."""


@dataclass(frozen=True, kw_only=True)
class RunEnvs:
    """The environments of a run."""

    envs: Any
    """For training; None for an offline agent."""
    eval_envs: Any
    """For evaluations; None for an agent that is evaluated on data."""
    held_out: bool
    """Whether evaluations are of prompts that the agent does not learn from."""
    evaluated_on: str
    """What evaluations are of, in words."""
    source: EnvSource | None
    """Of the training prompts; None for an offline agent."""


def source_of(task: str | Task | None, prompts: Any, env_kwargs: Mapping[str, Any]) -> EnvSource:
    """Prompts, tokenizer and task data of an environment with these arguments."""
    own = {name: env_kwargs[name] for name in SOURCE_ARGUMENTS if name in env_kwargs}
    return make_source(task, prompts, **own)


def takes_eval_envs(cls: type[Agent]) -> bool:
    """Whether an agent is evaluated in an environment."""
    return "eval_envs" in inspect.signature(cls.__init__).parameters


def make_run_envs(
    cls: type[Agent],
    model: Any,
    *,
    task: str | Task | None,
    prompts: Any,
    eval_prompts: Any,
    env_kwargs: Mapping[str, Any],
    chosen: Mapping[str, Any],
    eval_samples: int,
) -> RunEnvs:
    """Make the environments that an agent needs. The task is built once for each split that is used.

    Args:
        cls: the agent's class.
        model: what the policy is made of.
        task: of the prompts.
        prompts: instead of the task's.
        eval_prompts: to evaluate on; None is the task's validation split, or else the training prompts.
        env_kwargs: arguments of ``make_vec_env`` for both.
        chosen: those among them that the user gave.
        eval_samples: ``samples_per_prompt`` in evaluations.
    """
    shared = dict(env_kwargs)
    changes: dict[str, Any] = {"samples_per_prompt": eval_samples, "shuffle": False}
    takes_eval = takes_eval_envs(cls)
    held_out = takes_eval and (eval_prompts is not None or (task is not None and prompts is None))
    source = eval_source = None
    evaluated_on = evaluation.PROMPTS if cls.online else evaluation.DATA
    if held_out:
        changes["split"] = None if task is None else "validation"  # eval_prompts are all to be used
        eval_source = source_of(task, eval_prompts, {**shared, **changes})
        evaluated_on = evaluation.EVAL_PROMPTS
        if eval_prompts is None:
            evaluated_on = evaluation.VALIDATION.format(task=getattr(task, "name", task))
    if cls.online:
        source = source_of(task, prompts, shared)
        if takes_eval and not held_out:
            eval_source = source
    if task in (None, "prompts") and shared.get("partner") is None:
        sources = [each for each in (eval_source, source) if each is not None]
        if room := fitting_budget(sources, model, chosen):
            shared["max_new_tokens"] = room
    # The evaluation's environment comes first: reward terms that both share end up bound to the training's.
    eval_envs = envs = None
    if eval_source is not None:
        eval_envs = make_vec_env(task=task, prompts=eval_source, **{**shared, **changes})
    if source is not None:
        envs = make_vec_env(task=task, prompts=source, **shared)
    return RunEnvs(
        envs=envs, eval_envs=eval_envs, held_out=held_out, evaluated_on=evaluated_on, source=source
    )


def training_data(
    task: str | Task, env_kwargs: Mapping[str, Any], source: EnvSource | None = None
) -> TaskData:
    """The task's data for training: those that the environment was made from, or else they are built."""
    if source is not None and source.data is not None:
        return source.data
    kwargs = dict(env_kwargs.get("task_kwargs") or {})
    if "tokenizer" in env_kwargs:
        kwargs["tokenizer"] = env_kwargs["tokenizer"]
    return make_task(task).build(env_kwargs.get("split", "train"), **kwargs)
