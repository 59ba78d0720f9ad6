"""Where the public names live; they load on first use."""

from .before_after import BeforeAfter, compare
from .evaluator import EVAL_SEED, Evaluation, evaluate
from .reward_model import (
    ReliabilityBin,
    RewardEvaluation,
    pair_metrics,
    rating_metrics,
    reliability,
    wilson_interval,
)
from .reward_model_measure import evaluate_reward_model
from .sweeps import Sweep, evaluate_sweep

__all__ = [
    "EVAL_SEED",
    "BeforeAfter",
    "Evaluation",
    "ReliabilityBin",
    "RewardEvaluation",
    "Sweep",
    "compare",
    "evaluate",
    "evaluate_reward_model",
    "evaluate_sweep",
    "pair_metrics",
    "rating_metrics",
    "reliability",
    "wilson_interval",
]
