"""Make, load and list agents by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from textenv.agents.base.agent import Agent
from textenv.agents.base.registry import get_agent, list_agents
from textenv.utils.deprecation import warn_renamed
from textenv.utils.names import nearest


def make_agent(name: str | type[Agent], model: Any, **kwargs: Any) -> Agent:
    """Make an agent: ``make_agent("ppo", model, envs=envs, learning_rate=1e-5)``.

    Args:
        name: of the agent, or its class.
        model: a ``LanguagePolicy``, or what one is made of: hub id, folder, config, or module.
        kwargs: arguments of the agent's class (``envs``, ``dataset``, ``eval_envs``, ``config``, ...) and
            fields of its settings, which change ``config`` or, without one, the defaults.

    Raises:
        ValueError: if the agent is unknown.
        TypeError: if an argument is neither; the error names the nearest ones.
    """
    cls = get_agent(name)
    arguments = check_arguments(name, kwargs)
    changes = {key: kwargs.pop(key) for key in list(kwargs) if key not in arguments}
    if changes:
        config = kwargs.get("config")
        if config is not None and not isinstance(config, cls.config_class):
            raise TypeError(f"config must be a {cls.config_class.__name__}, got {type(config).__name__}")
        kwargs["config"] = cls.config_class(**changes) if config is None else config.replace(**changes)
    return cls(model, **kwargs)


def load_agent(path: str | os.PathLike[str], **kwargs: Any) -> Agent:
    """Rebuild an agent of any class from the folder that ``agent.save`` wrote, or from a checkpoint.

    Args:
        path: the folder.
        kwargs: of the agent's constructor: ``envs``, ``dataset``, ``callbacks``, ...; ``config`` replaces the
            saved settings.

    Raises:
        CorruptCheckpointError: if the folder is damaged.
        ValueError: if no agent is registered under the name in the folder.
    """
    return Agent.load(path, **kwargs)


def check_arguments(name: str | type[Agent], given: Iterable[str]) -> list[str]:
    """Refuse names that are neither arguments of an agent's class nor its settings.

    Returns:
        The arguments' names, without ``model``.

    Raises:
        TypeError: if there is one; the error names the nearest ones.
    """
    cls = get_agent(name)
    arguments = [
        parameter.name
        for parameter in inspect.signature(cls.__init__).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in ("self", "model")
    ]
    settings = [spec.name for spec in fields(cls.config_class)]
    for key in given:
        if key not in arguments and key not in settings:
            raise TypeError(
                f"agent {name!r} takes no argument {key!r}; {nearest(key, {*arguments, *settings})}"
            )
    return arguments


def describe() -> dict[str, str]:
    """Deprecated: ``list_agents``."""
    warn_renamed("describe", "list_agents")
    return list_agents()
