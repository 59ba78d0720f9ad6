"""Where the public names live; they load on first use."""

from .functions import FunctionReward, RewardError
from .kl import KLPenalty
from .metrics import BLEU, CHRF, ROUGE, TER
from .registry import (
    describe,
    make_reward,
    normalize_reward_specs,
    register_reward,
    reward_list,
    reward_names,
    spec_of,
)
from .remote import Remote
from .reward_model import RewardModel
from .shaping import Clipped, Ensemble, Normalized, Weighted
from .term import RewardTerm
from .text import ExactMatch, Length, LexiconSentiment, MissingEOS, Regex, Repetition
from .turns import TurnRewardTerm
from .wrappers import RewardWrapper, VectorRewardWrapper, wrap_reward

__all__ = [
    "BLEU",
    "CHRF",
    "ROUGE",
    "TER",
    "Clipped",
    "Ensemble",
    "ExactMatch",
    "FunctionReward",
    "KLPenalty",
    "Length",
    "LexiconSentiment",
    "MissingEOS",
    "Normalized",
    "Regex",
    "Remote",
    "Repetition",
    "RewardError",
    "RewardModel",
    "RewardTerm",
    "RewardWrapper",
    "TurnRewardTerm",
    "VectorRewardWrapper",
    "Weighted",
    "describe",
    "make_reward",
    "normalize_reward_specs",
    "register_reward",
    "reward_list",
    "reward_names",
    "spec_of",
    "wrap_reward",
]
