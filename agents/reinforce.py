"""REINFORCE with its baselines, ReMax among them, and REINFORCE++. Shape letters: B episodes, L tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from textenv.agents.advantages import discounted_sums, get_advantage
from textenv.agents.batch import TrainingBatch
from textenv.agents.effects import Idle, unused_by
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.teacher_forced import Evaluation as PolicyOutput
from textenv.agents.policy_gradient import PolicyGradientAgent, PolicyGradientConfig
from textenv.agents.registry import register_agent
from textenv.episodes import EpisodeBatch


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


@register_agent("reinforce")
class Reinforce(PolicyGradientAgent):
    """REINFORCE: the log-prob of each token times what followed it, minus a baseline; no critic."""

    config_class = ReinforceConfig
    config: ReinforceConfig
    greedy: EpisodeBatch | None = None
    """The greedy episodes of this iteration, one on each sampled one's prompt."""

    def setup(self) -> None:
        """See that greedy episodes can be played.

        Raises:
            ValueError: if actors play ahead, which play every ticket once.
        """
        ahead = 0 if self.rollouts is None else self.rollouts.settings.ahead
        if self.config.baseline == "greedy" and ahead:
            raise ValueError("baseline='greedy' plays tickets twice, which rollouts in mode 'async' do not")
        super().setup()

    def score(self, episodes: EpisodeBatch) -> None:
        """Pay the rewards; of the greedy episodes, too, before adaptive terms learn from the sampled ones."""
        if self.config.baseline == "greedy":
            with acting_greedily(self.policy):
                self.greedy = self.play(int(episodes.episode_id.min()))
            self.pay(self.greedy)
        super().score(episodes)

    def estimate(self, episodes: EpisodeBatch, rewards: Tensor, old: PolicyOutput) -> tuple[Tensor, Tensor]:
        """Return to go minus the baseline (Williams 1992; the greedy one, Li et al. 2024, "ReMax", eq. 4)."""
        cfg, mask = self.config, episodes.action_mask
        if cfg.baseline == "batch":
            return get_advantage("batch-mean")(rewards, mask, gamma=cfg.gamma)
        returns = discounted_sums(rewards, mask, cfg.gamma)
        if cfg.baseline == "none":
            return returns, returns
        assert self.greedy is not None
        greedy = self.greedy.to(rewards.device)
        paid = self.shaped_rewards(greedy, update=False)
        baseline = first_own(discounted_sums(paid, greedy.action_mask, cfg.gamma), greedy.action_mask)
        return torch.where(mask, returns - baseline.unsqueeze(-1), 0.0), returns

    def describe(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the rollout, and of the greedy episodes."""
        row = super().describe(batch)
        if self.greedy is not None:
            row["baseline/reward"] = float(self.greedy.returns.mean())
            row["baseline/length"] = float(self.greedy.response_lengths.float().mean())
        return row


def first_own(values: Tensor, mask: Tensor) -> Tensor:
    """The value at the first own token of each row, 0 without one: (B, L) -> (B,)."""
    return torch.where(mask & (mask.cumsum(-1) == 1), values, 0.0).sum(-1)


@contextmanager
def acting_greedily(policy: LanguagePolicy) -> Iterator[None]:
    """Within the block the policy acts by the likeliest token."""
    before = policy.decoding.greedy
    policy.decoding.greedy = True
    try:
        yield
    finally:
        policy.decoding.greedy = before


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
        get_advantage(self.advantage)

    def idle(self) -> Idle:
        """Settings without effect."""
        return super().idle() | unused_by(self.advantage, self)


@register_agent("reinforce++")
class ReinforcePlusPlus(PolicyGradientAgent):
    """REINFORCE++: return to go with a token-level KL penalty, normalised over the batch, clipped ratios.

    Hu et al. 2025, "REINFORCE++: an efficient RLHF algorithm with robustness to both prompt and reward
    models".
    """

    config_class = ReinforcePlusPlusConfig
    config: ReinforcePlusPlusConfig

    def estimate(self, episodes: EpisodeBatch, rewards: Tensor, old: PolicyOutput) -> tuple[Tensor, Tensor]:
        """Advantages by the registered estimator; ``whiten_advantages`` normalises them."""
        return get_advantage(self.config.advantage)(
            rewards,
            episodes.action_mask,
            values=None,
            groups=episodes.prompt_index,
            scores=self.judged_scores(episodes),
            gamma=self.config.gamma,
        )
