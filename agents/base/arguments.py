"""Checks of an agent's arguments, made before a model is loaded: environments, tokenizer, callbacks."""

from __future__ import annotations

import inspect
from typing import Any

from textenv.agents.settings.effects import Idle, refuse
from textenv.envs.vector_env import TextVectorEnv
from textenv.utils.checks import check_dict
from textenv.utils.names import nearest, shown

BY_AGENT = {
    "model": "it is the first argument",
    "tokenizer": "it is given as tokenizer=",
    "seed": "it is the agent's setting seed",
    "autocast": "it is the agent's setting autocast",
    "max_tokens": "it is the agent's setting max_tokens_per_microbatch",
}
"""Arguments of a policy that the agent gives it -> where they come from."""


def check_config(config: Any, config_class: type) -> None:
    """Refuse settings of another kind.

    Raises:
        TypeError: if they are no ``config_class``.
    """
    if config is not None and not isinstance(config, config_class):
        raise TypeError(f"config must be a {config_class.__name__}, got {type(config).__name__}")


def check_sources(agent: Any, envs: Any, eval_envs: Any, dataset: Any, rollouts: Any) -> None:
    """Refuse what an agent cannot learn from.

    Args:
        agent: the agent that is made.
        envs: None or a native vector environment; an online agent needs it.
        eval_envs: None or a native vector environment.
        dataset: an offline agent needs it.
        rollouts: None for an offline agent.

    Raises:
        TypeError: if an environment is none.
        ValueError: if what the agent needs is missing, or it has no use for ``rollouts``.
    """
    name = type(agent).__name__
    if agent.online and envs is None:
        raise ValueError(f"{name} learns online and needs envs=, got None")
    if not agent.online and dataset is None:
        raise ValueError(f"{name} learns offline and needs dataset=, got None")
    if not agent.online and rollouts is not None:
        raise ValueError(f"{name} learns offline, rollouts must be None, got {rollouts!r}")
    why = getattr(agent, "cannot", {}).get("rollouts")
    if rollouts is not None and why is not None:
        raise ValueError(f"{name} takes no rollouts=: {why}; got {shown(rollouts)}")
    for argument, given in (("envs", envs), ("eval_envs", eval_envs)):
        base = getattr(given, "unwrapped", given)
        if given is not None and not isinstance(base, TextVectorEnv):
            raise TypeError(
                f"{argument} must be a native vector environment (gym.make_vec without vectorization_mode), "
                f"got {type(base).__name__}"
            )


def check_callbacks(callbacks: Any) -> None:
    """Refuse callbacks that are no list.

    Raises:
        TypeError: if they are none.
    """
    if isinstance(callbacks, str) or not hasattr(callbacks, "__iter__"):
        raise TypeError(f"callbacks must be a list of callbacks, got {shown(callbacks)}")


def check_options(tokenizer: Any, callbacks: Any, metric_fn: Any) -> None:
    """Refuse arguments of another kind.

    Raises:
        TypeError: naming the argument.
    """
    if tokenizer is not None and not hasattr(tokenizer, "decode"):
        raise TypeError(f"tokenizer must be a transformers tokenizer, got {shown(tokenizer)}")
    check_callbacks(callbacks)
    if metric_fn is not None and not callable(metric_fn):
        raise TypeError(f"metric_fn must be a function, got {shown(metric_fn)}")


def check_policy_kwargs(policy_kwargs: Any, agent: Any) -> None:
    """Refuse further arguments of a policy that its class does not have, or that the agent sets.

    Args:
        policy_kwargs: None or arguments by name.
        agent: the agent or its class. Arguments are not checked against a ``policy_class`` that takes any
            keyword, or if the agent has none.

    Raises:
        TypeError: if it is no dictionary, or naming the argument and those that there are, the nearest first.
    """
    check_dict("policy_kwargs", policy_kwargs)
    by_agent = {**BY_AGENT, **getattr(agent, "policy_arguments", {})}
    for name in policy_kwargs or ():
        if name in by_agent:
            raise TypeError(f"policy_kwargs can't hold {name!r}: {by_agent[name]}")
    policy_class = getattr(agent, "policy_class", None)
    if not policy_kwargs or policy_class is None:
        return
    parameters = inspect.signature(policy_class).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    for name in policy_kwargs:
        if name not in known:
            raise TypeError(f"policy_kwargs: unknown argument {name!r}; {nearest(name, known - {*by_agent})}")


def check_effects(agent: Any) -> None:
    """Refuse settings without effect in an agent's environment, data and model, unless they are saved ones.

    Raises:
        ValueError: see ``refuse``.
    """
    refuse(agent.config, agent.config.refused(agent.idle()))


def refuse_dataset(agent: Any, why: str) -> None:
    """Refuse a data set that an online agent does not learn from, unless its settings are saved ones.

    Args:
        agent: the agent.
        why: the end of the sentence that begins "dataset has no effect".

    Raises:
        ValueError: if there is one.
    """
    if agent.dataset is not None and not agent.config.saved:
        raise ValueError(f"dataset has no effect {why}; got {len(agent.dataset)} rows")


def check_effects_in_run(agent: Any) -> None:
    """Refuse settings of evaluations and checkpoints that a run can't make, unless they are saved ones.

    Raises:
        ValueError: see ``refuse``.
    """
    config, found = agent.config, Idle()
    if agent.eval_envs is None:
        found |= config.changed("eval_every", because="without anything to evaluate on (eval_envs=)")
    if agent.run_dir is None:
        names = ("checkpoint_every", "keep_checkpoints")
        found |= config.changed(*names, because="without run_dir=, where checkpoints would be")
    refuse(config, config.refused(found))
