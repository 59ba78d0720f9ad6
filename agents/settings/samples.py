"""Settings of the agents that choose among the samples of a prompt: best-of-n, RFT and online DPO."""

from __future__ import annotations

from dataclasses import dataclass

from textenv.agents.losses.names import DPOKind
from textenv.agents.settings.base import AgentConfig, OnlineConfig
from textenv.agents.settings.effects import Idle
from textenv.agents.settings.groups import check_whole_groups
from textenv.agents.settings.preferences import idle_smoothing


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(AgentConfig):
    """Settings of best-of-n sampling; those of the optimizer have no use."""

    n: int = 16
    """Samples of each prompt, of which the best is kept."""
    choose_by: str | None = None
    """Name of the reward term that says which sample is best; None is the whole return."""

    def validate(self) -> None:
        """Check the ranges."""
        super().validate()
        self.check(n=">= 1")

    def idle(self) -> Idle:
        """Settings without effect: those of training, and of what is done every so often."""
        names = (
            *("learning_rate", "weight_decay", "adam_betas", "adam_eps", "optimizer", "max_grad_norm"),
            *("lr_schedule", "warmup_steps", "eval_every", "checkpoint_every", "log_every"),
        )
        return super().idle() | self.changed(*names, because="on best-of-n, which trains nothing")


@dataclass(frozen=True, kw_only=True)
class RFTConfig(OnlineConfig):
    """Settings of rejection fine-tuning."""

    episodes_per_iteration: int = 1024
    """Episodes generated before each round of learning."""
    samples_per_prompt: int = 32
    """Samples of each prompt in a round of generation, among which the best are found."""
    improve_steps: int = 4
    """Times that samples are chosen and trained on after each round of generation."""
    start_percentile: float = 0.9
    """In the first of these, samples count whose return reaches this quantile of their prompt's."""
    end_percentile: float = 0.95
    """In the last of these; in between the quantile rises in a line."""
    generations_kept: int | None = None
    """Rounds of generation whose samples stay in the pool that is chosen from; None keeps all."""
    deduplicate: bool = True
    """Train once on equal samples."""
    epochs: int = 1
    """Passes over the chosen samples in each improve step."""

    def validate(self) -> None:
        """Check the ranges, and that an iteration holds whole groups."""
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
    """Passes over the collected pairs in each round of learning."""
    samples_per_prompt: int = 2
    """Samples k of each prompt; the best and the worst of them make a pair."""
    beta: float = 0.1
    """How much a nat of log-prob counts as reward."""
    loss: DPOKind = "sigmoid"
    """Of the log ratios' gap: "sigmoid", "cdpo" or "robust" (with label_smoothing), "ipo", "hinge"."""
    label_smoothing: float = 0.0
    """Share of preferences taken to be wrong."""

    def validate(self) -> None:
        """Check the ranges, and that whole groups fill the minibatches."""
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
