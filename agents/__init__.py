"""Agents: policies, online and offline learners, evaluation and loggers; imported as ``textenv.agents``.

Names load on first use, so importing this package is light (no torch).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "textenv.agents":
    raise ImportError(
        "this folder is imported as textenv.agents; put your own agents.py elsewhere on sys.path "
        "or import textenv.agents"
    )

if TYPE_CHECKING:
    from textenv.agents.a2c import A2C, A2CConfig
    from textenv.agents.advantages import register_advantage
    from textenv.agents.aggregations import register_aggregation
    from textenv.agents.base import Agent
    from textenv.agents.best_of_n import BestOfN, BestOfNConfig
    from textenv.agents.callbacks import BestCheckpoint, Callback, EarlyStop
    from textenv.agents.config import AgentConfig, Config, OfflineConfig, OnlineConfig
    from textenv.agents.evaluation import Evaluation, evaluate
    from textenv.agents.grpo import GRPO, GRPOConfig
    from textenv.agents.ilql import ILQL, ILQLConfig
    from textenv.agents.loggers.jsonl import read_metrics
    from textenv.agents.loggers.registry import Logger, make_loggers, register_logger
    from textenv.agents.monte_carlo import MonteCarloConfig, MonteCarloCritic
    from textenv.agents.nlpo import NLPO, NLPOConfig
    from textenv.agents.offline import OfflineAgent
    from textenv.agents.online import OnlineAgent
    from textenv.agents.online_dpo import OnlineDPO, OnlineDPOConfig
    from textenv.agents.outcome import TrainResult
    from textenv.agents.policies.language_policy import LanguagePolicy
    from textenv.agents.ppo import PPO, PPOConfig
    from textenv.agents.preferences.agents import (
        CPO,
        DPO,
        KTO,
        ORPO,
        CPOConfig,
        DPOConfig,
        KTOConfig,
        ORPOConfig,
        SimPO,
        SimPOConfig,
    )
    from textenv.agents.registry import agent_names, describe, make_agent, register_agent
    from textenv.agents.reinforce import (
        Reinforce,
        ReinforceConfig,
        ReinforcePlusPlus,
        ReinforcePlusPlusConfig,
    )
    from textenv.agents.reward_models.agent import RewardModelAgent, RewardModelConfig
    from textenv.agents.reward_models.measure import evaluate_reward_model
    from textenv.agents.rft import RFT, RFTConfig
    from textenv.agents.rloo import RLOO, RLOOConfig
    from textenv.agents.rollouts.engine_collector import EngineCollector
    from textenv.agents.rollouts.engine_settings import EngineRollouts
    from textenv.agents.rollouts.ray_collector import RayCollector, start_rollout_actors
    from textenv.agents.rollouts.ray_settings import RayRollouts
    from textenv.agents.run_folder import RunFolder
    from textenv.agents.rwr import RWR, RWRConfig
    from textenv.agents.sb3 import LMActorCriticPolicy, TextVecEnv, sb3_agent
    from textenv.agents.sb3_buffer import SequenceRolloutBuffer
    from textenv.agents.sb3_learner import SB3
    from textenv.agents.sft import SFT, FilteredBC, FilteredBCConfig, SFTConfig
    from textenv.agents.training import train

_HOME = {
    "A2C": "a2c",
    "A2CConfig": "settings.actor_critic",
    "Agent": "base",
    "AgentConfig": "config",
    "BestCheckpoint": "callbacks",
    "BestOfN": "best_of_n",
    "BestOfNConfig": "settings.samples",
    "CPO": "preferences.agents",
    "CPOConfig": "settings.preferences",
    "Callback": "callbacks",
    "Config": "config",
    "DPO": "preferences.agents",
    "DPOConfig": "settings.preferences",
    "EarlyStop": "callbacks",
    "EngineCollector": "rollouts.engine_collector",
    "EngineRollouts": "rollouts.engine_settings",
    "Evaluation": "evaluation",
    "FilteredBC": "sft",
    "FilteredBCConfig": "settings.offline",
    "GRPO": "grpo",
    "GRPOConfig": "settings.groups",
    "ILQL": "ilql",
    "ILQLConfig": "settings.offline",
    "KTO": "preferences.agents",
    "KTOConfig": "settings.preferences",
    "LMActorCriticPolicy": "sb3",
    "LanguagePolicy": "policies.language_policy",
    "Logger": "loggers.registry",
    "MonteCarloConfig": "settings.offline",
    "MonteCarloCritic": "monte_carlo",
    "NLPO": "nlpo",
    "NLPOConfig": "settings.actor_critic",
    "ORPO": "preferences.agents",
    "ORPOConfig": "settings.preferences",
    "OfflineAgent": "offline",
    "OfflineConfig": "config",
    "OnlineAgent": "online",
    "OnlineConfig": "config",
    "OnlineDPO": "online_dpo",
    "OnlineDPOConfig": "settings.samples",
    "PPO": "ppo",
    "PPOConfig": "settings.actor_critic",
    "RFT": "rft",
    "RFTConfig": "settings.samples",
    "RLOO": "rloo",
    "RLOOConfig": "settings.groups",
    "RWR": "rwr",
    "RWRConfig": "settings.offline",
    "RayCollector": "rollouts.ray_collector",
    "RayRollouts": "rollouts.ray_settings",
    "Reinforce": "reinforce",
    "ReinforceConfig": "settings.policy_gradient",
    "ReinforcePlusPlus": "reinforce",
    "ReinforcePlusPlusConfig": "settings.policy_gradient",
    "RewardModelAgent": "reward_models.agent",
    "RewardModelConfig": "settings.preferences",
    "RunFolder": "run_folder",
    "SB3": "sb3_learner",
    "SB3Config": "settings.sb3",
    "SFT": "sft",
    "SFTConfig": "settings.offline",
    "SequenceRolloutBuffer": "sb3_buffer",
    "SimPO": "preferences.agents",
    "SimPOConfig": "settings.preferences",
    "TextVecEnv": "sb3",
    "TrainResult": "outcome",
    "agent_names": "registry",
    "describe": "registry",
    "evaluate": "evaluation",
    "evaluate_reward_model": "reward_models.measure",
    "make_agent": "registry",
    "make_loggers": "loggers.registry",
    "read_metrics": "loggers.jsonl",
    "register_advantage": "advantages",
    "register_agent": "registry",
    "register_aggregation": "aggregations",
    "register_logger": "loggers.registry",
    "sb3_agent": "sb3",
    "start_rollout_actors": "rollouts.ray_collector",
    "train": "training",
}
"""Public name -> the module of this package that it lives in."""

__all__ = [
    "A2C",
    "CPO",
    "DPO",
    "GRPO",
    "ILQL",
    "KTO",
    "NLPO",
    "ORPO",
    "PPO",
    "RFT",
    "RLOO",
    "RWR",
    "SB3",
    "SFT",
    "A2CConfig",
    "Agent",
    "AgentConfig",
    "BestCheckpoint",
    "BestOfN",
    "BestOfNConfig",
    "CPOConfig",
    "Callback",
    "Config",
    "DPOConfig",
    "EarlyStop",
    "EngineCollector",
    "EngineRollouts",
    "Evaluation",
    "FilteredBC",
    "FilteredBCConfig",
    "GRPOConfig",
    "ILQLConfig",
    "KTOConfig",
    "LMActorCriticPolicy",
    "LanguagePolicy",
    "Logger",
    "MonteCarloConfig",
    "MonteCarloCritic",
    "NLPOConfig",
    "ORPOConfig",
    "OfflineAgent",
    "OfflineConfig",
    "OnlineAgent",
    "OnlineConfig",
    "OnlineDPO",
    "OnlineDPOConfig",
    "PPOConfig",
    "RFTConfig",
    "RLOOConfig",
    "RWRConfig",
    "RayCollector",
    "RayRollouts",
    "Reinforce",
    "ReinforceConfig",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusConfig",
    "RewardModelAgent",
    "RewardModelConfig",
    "RunFolder",
    "SB3Config",
    "SFTConfig",
    "SequenceRolloutBuffer",
    "SimPO",
    "SimPOConfig",
    "TextVecEnv",
    "TrainResult",
    "agent_names",
    "describe",
    "evaluate",
    "evaluate_reward_model",
    "make_agent",
    "make_loggers",
    "read_metrics",
    "register_advantage",
    "register_agent",
    "register_aggregation",
    "register_logger",
    "sb3_agent",
    "start_rollout_actors",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(
            f"module 'textenv.agents' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    value = getattr(import_module(f"textenv.agents.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
