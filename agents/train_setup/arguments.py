"""Arguments of ``train``: those of the agent and of the environment, and checks of what is required."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from textenv.agents.policies.adapter_files import tokenizer_source
from textenv.agents.settings.policy_options import PolicyOptions
from textenv.modeling.model_checks import usable_positions
from textenv.modeling.pretrained import load_pretrained
from textenv.tasks.adapter_source import base_of, find_adapter
from textenv.tasks.fetch_model import resolve_model
from textenv.tasks.source import EnvSource
from textenv.utils.checks import check_dict
from textenv.utils.names import nearest

OWN = ("num_envs", "task", "prompts", "tokenizer")
"""Arguments of ``train`` that are also arguments of the environment."""


def divide(
    cls: type[Any], env_kwargs: Mapping[str, Any] | None, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the further keyword arguments of ``train`` into those of the environment and of the agent.

    A setting of the agent is the agent's. What is no setting and is an argument of ``make_vec_env`` is the
    environment's, as if it stood in ``env_kwargs``. All else is left to the agent, which refuses what it does
    not know.

    Args:
        cls: the agent's class.
        env_kwargs: arguments that are the environment's whatever the agent has.
        given: the further keyword arguments.

    Returns:
        Arguments of the environment, arguments and settings of the agent.

    Raises:
        TypeError: for an argument that could be two things, is given twice, or has a name of its own in
            ``train``.
        ValueError: for an argument of an environment, if the agent never has one.
    """
    from textenv.tasks.make import make_vec_env

    check_dict("env_kwargs", env_kwargs)
    of_env = _names(make_vec_env) - {"unknown"}
    of_policy = {spec.name for spec in fields(PolicyOptions)}
    of_agent = {spec.name for spec in fields(cls.config_class)} | _names(cls)
    inside = dict(env_kwargs or {})
    for name in inside:
        if name in OWN:
            raise TypeError(f"{name} must be given as {name}=, got it in env_kwargs")
        if name == "rewards":
            raise TypeError("rewards must be given as reward=, got them in env_kwargs")
        if name not in of_env:
            raise TypeError(
                f"env_kwargs: unknown argument {name!r}; {nearest(name, of_env - {*OWN, 'rewards'})}"
            )
    own: dict[str, Any] = {}
    for name, value in given.items():
        if name in of_agent or name not in of_env | of_policy:
            own[name] = value
        elif name == "rewards":
            raise TypeError("the rewards are given as reward=, got rewards=")
        elif name in of_policy:
            also = f" or env_kwargs={{{name!r}: ...}}, as it is meant" if name in of_env else ""
            raise TypeError(f"{name} must be given in policy_kwargs={{{name!r}: ...}}{also}, got {name}=")
        elif name in inside:
            raise TypeError(f"{name} is given twice, as {name}= and in env_kwargs")
        else:
            inside[name] = value
    if inside and not cls.online and "eval_envs" not in _names(cls):
        unused = [name for name in inside if name not in ("task_kwargs", "split")]
        if unused:
            raise ValueError(
                f"{unused[0]} has no effect on a {cls.__name__}, which generates no text; "
                f"got {unused[0]}={inside[unused[0]]!r}"
            )
    return inside, own


def check_without_task(
    agent: Any, cls: type[Any], model: Any, *, prompts: Any, reward: Any, dataset: Any
) -> None:
    """Refuse a call without a task that lacks a required argument.

    Raises:
        ValueError: naming the argument.
    """
    if model is None:
        raise ValueError("model must be given without a task=, got None")
    if cls.online and prompts is None:
        raise ValueError(f"agent {agent!r} learns online and needs prompts= (or task=), got None")
    if cls.online and reward is None:
        raise ValueError(f"agent {agent!r} learns online and needs reward= (or task=), got None")
    if not cls.online and dataset is None:
        raise ValueError(f"agent {agent!r} learns offline and needs dataset= (or task=), got None")


def check_sources_of(agent: Any, cls: type[Any], prompts: Any) -> None:
    """Refuse prompts for an offline agent.

    Raises:
        ValueError: naming what it takes instead.
    """
    if not cls.online and prompts is not None:
        raise ValueError(
            f"agent {agent!r} learns offline, from dataset=, and takes no prompts=; "
            "prompts to evaluate on are eval_prompts="
        )


def fitting_budget(sources: Sequence[EnvSource], model: Any, env_kwargs: Mapping[str, Any]) -> int | None:
    """Token budget that fits into the model's positions, if the default budget is too large.

    Args:
        sources: of the environments, without a task's own prompts.
        model: what the policy is made of.
        env_kwargs: arguments of the environments.

    Returns:
        The budget; None leaves the default: it fits, or the user chose one, or no budget fits, or the model
        names no limit.
    """
    task_kwargs = env_kwargs.get("task_kwargs") or {}
    chosen = [env_kwargs.get("max_new_tokens"), env_kwargs.get("max_episode_steps")]
    if not sources or any(value is not None for value in chosen) or "max_new_tokens" in task_kwargs:
        return None
    positions = _positions(model)
    longest = max(source.prompts.max_length + source.token_budget() for source in sources)
    if positions is None or longest <= positions:
        return None
    left = positions - max(source.prompts.max_length for source in sources)
    return left if left >= 1 else None


def _positions(model: Any) -> int | None:
    """Positions of a policy, a model, a config, or a named model, without loading it; None if unknown."""
    from transformers import AutoConfig, PretrainedConfig

    if isinstance(model, str | os.PathLike):
        try:
            name = resolve_model(model)
            adapter = find_adapter(name)
            model = load_pretrained(
                AutoConfig, name if adapter is None else base_of(name, adapter), what="model"
            )
        except (OSError, ValueError):  # whoever loads the model says what is wrong
            return None
    if isinstance(model, PretrainedConfig):
        found = getattr(model.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None
    module = getattr(model, "model", model)
    return usable_positions(module) if hasattr(module, "config") else None


def _names(function: Any) -> set[str]:
    """Names of a function's or a class's keyword arguments."""
    target = function.__init__ if inspect.isclass(function) else function
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(target).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind in kinds} - {"self"}


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
