"""Settings of preference agents and of reward models."""

from __future__ import annotations

from dataclasses import dataclass

from textenv.agents.losses.names import SMOOTHED, DPOKind
from textenv.agents.settings.base import OfflineConfig
from textenv.agents.settings.effects import Idle


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(OfflineConfig):
    """Settings shared by preference agents."""

    beta: float = 0.1
    """Scale of the log ratio: implicit reward per nat."""
    max_length: int | None = None
    """Largest number of tokens of a text; longer ones lose their end. Only for data sets of text."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(beta="> 0", max_length=">= 1")


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig(PreferenceConfig):
    """Settings of preference agents with a reference policy."""

    precompute_reference: bool = False
    """Compute the log-probs of the reference policy once, before the first step, not in every step."""


def idle_smoothing(kind: DPOKind, smoothing: float) -> Idle:
    """``loss`` or ``label_smoothing``, whichever has no effect without the other."""
    if smoothing and kind not in SMOOTHED:
        return {"label_smoothing": f"with loss={kind!r}, only with one of {list(SMOOTHED)}"}
    plain = kind in SMOOTHED and not smoothing
    return {"loss": "without label_smoothing, where it is 'sigmoid'"} if plain else {}


@dataclass(frozen=True, kw_only=True)
class PairConfig(PreferenceConfig):
    """Settings shared by agents that learn from pairs."""

    pairs_per_prompt: int = 16
    """Largest number of pairs per prompt that are made from returns or rankings."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(pairs_per_prompt=">= 1")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(ReferenceConfig, PairConfig):
    """Settings of DPO."""

    loss: DPOKind = "sigmoid"
    """Variant of the DPO loss: "sigmoid", "cdpo" or "robust" (with label_smoothing), "ipo", "hinge"."""
    label_smoothing: float = 0.0
    """Assumed share of wrong preferences."""

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
    """Weight of desirable responses. To balance the classes choose (weight x number of desirable responses) /
    (weight x number of undesirable ones) between 1 and 4/3 (Ethayarajh et al. 2024, section 4.2)."""
    undesirable_weight: float = 1.0
    """Weight of undesirable responses."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(desirable_weight=">= 0", undesirable_weight=">= 0")


@dataclass(frozen=True, kw_only=True)
class ORPOConfig(PairConfig):
    """Settings of ORPO; ``beta`` is the weight of the odds ratio."""


@dataclass(frozen=True, kw_only=True)
class SimPOConfig(PairConfig):
    """Settings of SimPO."""

    beta: float = 2.0
    """Scale of the mean log-prob per token."""
    gamma: float = 1.0
    """Target margin between the rewards of the chosen and the rejected response."""

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
    """Weight of the Bradley-Terry loss of the pairs."""
    rating_coef: float = 1.0
    """Weight of the squared error of the rated texts."""
    centering_coef: float = 0.0
    """Weight of the mean of (r_chosen + r_rejected)^2, which keeps scores near 0; 0.01 is usual."""
    heads: int = 1
    """Number of heads on one model. With several, each learns from its own bootstrap sample of the data, and
    the score is their mean."""
    append_eos: bool = False
    """Append EOS and score texts there, instead of at their last token."""
    dropout: float | None = None
    """Probability of every dropout layer in training; None turns dropout off."""
    token_dropout: float = 0.0
    """Share of the tokens of a text removed at random in training, except the first and the last one."""
    max_length: int | None = None
    """Largest number of tokens of a text; longer ones lose their beginning, in training and in use. A BOS or
    CLS token at the start stays. Only for data sets of text."""

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
