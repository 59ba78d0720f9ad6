"""Settings of agents that learn from a data set of episodes: SFT, filtered BC, RWR, ILQL, Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textenv.agents.settings.base import OfflineConfig
from textenv.agents.settings.effects import Idle


@dataclass(frozen=True, kw_only=True)
class SFTConfig(OfflineConfig):
    """Settings of supervised fine-tuning."""

    completion_only: bool = True
    """Train on the tokens of the response only; False also trains on the prompt (language modelling)."""
    packing: bool = False
    """Put several short episodes in one row of a forward pass: the same gradient with less padding."""


@dataclass(frozen=True, kw_only=True)
class FilteredBCConfig(SFTConfig):
    """Settings of filtered behaviour cloning."""

    percentile: float = 0.9
    """Clone episodes with a return at or above this quantile of the data set."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(percentile="[0, 1]")


@dataclass(frozen=True, kw_only=True)
class RWRConfig(OfflineConfig):
    """Settings of reward-weighted regression."""

    temperature: float = 1.0
    """Divisor of the return in the exponent; small values use only the best episodes, large ones all."""
    standardize: bool = True
    """Divide returns by their standard deviation over the data set first."""
    baseline: Literal["none", "prompt"] = "none"
    """Subtract nothing, or the mean return of the episodes of the prompt (advantage weighting)."""
    max_weight: float | None = 20.0
    """Largest weight of an episode, where the mean weight is 1; None has no bound."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(temperature="> 0", max_weight=">= 1")


@dataclass(frozen=True, kw_only=True)
class ILQLConfig(OfflineConfig):
    """Settings of ILQL."""

    gamma: float = 0.99
    """Discount per action token, or per turn, see ``discount``."""
    discount: Literal["token", "turn"] = "token"
    """Where gamma counts: from each action token to the next, or between turns alone (1 inside a turn)."""
    expectile: float = 0.7
    """Tau of the expectile regression of V; near 1 V approaches the maximum."""
    cql_coef: float = 0.1
    """Weight of the conservative term (CQL)."""
    awac_coef: float = 1.0
    """Weight of the language-model loss (AWAC)."""
    awac_beta: float = 0.0
    """Inverse temperature of the advantage weights of that loss; 0 is behaviour cloning."""
    num_q: int = 2
    """Number of Q heads; their minimum is used."""
    head: Literal["linear", "mlp"] = "mlp"
    """Shape of the Q and V heads; "mlp" has about 2 d V more parameters per Q head. Linear Q heads start with
    different small weights, because equal ones would stay equal."""
    target_alpha: float = 0.005
    """Weight of the Q heads in each update of the target heads (Polyak averaging)."""
    target_every: int = 1
    """Optimizer steps between updates of the target heads."""
    standardize_returns: bool = False
    """Shift and scale rewards so that the returns of the data set have mean 0 and standard deviation 1."""
    decode_beta: float = 1.0
    """Weight of the advantage in sampling; 0 is the language model alone."""
    decode_top_k: int = 0
    """Sample from the k most likely tokens after the shift; 0 uses all."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(
            gamma="[0, 1]",
            expectile="(0, 1)",
            cql_coef=">= 0",
            awac_coef=">= 0",
            awac_beta=">= 0",
            num_q=">= 1",
            target_alpha="(0, 1]",
            target_every=">= 1",
            decode_beta=">= 0",
            decode_top_k=">= 0",
        )

    def idle(self) -> Idle:
        """Settings without effect."""
        found = super().idle()
        if self.gamma == 1:
            found |= self.changed("discount", because="with gamma=1")
        return found if self.awac_coef else found | self.changed("awac_beta", because="with awac_coef=0")


@dataclass(frozen=True, kw_only=True)
class MonteCarloConfig(ILQLConfig):
    """Settings of the Monte Carlo critic: those of ILQL; ``expectile`` must be 0.5 (the mean)."""

    expectile: float = 0.5
    """Must be 0.5: V is the mean return."""
    cql_coef: float = 0.0
    """Weight of the conservative term (CQL)."""
    target_alpha: float = 1.0
    """Weight of the Q heads in each update of the target heads; 1 copies them, as nothing is bootstrapped."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        if self.expectile != 0.5:
            raise ValueError(f"expectile must be 0.5 for Monte Carlo returns, got {self.expectile}")
