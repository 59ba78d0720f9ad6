"""Settings of the policy-gradient agents, and of those without a critic: REINFORCE and REINFORCE++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textenv.agents.losses.names import RatioLevel
from textenv.agents.settings.base import OnlineConfig
from textenv.agents.settings.effects import Idle, idle_in_policy_gradient, unused_by


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig(OnlineConfig):
    """Settings that online policy-gradient agents share."""

    gamma: float = 1.0
    """Discount per own token."""
    whiten_advantages: bool = False
    """Shift and scale the advantages of an iteration to mean 0 and variance 1 over own tokens."""
    whiten_min_std: float = 0.0
    """Whiten by this where the advantages spread less: once all goes well they are little but the critic's
    noise, which should not be blown up to variance 1."""
    clip_range: float | None = None
    """The probability ratio has no gradient beyond 1 - clip_range (and 1 + clip_range). None has no ratio:
    the plain policy gradient, right as long as an iteration's episodes serve one optimizer step."""
    clip_range_high: float | None = None
    """Upper side of the clip, if it differs."""
    dual_clip: float | None = None
    """Bound on the loss where the advantage is negative, 3.0 is usual; None has no bound."""
    ratio_level: RatioLevel = "token"
    """One ratio a token, or one a sequence: exp of the mean log-ratio (GSPO, with clips near 3e-4)."""
    aggregation: str = "token-mean"
    """Name of the registered aggregation, by which the losses of tokens become one number."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_coef: float = 0.05
    """Weight of the KL divergence from the reference; 0 keeps none (and no reference)."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Pay the KL as a per-token reward (k1), or add it to the loss (k3)."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Whether the coefficient, in the reward or in the loss, follows ``kl_target``."""
    kl_target: float = 6.0
    """Target of the adaptive controller: KL (k1) from the reference in nats a sequence."""
    kl_horizon: int = 10_000
    """Episodes over which the adaptive controller acts."""
    score_scale: bool = False
    """Divide scores (rewards without the KL) by their running standard deviation."""
    score_clip: float | None = None
    """Clip scores, after scaling, to [-score_clip, score_clip] an episode."""
    stop_at_kl: float | None = None
    """End the passes of an iteration once a step's approximate KL, in nats a token, exceeds this."""
    importance_correction: Literal["none", "token", "sequence"] = "none"
    """Weigh advantages by truncated importance weights, for episodes that older weights played."""
    importance_clip: float = 2.0
    """The largest importance weight (rho-bar in IMPALA)."""
    packing: bool = False
    """Forward several short episodes in one row, blind to each other: the same gradient with less padding."""
    ptx_coef: float = 0.0
    """Weight of the next-token loss on ``dataset`` (InstructGPT's pretraining mixture, "ptx")."""
    ptx_batch_size: int = 32
    """Episodes of ``dataset`` in each optimizer step."""
    ema_decay: float | None = None
    """Keep an exponential average of the weights over optimizer steps, and evaluate and save that."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(
            gamma="[0, 1]",
            clip_range="(0, 1)",
            clip_range_high="> 0",
            whiten_min_std=">= 0",
            dual_clip="> 1",
            entropy_coef=">= 0",
            kl_coef=">= 0",
            kl_target="> 0",
            kl_horizon=">= 1",
            score_clip="> 0",
            stop_at_kl="> 0",
            importance_clip="> 0",
            ptx_coef=">= 0",
            ptx_batch_size=">= 1",
            ema_decay="[0, 1)",
        )
        if self.changed("aggregation", because="named"):  # a default is known without torch
            from textenv.agents.losses.aggregation import get_aggregation

            get_aggregation(self.aggregation)

    def idle(self) -> Idle:
        """Settings without effect."""
        return super().idle() | idle_in_policy_gradient(self)


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(PolicyGradientConfig):
    """Settings of REINFORCE."""

    baseline: Literal["none", "batch", "greedy"] = "batch"
    """What the return to go is compared with: nothing, the mean return of the iteration's episodes, or the
    return of a greedy episode on the same prompt (ReMax). A greedy episode costs as much as a sampled one:
    half of ``total_episodes`` are greedy then."""
    epochs: int = 1
    """Passes over the collected episodes in each round of learning."""
    minibatches: int = 1
    """Optimizer steps in each pass."""

    @property
    def episodes_of_an_iteration(self) -> int:
        """Episodes generated in an iteration, those of the baseline included."""
        return self.episodes_per_iteration * (2 if self.baseline == "greedy" else 1)

    def validate(self) -> None:
        """Check that whole iterations make up the run."""
        super().validate()
        size = self.episodes_of_an_iteration
        if self.total_episodes is not None and self.total_episodes % size:
            raise ValueError(
                f"with baseline='greedy' total_episodes must be a multiple of {size}, which is twice "
                f"episodes_per_iteration, got {self.total_episodes}"
            )

    @property
    def num_iterations(self) -> int:
        """Iterations of the whole run."""
        if self.total_episodes is not None:
            return self.total_episodes // self.episodes_of_an_iteration
        return super().num_iterations


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlusConfig(PolicyGradientConfig):
    """Settings of REINFORCE++."""

    advantage: str = "monte-carlo"
    """Name of the registered advantage estimator; it gets no values."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of an iteration to mean 0 and variance 1 over own tokens."""
    clip_range: float | None = 0.2
    """The probability ratio has no gradient beyond 1 - clip_range (and 1 + clip_range). None has no ratio."""

    def validate(self) -> None:
        """Check the estimator's name."""
        super().validate()
        if self.changed("advantage", because="named"):  # a default is known without torch
            from textenv.agents.losses.advantages import get_advantage

            get_advantage(self.advantage)

    def idle(self) -> Idle:
        """Settings without effect."""
        return super().idle() | unused_by(self.advantage, self)
