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
    from textenv.agents.base import Agent
    from textenv.agents.callbacks import BestCheckpoint, Callback, EarlyStop
    from textenv.agents.config import AgentConfig, Config, OfflineConfig, OnlineConfig
    from textenv.agents.evaluation import Evaluation, evaluate
    from textenv.agents.ilql import ILQL, ILQLConfig
    from textenv.agents.loggers import Logger, make_loggers, register_logger
    from textenv.agents.loggers_jsonl import read_metrics
    from textenv.agents.offline import OfflineAgent
    from textenv.agents.online import OnlineAgent
    from textenv.agents.outcome import TrainResult
    from textenv.agents.policy import LanguagePolicy
    from textenv.agents.ppo import PPO, PPOConfig
    from textenv.agents.registry import agent_names, describe, make_agent, register_agent
    from textenv.agents.run_folder import RunFolder
    from textenv.agents.sft import SFT, FilteredBC, FilteredBCConfig, SFTConfig
    from textenv.agents.training import train

_HOME = {
    "Agent": "base",
    "AgentConfig": "config",
    "BestCheckpoint": "callbacks",
    "Callback": "callbacks",
    "Config": "config",
    "EarlyStop": "callbacks",
    "Evaluation": "evaluation",
    "FilteredBC": "sft",
    "FilteredBCConfig": "sft",
    "ILQL": "ilql",
    "ILQLConfig": "ilql",
    "LanguagePolicy": "policy",
    "Logger": "loggers",
    "OfflineAgent": "offline",
    "OfflineConfig": "config",
    "OnlineAgent": "online",
    "OnlineConfig": "config",
    "PPO": "ppo",
    "PPOConfig": "ppo",
    "RunFolder": "run_folder",
    "SFT": "sft",
    "SFTConfig": "sft",
    "TrainResult": "outcome",
    "agent_names": "registry",
    "describe": "registry",
    "evaluate": "evaluation",
    "make_agent": "registry",
    "make_loggers": "loggers",
    "read_metrics": "loggers_jsonl",
    "register_agent": "registry",
    "register_logger": "loggers",
    "train": "training",
}
"""Public name -> the module of this package that it lives in."""

__all__ = [
    "ILQL",
    "PPO",
    "SFT",
    "Agent",
    "AgentConfig",
    "BestCheckpoint",
    "Callback",
    "Config",
    "EarlyStop",
    "Evaluation",
    "FilteredBC",
    "FilteredBCConfig",
    "ILQLConfig",
    "LanguagePolicy",
    "Logger",
    "OfflineAgent",
    "OfflineConfig",
    "OnlineAgent",
    "OnlineConfig",
    "PPOConfig",
    "RunFolder",
    "SFTConfig",
    "TrainResult",
    "agent_names",
    "describe",
    "evaluate",
    "make_agent",
    "make_loggers",
    "read_metrics",
    "register_agent",
    "register_logger",
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
