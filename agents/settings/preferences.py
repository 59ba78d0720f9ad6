"""Settings of the agents that learn from preferences, and of reward models."""

from __future__ import annotations

from dataclasses import dataclass

from textenv.agents.losses.names import SMOOTHED, DPOKind
from textenv.agents.settings.base import OfflineConfig
from textenv.agents.settings.effects import Idle


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(OfflineConfig):
    """Settings that all preference agents have."""

    beta: float = 0.1
    """How much a nat of log-prob counts as reward."""
    max_length: int | None = None
    """Longest text in tokens, where the data set is text: longer ones lose their end."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(beta="> 0", max_length=">= 1")


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(PreferenceConfig):
    """Settings of preference agents that measure against a reference."""

    precompute_reference: bool = False
    """Score all data with the reference once, before the first step, instead of in every step."""


def idle_smoothing(kind: DPOKind, smoothing: float) -> Idle:
    """Of ``loss`` and ``label_smoothing``, what has no effect without the other."""
    if smoothing and kind not in SMOOTHED:
        return {"label_smoothing": f"with loss={kind!r}, only with one of {list(SMOOTHED)}"}
    plain = kind in SMOOTHED and not smoothing
    return {"loss": "without label_smoothing, where it is 'sigmoid'"} if plain else {}


@dataclass(frozen=True, kw_only=True)
class PairConfig(PreferenceConfig):
    """Settings that all agents have which learn from pairs."""

    pairs_per_prompt: int = 16
    """Where pairs are made from returns or rankings: at most so many of each prompt, drawn by hash."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(pairs_per_prompt=">= 1")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(ReferenceConfig, PairConfig):
    """Settings of DPO."""

    loss: DPOKind = "sigmoid"
    """Of the log ratios' gap: "sigmoid", "cdpo" or "robust" (with label_smoothing), "ipo", "hinge"."""
    label_smoothing: float = 0.0
    """Share of preferences taken to be wrong."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(label_smoothing="[0, 0.5)")

    def idle(self) -> Idle:
        """Settings without effect."""
        return super().idle() | idle_smoothing(self.loss, self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class KTOConfig(ReferenceConfig):
    """Settings of KTO."""

    desirable_weight: float = 1.0
    """Weight of a desirable response. Balance the classes with it and its counterpart: weight times number of
    responses of the two in a ratio between 1 and 4/3 (Ethayarajh et al. 2024, section 4.2)."""
    undesirable_weight: float = 1.0
    """Weight of an undesirable response."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(desirable_weight=">= 0", undesirable_weight=">= 0")


@dataclass(frozen=True, kw_only=True)
class ORPOConfig(PairConfig):
    """Settings of ORPO; ``beta`` weighs the odds ratio."""


@dataclass(frozen=True, kw_only=True)
class SimPOConfig(PairConfig):
    """Settings of SimPO."""

    beta: float = 2.0
    """How much a nat of log-prob a token counts as reward."""
    gamma: float = 1.0
    """By how much the chosen response's reward should exceed the rejected one's."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(gamma=">= 0")


@dataclass(frozen=True, kw_only=True)
class CPOConfig(PairConfig):
    """Settings of CPO."""

    nll_coef: float = 1.0
    """Weight of the negative log-likelihood of the chosen responses."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(nll_coef=">= 0")


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(OfflineConfig):
    """Settings of reward modelling."""

    pair_coef: float = 1.0
    """Weight of the Bradley-Terry loss on the pairs."""
    rating_coef: float = 1.0
    """Weight of the squared error on the rated texts."""
    centering_coef: float = 0.0
    """Weight of the mean of (r_chosen + r_rejected)^2, which keeps scores around 0; 0.01 is usual."""
    heads: int = 1
    """Heads on the one trunk; with several, each learns from its own bootstrap of the data and the score is
    their mean."""
    append_eos: bool = False
    """Score texts at an EOS behind them instead of at their last token."""
    dropout: float | None = None
    """Probability of every dropout layer while training; None turns dropout off."""
    token_dropout: float = 0.0
    """Share of each text's tokens left out at random while training, never the first or the last one."""
    max_length: int | None = None
    """Longest text in tokens, where the data set is text: longer ones lose their beginning, in training and
    in use. A BOS or CLS in front stays."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(
            pair_coef=">= 0",
            rating_coef=">= 0",
            centering_coef=">= 0",
            heads=">= 1",
            dropout="[0, 1)",
            token_dropout="[0, 1)",
            max_length=">= 1",
        )

    def idle(self) -> Idle:
        """Settings without effect."""
        because = "on a reward model, which is evaluated on all of its held-out data"
        return super().idle() | self.changed("eval_episodes", because=because)
