"""REINFORCE with its baselines, ReMax among them, and REINFORCE++. Shape letters: B episodes, L tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from textenv.agents.base.policy_gradient import PolicyGradientAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.losses.advantages import discounted_sums, get_advantage
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.teacher_forced import Evaluation as PolicyOutput
from textenv.agents.settings.policy_gradient import ReinforceConfig, ReinforcePlusPlusConfig
from textenv.episodes.batch import EpisodeBatch


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
        if self.config.baseline == "greedy" and self.collector.ahead:
            raise ValueError("baseline='greedy' plays tickets twice, which rollouts in mode 'async' do not")
        super().setup()

    def score(self, episodes: EpisodeBatch) -> None:
        """Pay the rewards; of the greedy episodes, too, before adaptive terms learn from the sampled ones."""
        if self.config.baseline == "greedy":
            with acting_greedily(self.policy):
                self.greedy = self.generate(int(episodes.episode_id.min()))
            self.compute_rewards(self.greedy)
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

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the rollout, and of the greedy episodes."""
        row = super().rollout_metrics(batch)
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
