"""Settings of agents that choose among the samples of a prompt: best-of-n, RFT and online DPO."""

from __future__ import annotations

from dataclasses import dataclass

from textenv.agents.losses.names import DPOKind
from textenv.agents.settings.base import AgentConfig, OnlineConfig
from textenv.agents.settings.effects import Idle
from textenv.agents.settings.groups import check_whole_groups
from textenv.agents.settings.preferences import idle_smoothing


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(AgentConfig):
    """Settings of best-of-n sampling; those of the optimizer have no effect."""

    n: int = 16
    """Samples per prompt, of which the best is kept."""
    choose_by: str | None = None
    """Name of the reward term by which the best sample is chosen; None uses the return."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(n=">= 1")

    def idle(self) -> Idle:
        """Settings without effect: those of training, logging and checkpoints."""
        names = (
            *("learning_rate", "weight_decay", "adam_betas", "adam_eps", "optimizer", "max_grad_norm"),
            *("lr_schedule", "warmup_steps", "eval_every", "checkpoint_every", "log_every"),
        )
        return super().idle() | self.changed(*names, because="on best-of-n, which trains nothing")


@dataclass(frozen=True, kw_only=True)
class RFTConfig(OnlineConfig):
    """Settings of rejection fine-tuning."""

    episodes_per_iteration: int = 1024
    """Episodes generated per iteration."""
    samples_per_prompt: int = 32
    """Samples per prompt and iteration, from which the best are selected."""
    improve_steps: int = 4
    """Rounds of selection and fine-tuning per iteration."""
    start_percentile: float = 0.9
    """In the first improve step samples with a return at or above this quantile of their prompt are used."""
    end_percentile: float = 0.95
    """The same in the last improve step; the quantile rises linearly in between."""
    generations_kept: int | None = None
    """Iterations whose samples stay in the pool; None keeps all."""
    deduplicate: bool = True
    """Train on equal samples only once."""
    epochs: int = 1
    """Passes over the selected samples per improve step."""

    def validate(self) -> None:
        """Check the ranges, and that an iteration has whole groups."""
        super().validate()
        self.check(
            samples_per_prompt=">= 2",
            improve_steps=">= 1",
            start_percentile="[0, 1]",
            end_percentile="[0, 1]",
            generations_kept=">= 1",
        )
        if self.improve_steps > 1 and self.end_percentile < self.start_percentile:
            raise ValueError(
                f"end_percentile must be >= start_percentile ({self.start_percentile}), "
                f"got {self.end_percentile}"
            )
        check_whole_groups(self.episodes_per_iteration, self.samples_per_prompt)

    def idle(self) -> Idle:
        """Settings without effect."""
        last = self.changed("end_percentile", because="with improve_steps=1, where start_percentile counts")
        differs = self.improve_steps == 1 and self.end_percentile != self.start_percentile
        return super().idle() | (last if differs else {})

    def percentile(self, step: int) -> float:
        """The quantile of improve step 0, 1, ..."""
        share = step / max(1, self.improve_steps - 1)
        return self.start_percentile + share * (self.end_percentile - self.start_percentile)


@dataclass(frozen=True, kw_only=True)
class OnlineDPOConfig(OnlineConfig):
    """Settings of online DPO."""

    epochs: int = 1
    """Passes over the pairs of an iteration."""
    samples_per_prompt: int = 2
    """Samples per prompt; the best and the worst of them are a pair."""
    beta: float = 0.1
    """Scale of the log ratio: implicit reward per nat."""
    loss: DPOKind = "sigmoid"
    """Variant of the DPO loss: "sigmoid", "cdpo" or "robust" (with label_smoothing), "ipo", "hinge"."""
    label_smoothing: float = 0.0
    """Assumed share of wrong preferences."""

    def validate(self) -> None:
        """Check the ranges, whole groups, and that every minibatch has a pair."""
        super().validate()
        self.check(beta="> 0", samples_per_prompt=">= 2", label_smoothing="[0, 0.5)")
        check_whole_groups(self.episodes_per_iteration, self.samples_per_prompt)
        pairs = self.episodes_per_iteration // self.samples_per_prompt
        if self.minibatches > pairs:
            raise ValueError(
                f"minibatches must be <= the {pairs} pairs of an iteration, got {self.minibatches}"
            )

    def idle(self) -> Idle:
        """Settings without effect."""
        return super().idle() | idle_smoothing(self.loss, self.label_smoothing)
