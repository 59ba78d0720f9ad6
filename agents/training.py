"""`train`: one line from a model and a reward to a trained agent."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from textenv.agents.base.agent import Agent
from textenv.agents.settings.base import AgentConfig
from textenv.agents.train_setup.run_setup import RunSetup
from textenv.modeling.pretrained import trusting
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
    run = RunSetup(
        agent=agent,
        model=model,
        task=task,
        prompts=prompts,
        reward=reward,
        dataset=dataset,
        eval_dataset=eval_dataset,
        eval_prompts=eval_prompts,
        tokenizer=tokenizer,
        config=config,
        num_envs=num_envs,
        start=start,
        env_kwargs=env_kwargs,
        policy_kwargs=policy_kwargs,
        run_dir=run_dir,
        resume=resume,
        loggers=loggers,
        callbacks=callbacks,
        metric_fn=metric_fn,
        rollouts=rollouts,
        seed=seed,
        changes=config_overrides,
    )
    run.check()
    run.choose_sources()
    run.choose_settings()
    run.make_environments()
    result: TrainResult = run.learn(run.make_agent())
    return result
