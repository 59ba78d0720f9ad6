"""Settings of the agents that learn from a data set of episodes: SFT, filtered BC, RWR, ILQL, Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textenv.agents.settings.base import OfflineConfig
from textenv.agents.settings.effects import Idle


@dataclass(frozen=True, kw_only=True)
class SFTConfig(OfflineConfig):
    """Settings of supervised fine-tuning."""

    completion_only: bool = True
    """Train on the response's tokens only; False trains on the prompt's too (plain language modelling)."""
    packing: bool = False
    """Forward several short episodes in one row, blind to each other: the same gradient with less padding."""


@dataclass(frozen=True, kw_only=True)
class FilteredBCConfig(SFTConfig):
    """Settings of filtered behaviour cloning."""

    percentile: float = 0.9
    """Clone episodes whose return reaches this quantile of the data set's returns."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(percentile="[0, 1]")


@dataclass(frozen=True, kw_only=True)
class RWRConfig(OfflineConfig):
    """Settings of reward-weighted regression."""

    temperature: float = 1.0
    """Returns are divided by it in the exponent; near 0 only the best count, near infinity all alike."""
    standardize: bool = True
    """Divide returns by their standard deviation in the data set first."""
    baseline: Literal["none", "prompt"] = "none"
    """Count returns from 0, or from the mean return of the prompt's episodes (advantage weighting)."""
    max_weight: float | None = 20.0
    """No episode counts more than so many average ones; None has no bound."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(temperature="> 0", max_weight=">= 1")


@dataclass(frozen=True, kw_only=True)
class ILQLConfig(OfflineConfig):
    """Settings of ILQL."""

    gamma: float = 0.99
    """Discount per own token."""
    expectile: float = 0.7
    """Tau of the expectile that V regresses to; towards 1 it is the maximum."""
    cql_coef: float = 0.1
    """Weight of the conservative term."""
    awac_coef: float = 1.0
    """Weight of the language-model loss."""
    awac_beta: float = 0.0
    """Sharpness of that loss's advantage weights; 0 clones all data alike."""
    num_q: int = 2
    """Q heads, of which the least counts."""
    head: Literal["linear", "mlp"] = "mlp"
    """Shape of the Q and V heads; "linear" is light, "mlp" costs 2 d V more parameters for each Q head.
    Linear Q heads start with small weights of their own, for equal ones would stay equal."""
    target_alpha: float = 0.005
    """Share of the new Q heads in each target synchronisation (Polyak averaging)."""
    target_every: int = 1
    """Optimizer steps between target synchronisations."""
    standardize_returns: bool = False
    """Shift and scale rewards so that the data set's returns have mean 0 and standard deviation 1."""
    decode_beta: float = 1.0
    """Weight of the advantage when the policy acts; 0 is the language model alone."""
    decode_top_k: int = 0
    """When acting, keep only the k likeliest tokens after the shift; 0 keeps all."""

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
        return found if self.awac_coef else found | self.changed("awac_beta", because="with awac_coef=0")


@dataclass(frozen=True, kw_only=True)
class MonteCarloConfig(ILQLConfig):
    """Settings of the Monte Carlo critic: ILQL's, of which ``expectile`` must stay 0.5, the mean."""

    expectile: float = 0.5
    """V is the mean of the returns that followed a state, so this is 0.5."""
    cql_coef: float = 0.0
    """Weight of the conservative term."""
    target_alpha: float = 1.0
    """Share of the new Q heads in each target synchronisation; nothing bootstraps, so the targets follow."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        if self.expectile != 0.5:
            raise ValueError(f"expectile must be 0.5 for Monte Carlo returns, got {self.expectile}")
