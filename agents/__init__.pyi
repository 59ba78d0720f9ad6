"""Where the public names live; they load on first use."""

from .a2c import A2C
from .archer import Archer
from .base.agent import Agent
from .base.callbacks import BestCheckpoint, Callback, EarlyStop, RunningAgent
from .base.offline import OfflineAgent
from .base.online import OnlineAgent
from .base.registry import agent_names, get_agent, register_agent
from .base.result import TrainResult
from .best_of_n import BestOfN
from .checkpointing.run_folder import RunFolder
from .data.batch import Totals, TrainingBatch
from .dpo import CPO, DPO, KTO, ORPO, SimPO
from .evaluation.evaluator import Evaluation, evaluate
from .evaluation.reward_model_measure import evaluate_reward_model
from .evaluation.sweeps import evaluate_sweep
from .grpo import GRPO
from .ilql import ILQL
from .integrations.sb3 import LMActorCriticPolicy, TextVecEnv, sb3_agent
from .integrations.sb3_buffer import SequenceRolloutBuffer
from .loggers.jsonl import read_metrics
from .loggers.registry import Logger, make_loggers, register_logger
from .losses.advantages import register_advantage
from .losses.aggregation import register_aggregation
from .make import describe, list_agents, load_agent, make_agent
from .monte_carlo import MonteCarloCritic
from .nlpo import NLPO
from .online_dpo import OnlineDPO
from .policies.language_policy import LanguagePolicy
from .ppo import PPO
from .reinforce import Reinforce, ReinforcePlusPlus
from .reports.recorder import RunReport
from .reward_model import RewardModelAgent
from .rft import RFT
from .rloo import RLOO
from .rollouts.collector import Collector, LocalCollector, RolloutRequest
from .rollouts.engine_collector import EngineCollector
from .rollouts.ray_collector import RayCollector, start_rollout_actors
from .rwr import RWR
from .sb3 import SB3
from .settings.actor_critic import A2CConfig, NLPOConfig, PPOConfig
from .settings.archer import ArcherConfig
from .settings.base import AgentConfig, Config, OfflineConfig, OnlineConfig
from .settings.engine_rollouts import EngineRollouts
from .settings.groups import GRPOConfig, RLOOConfig
from .settings.offline import FilteredBCConfig, ILQLConfig, MonteCarloConfig, RWRConfig, SFTConfig
from .settings.policy_gradient import ReinforceConfig, ReinforcePlusPlusConfig
from .settings.preferences import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, RewardModelConfig, SimPOConfig
from .settings.ray_rollouts import RayRollouts
from .settings.samples import BestOfNConfig, OnlineDPOConfig, RFTConfig
from .settings.sb3 import SB3Config
from .sft import SFT, FilteredBC
from .training import train

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
    "Archer",
    "ArcherConfig",
    "BestCheckpoint",
    "BestOfN",
    "BestOfNConfig",
    "CPOConfig",
    "Callback",
    "Collector",
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
    "LocalCollector",
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
    "RolloutRequest",
    "RunFolder",
    "RunReport",
    "RunningAgent",
    "SB3Config",
    "SFTConfig",
    "SequenceRolloutBuffer",
    "SimPO",
    "SimPOConfig",
    "TextVecEnv",
    "Totals",
    "TrainResult",
    "TrainingBatch",
    "agent_names",
    "describe",
    "evaluate",
    "evaluate_reward_model",
    "evaluate_sweep",
    "get_agent",
    "list_agents",
    "load_agent",
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
