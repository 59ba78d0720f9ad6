"""Agents by name, so that a study or a script swaps a word."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from textenv.utils.names import check_name, nearest, shown

if TYPE_CHECKING:
    from textenv.agents.base.agent import Agent
    from textenv.agents.settings.base import AgentConfig

AgentClass = TypeVar("AgentClass", bound="type[Agent]")

BUILTIN: dict[str, str] = {
    "a2c": "textenv.agents.a2c:A2C",
    "best-of-n": "textenv.agents.best_of_n:BestOfN",
    "cpo": "textenv.agents.dpo:CPO",
    "dpo": "textenv.agents.dpo:DPO",
    "filtered-bc": "textenv.agents.sft:FilteredBC",
    "grpo": "textenv.agents.grpo:GRPO",
    "ilql": "textenv.agents.ilql:ILQL",
    "kto": "textenv.agents.dpo:KTO",
    "monte-carlo": "textenv.agents.monte_carlo:MonteCarloCritic",
    "nlpo": "textenv.agents.nlpo:NLPO",
    "online-dpo": "textenv.agents.online_dpo:OnlineDPO",
    "orpo": "textenv.agents.dpo:ORPO",
    "ppo": "textenv.agents.ppo:PPO",
    "reinforce": "textenv.agents.reinforce:Reinforce",
    "reinforce++": "textenv.agents.reinforce:ReinforcePlusPlus",
    "reward-model": "textenv.agents.reward_model:RewardModelAgent",
    "rft": "textenv.agents.rft:RFT",
    "rloo": "textenv.agents.rloo:RLOO",
    "rwr": "textenv.agents.rwr:RWR",
    "sb3": "textenv.agents.sb3:SB3",
    "sft": "textenv.agents.sft:SFT",
    "simpo": "textenv.agents.dpo:SimPO",
}
"""Name -> ``"module:class"`` of the agents that come with the library, imported when they are first used."""

SETTINGS: dict[str, str] = {
    "a2c": "actor_critic:A2CConfig",
    "best-of-n": "samples:BestOfNConfig",
    "cpo": "preferences:CPOConfig",
    "dpo": "preferences:DPOConfig",
    "filtered-bc": "offline:FilteredBCConfig",
    "grpo": "groups:GRPOConfig",
    "ilql": "offline:ILQLConfig",
    "kto": "preferences:KTOConfig",
    "monte-carlo": "offline:MonteCarloConfig",
    "nlpo": "actor_critic:NLPOConfig",
    "online-dpo": "samples:OnlineDPOConfig",
    "orpo": "preferences:ORPOConfig",
    "ppo": "actor_critic:PPOConfig",
    "reinforce": "policy_gradient:ReinforceConfig",
    "reinforce++": "policy_gradient:ReinforcePlusPlusConfig",
    "reward-model": "preferences:RewardModelConfig",
    "rft": "samples:RFTConfig",
    "rloo": "groups:RLOOConfig",
    "rwr": "offline:RWRConfig",
    "sb3": "sb3:SB3Config",
    "sft": "offline:SFTConfig",
    "simpo": "preferences:SimPOConfig",
}
"""Name -> ``"module:class"`` of their settings in ``textenv.agents.settings``, read without the agent."""

AGENTS: dict[str, type[Agent]] = {}
"""Name -> class of the agents that were registered."""


def register_agent(name: str) -> Callable[[AgentClass], AgentClass]:
    """Decorator: make an agent known by ``name``.

    The class has ``config_class`` and ``online``, as ``textenv.agents.Agent`` says. Registering the same
    class again (a module reloaded, a notebook cell run twice) replaces it.

    Raises:
        TypeError: if the class lacks one of them.
        ValueError: if the name is malformed or belongs to another agent.
    """
    check_name("agent", name)

    def register(cls: AgentClass) -> AgentClass:
        for attribute in ("config_class", "online"):
            if not hasattr(cls, attribute):
                raise TypeError(
                    f"agent {name!r} must have the class attribute {attribute}, got none on {cls.__name__}"
                )
        origin = f"{cls.__module__}:{cls.__qualname__}"
        taken = AGENTS.get(name)
        owner = f"{taken.__module__}:{taken.__qualname__}" if taken is not None else BUILTIN.get(name, origin)
        if owner != origin:
            raise ValueError(f"agent {name!r} is already registered, as {owner}")
        AGENTS[name] = cls
        return cls

    return register


def agent_names() -> list[str]:
    """Names of all agents, sorted."""
    return sorted({*BUILTIN, *AGENTS})


def get_agent(name: str | type[Agent]) -> type[Agent]:
    """The class of an agent; a class passes through.

    Raises:
        ValueError: if no agent has this name; the error lists the known ones, the nearest first.
    """
    if isinstance(name, type):
        return name
    if not isinstance(name, str) or name not in AGENTS:
        if not isinstance(name, str) or name not in BUILTIN:
            raise ValueError(f"unknown agent {shown(name)}; {nearest(str(name), agent_names())}")
        module, attribute = BUILTIN[name].split(":")
        return getattr(import_module(module), attribute)
    return AGENTS[name]


def get_config_class(name: str) -> type[AgentConfig]:
    """The class of an agent's settings. The agents of the library are not imported, and neither is torch.

    Raises:
        ValueError: if no agent has this name; the error lists the known ones, the nearest first.
    """
    if name in AGENTS or name not in SETTINGS:
        return get_agent(name).config_class
    module, attribute = SETTINGS[name].split(":")
    return getattr(import_module(f"textenv.agents.settings.{module}"), attribute)


def name_of(cls: type[Agent]) -> str:
    """The name that an agent's class is registered under.

    Raises:
        ValueError: if it is not registered.
    """
    for name, known in AGENTS.items():
        if known is cls:
            return name
    raise ValueError(f'{cls.__name__} is not registered; decorate it with @register_agent("name") to save it')


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


def describe() -> dict[str, str]:
    """Name -> first line of the documentation, for every agent."""
    lines = {}
    for name in agent_names():
        documentation = inspect.getdoc(get_agent(name)) or ""
        lines[name] = documentation.splitlines()[0] if documentation else ""
    return lines
