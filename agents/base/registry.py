"""Names of agents: where each class and its settings are. An agent is imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from textenv.agents.settings.base import AgentConfig
from textenv.utils.names import check_name, nearest, shown

AgentClass = TypeVar("AgentClass", bound=type[Any])

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

AGENTS: dict[str, type[Any]] = {}
"""Name -> class of the agents that were registered."""


def register_agent(name: str) -> Callable[[AgentClass], AgentClass]:
    """Decorator: register an agent class under ``name``, and set its class attribute ``name``.

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
        cls.name = name
        return cls

    return register


def agent_names() -> list[str]:
    """Names of all agents, sorted."""
    return sorted({*BUILTIN, *AGENTS})


def get_agent(name: str | type[Any]) -> type[Any]:
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


def name_of(cls: type[Any]) -> str:
    """The name that an agent's class is registered under.

    Raises:
        ValueError: if it is not registered.
    """
    name = vars(cls).get("name")
    if isinstance(name, str) and AGENTS.get(name) is cls:
        return name
    raise ValueError(f'{cls.__name__} is not registered; decorate it with @register_agent("name") to save it')
