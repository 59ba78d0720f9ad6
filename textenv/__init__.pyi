"""Where the public names live; they load on first use."""

from .agents.base.registry import register_agent
from .agents.make import make_agent
from .agents.training import train
from .envs.text_env import TextEnv
from .envs.token_constraints import Legality, TokenConstraints
from .envs.vector_env import TextVectorEnv
from .episodes.batch import EpisodeBatch
from .episodes.preferences import PreferenceBatch
from .generation.policy import DecodingPolicy
from .prompts.prompt_set import PromptSet
from .rewards.registry import make_reward, register_reward
from .rewards.term import RewardTerm
from .rollout import collect
from .tasks.registry import make_task, register_task

__all__ = [
    "DecodingPolicy",
    "EpisodeBatch",
    "Legality",
    "PreferenceBatch",
    "PromptSet",
    "RewardTerm",
    "TextEnv",
    "TextVectorEnv",
    "TokenConstraints",
    "collect",
    "make_agent",
    "make_reward",
    "make_task",
    "register_agent",
    "register_reward",
    "register_task",
    "train",
]
