"""Settings shared by policy-gradient agents, and those of REINFORCE and REINFORCE++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from textenv.agents.losses.names import RatioLevel
from textenv.agents.settings.base import OnlineConfig
from textenv.agents.settings.effects import Idle, unused_by


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig(OnlineConfig):
    """Settings shared by online policy-gradient agents."""

    gamma: float = 1.0
    """Discount per action token, or per turn, see ``discount``."""
    discount: Literal["token", "turn"] = "token"
    """Where gamma counts: from each action token to the next, or between turns alone (1 inside a turn)."""
    whiten_advantages: bool = False
    """Shift and scale the advantages of an iteration to mean 0 and variance 1 over action tokens."""
    whiten_min_std: float = 0.0
    """Lower bound of the standard deviation that whitening divides by. Near the optimum advantages are mostly
    noise of the critic, which should not be scaled to variance 1."""
    clip_range: float | None = None
    """The probability ratio is clipped to [1 - clip_range, 1 + clip_range]. None uses no ratio: the plain
    policy gradient, which is right for one optimizer step per iteration."""
    clip_range_high: float | None = None
    """Upper bound of the clip: 1 + clip_range_high; None uses clip_range."""
    dual_clip: float | None = None
    """Largest ratio where the advantage is negative; 3.0 is usual, None has no bound."""
    ratio_level: RatioLevel = "token"
    """One ratio per token, or one per sequence: exp of the mean log ratio (GSPO, with clips near 3e-4)."""
    aggregation: str = "token-mean"
    """Name of the registered aggregation of per-token losses."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_coef: float = 0.05
    """Weight of the KL to the reference policy; 0 turns it off, and no reference policy is made."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Where the KL is: a penalty in the reward of each token (k1), or a term of the loss (k3)."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """Whether the coefficient is fixed or follows ``kl_target``."""
    kl_target: float = 6.0
    """Target of the adaptive controller: KL (k1) to the reference policy in nats per sequence."""
    kl_horizon: int = 10_000
    """Time constant of the adaptive controller in episodes."""
    score_scale: bool = False
    """Divide task returns (returns without KL penalties) by their running standard deviation."""
    score_clip: float | None = None
    """Clip task returns, after scaling, to [-score_clip, score_clip]."""
    stop_at_kl: float | None = None
    """End the passes of an iteration after a step whose approximate KL, in nats per token, exceeds this."""
    importance_correction: Literal["none", "token", "sequence"] = "none"
    """Multiply advantages by truncated importance weights, for episodes that older weights generated."""
    importance_clip: float = 2.0
    """Largest importance weight (rho-bar in IMPALA)."""
    packing: bool = False
    """Put several short episodes in one row of a forward pass: the same gradient with less padding."""
    ptx_coef: float = 0.0
    """Weight of the next-token loss on ``dataset`` (the pretraining mix "ptx" of InstructGPT)."""
    ptx_batch_size: int = 32
    """Episodes of ``dataset`` per optimizer step."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is evaluated and saved."""

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
        return super().idle() | _idle(self)


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(PolicyGradientConfig):
    """Settings of REINFORCE."""

    baseline: Literal["none", "batch", "greedy"] = "batch"
    """Baseline of the return to go: 0, the mean return of the episodes of the iteration, or the return of a
    greedy episode on the same prompt (ReMax). Then half of ``total_episodes`` are greedy episodes."""
    epochs: int = 1
    """Passes over the episodes of an iteration."""
    minibatches: int = 1
    """Optimizer steps per pass."""

    @property
    def episodes_of_an_iteration(self) -> int:
        """Episodes generated per iteration, greedy ones included."""
        return self.episodes_per_iteration * (2 if self.baseline == "greedy" else 1)

    def validate(self) -> None:
        """Check that ``total_episodes`` is a multiple of the episodes per iteration."""
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
    """Name of the registered advantage estimator, which is called without values."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of an iteration to mean 0 and variance 1 over action tokens."""
    clip_range: float | None = 0.2
    """The probability ratio is clipped to [1 - clip_range, 1 + clip_range]; None uses no ratio."""

    def validate(self) -> None:
        """Check the estimator's name."""
        super().validate()
        if self.changed("advantage", because="named"):  # a default is known without torch
            from textenv.agents.losses.advantages import get_advantage

            get_advantage(self.advantage)

    def idle(self) -> Idle:
        """Settings without effect."""
        return super().idle() | unused_by(self.advantage, self)


def idle_beside_kl(config: PolicyGradientConfig) -> Idle:
    """Settings of a KL penalty in the reward that the environment has one of its own for."""
    if not config.kl_coef or config.kl_placement == "loss":
        return {}
    names = ("kl_coef", "kl_controller", "kl_target", "kl_horizon")
    return config.changed(*names, because="where the environment has a KL reward")


def _idle(config: PolicyGradientConfig) -> Idle:
    """Settings without effect among those that policy-gradient agents share."""
    changed, found = config.changed, Idle()
    if config.gamma == 1:
        found |= changed("discount", because="with gamma=1")
    if not config.whiten_advantages:
        found |= changed("whiten_min_std", because="without whiten_advantages")
    if config.importance_correction == "none":
        found |= changed("importance_clip", because="without importance_correction")
    if not config.ptx_coef:
        found |= changed("ptx_batch_size", because="with ptx_coef=0")
    if config.ema_decay == 0:
        found |= {"ema_decay": "at 0, where the average is the weights"}
    if not config.kl_coef:
        names = ("kl_placement", "kl_controller", "kl_target", "kl_horizon")
        found |= changed(*names, because="with kl_coef=0")
    elif config.kl_controller == "fixed":
        found |= changed("kl_target", "kl_horizon", because="with kl_controller='fixed'")
    if config.epochs * config.minibatches == 1:
        # The ratio to the policy that played is 1 there, whatever its bounds.
        why = "with one optimizer step an iteration (epochs=1, minibatches=1)"
        found |= changed("stop_at_kl", "clip_range_high", "dual_clip", because=why)
        if config.clip_range is not None and config.ratio_level == "token":
            found |= changed("clip_range", because=why)
    if config.clip_range is None:
        found |= changed("clip_range_high", "dual_clip", "ratio_level", because="without clip_range")
    return found
