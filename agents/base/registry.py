"""Names of agents: where each class and its settings are. An agent is imported when it is first used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from textenv.agents.settings.base import AgentConfig
from textenv.utils.names import check_name, nearest, shown

AgentClass = TypeVar("AgentClass", bound=type[Any])

BUILTIN: dict[str, str] = {
    "a2c": "textenv.agents.a2c:A2C",
    "archer": "textenv.agents.archer:Archer",
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
    "archer": "archer:ArcherConfig",
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

LINES: dict[str, str] = {
    "a2c": "A2C: policy gradient with a critic, one step per batch, no probability ratio.",
    "archer": "ArCHer: twin Q and V of turns from a replay buffer, policy gradient over a turn's tokens.",
    "best-of-n": "Best-of-n sampling: n samples per prompt, the best by reward; nothing is trained.",
    "cpo": "Contrastive preference optimization from pairs: DPO without a reference, and likelihood.",
    "dpo": "Direct preference optimization from pairs: losses sigmoid, cdpo, robust, ipo, hinge.",
    "filtered-bc": "Behaviour cloning of the episodes with the highest returns (filtered BC).",
    "grpo": "GRPO: returns standardised per group, clipped ratios; DAPO, Dr. GRPO and GSPO by settings.",
    "ilql": "Implicit Language Q-Learning from logged episodes with rewards.",
    "kto": "Kahneman-Tversky optimization from single responses, desirable or not (or from pairs).",
    "monte-carlo": "Q and V regressed on Monte Carlo returns of logged episodes; logits shifted by Q - V.",
    "nlpo": "PPO on the nucleus of a mask policy, an older copy of the policy.",
    "online-dpo": "Online DPO: the best and the worst sample of each prompt are a preference pair.",
    "orpo": "Odds-ratio preference optimization from pairs: likelihood and odds ratio, no reference.",
    "ppo": "PPO with a value head, GAE and a KL penalty.",
    "reinforce": "REINFORCE: log-prob of each token times (return to go - baseline); no critic.",
    "reinforce++": "REINFORCE++: return to go with a KL penalty per token, whitened, clipped ratios.",
    "reward-model": "Reward modelling: Bradley-Terry with soft labels and margins, or regression on ratings.",
    "rft": "Rejection fine-tuning (ReST): supervised fine-tuning on the policy's best samples.",
    "rloo": "RLOO: each episode's return (with KL penalty) minus the mean of the others on its prompt.",
    "rwr": "Reward-weighted regression: cloning of logged episodes, each weighted by exp(return).",
    "sb3": "Stable-Baselines3's PPO, with its cost counted as for the other agents.",
    "sft": "Supervised fine-tuning: likelihood of the completions (behaviour cloning of all episodes).",
    "simpo": "Simple preference optimization from pairs: length-averaged log-probs, a margin, no reference.",
}
"""Name -> one line about the agents that come with the library, shown without importing them."""

AGENTS: dict[str, type[Any]] = {}
"""Name -> class of the agents that were registered."""


def register_agent(name: str) -> Callable[[AgentClass], AgentClass]:
    """Decorator: register an agent class under ``name``, and set its class attribute ``name``.

    The class has ``config_class`` and ``online``, see ``textenv.agents.Agent``. Registering the same
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


def list_agents() -> dict[str, str]:
    """Name -> one line, for every agent; of a registered one it is the first line of its documentation."""
    own = {name: _first_line(cls) for name, cls in AGENTS.items() if name not in LINES}
    return dict(sorted({**LINES, **own}.items()))


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


def _first_line(cls: type[Any]) -> str:
    lines = (inspect.getdoc(cls) or "").splitlines()
    return lines[0] if lines else ""
