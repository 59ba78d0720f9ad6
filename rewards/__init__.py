"""Rewards: reward terms, their registry, and the Gymnasium wrappers that pay them.

A reward is a `RewardTerm` registered by name, or a plain function of texts::

    @register_reward("brevity")
    class Brevity(RewardTerm):
        def score(self, episodes):
            return -0.01 * episodes.response_lengths

    @register_reward("polite")
    def polite(completions, **columns):
        return [float("please" in text) for text in completions]

Names are loaded on first use, so importing this package is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "textenv.rewards":
    raise ImportError(
        "this folder is imported as textenv.rewards; put your own rewards.py elsewhere on sys.path "
        "or import textenv.rewards"
    )

if TYPE_CHECKING:
    from textenv.rewards.functions import FunctionReward
    from textenv.rewards.kl import KLPenalty
    from textenv.rewards.metrics import BLEU, CHRF, ROUGE, TER
    from textenv.rewards.registry import (
        describe,
        make_reward,
        normalize_reward_specs,
        register_reward,
        reward_list,
        reward_names,
    )
    from textenv.rewards.remote import Remote
    from textenv.rewards.reward_model import RewardModel
    from textenv.rewards.shaping import Clipped, Ensemble, Normalized, Weighted
    from textenv.rewards.term import RewardTerm
    from textenv.rewards.text import ExactMatch, Length, LexiconSentiment, MissingEOS, Regex, Repetition
    from textenv.rewards.wrappers import RewardWrapper, VectorRewardWrapper
    from textenv.scoring import RewardError

_HOME = {
    "BLEU": "textenv.rewards.metrics",
    "CHRF": "textenv.rewards.metrics",
    "Clipped": "textenv.rewards.shaping",
    "Ensemble": "textenv.rewards.shaping",
    "ExactMatch": "textenv.rewards.text",
    "FunctionReward": "textenv.rewards.functions",
    "KLPenalty": "textenv.rewards.kl",
    "Length": "textenv.rewards.text",
    "LexiconSentiment": "textenv.rewards.text",
    "MissingEOS": "textenv.rewards.text",
    "Normalized": "textenv.rewards.shaping",
    "ROUGE": "textenv.rewards.metrics",
    "Regex": "textenv.rewards.text",
    "Repetition": "textenv.rewards.text",
    "Remote": "textenv.rewards.remote",
    "RewardError": "textenv.scoring",
    "RewardModel": "textenv.rewards.reward_model",
    "RewardTerm": "textenv.rewards.term",
    "RewardWrapper": "textenv.rewards.wrappers",
    "TER": "textenv.rewards.metrics",
    "VectorRewardWrapper": "textenv.rewards.wrappers",
    "Weighted": "textenv.rewards.shaping",
    "describe": "textenv.rewards.registry",
    "make_reward": "textenv.rewards.registry",
    "normalize_reward_specs": "textenv.rewards.registry",
    "reward_list": "textenv.rewards.registry",
    "register_reward": "textenv.rewards.registry",
    "reward_names": "textenv.rewards.registry",
}

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
    "VectorRewardWrapper",
    "Weighted",
    "describe",
    "make_reward",
    "normalize_reward_specs",
    "register_reward",
    "reward_list",
    "reward_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
