"""Group relative policy optimisation (Shao et al. 2024, "DeepSeekMath") and its variants, by settings.

- DAPO (Yu et al. 2025): ``aggregation="dapo", clip_range_high=0.28, max_rollouts=4, kl_coef=0``.
- Dr. GRPO (Liu et al. 2025): ``aggregation="dr_grpo"``; no division by the standard deviation goes with it.
- GSPO (Zheng et al. 2025): ``ratio_level="sequence", clip_range=3e-4, clip_range_high=4e-4, kl_coef=0``.
"""

from __future__ import annotations

import torch

from textenv import scoring as scorer
from textenv.agents.base.group_baseline import GroupBaselineAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.distributed.batch_sharding import spread
from textenv.agents.losses.policy_gradient import masked_sum
from textenv.agents.settings.groups import GRPOConfig
from textenv.episodes.batch import EpisodeBatch


@register_agent("grpo")
class GRPO(GroupBaselineAgent):
    """GRPO: returns standardised within the group, clipped ratios; DAPO, Dr. GRPO and GSPO by settings."""

    config_class = GRPOConfig
    config: GRPOConfig
    everything: EpisodeBatch | None = None
    """With ``max_rollouts`` above 1: all episodes of the iteration, those that made way included."""

    def collect(self) -> EpisodeBatch:
        """What to learn from; with ``max_rollouts`` above 1 scored, of groups that teach something."""
        episodes = super().collect()
        if self.config.max_rollouts == 1:
            return episodes
        self.compute_rewards(episodes)
        wanted = len(episodes)
        for _ in range(self.config.max_rollouts - 1):
            if int((~self.flat(episodes)).sum()) >= wanted:
                break
            more = super().collect()
            self.compute_rewards(more)
            episodes = EpisodeBatch.concat([episodes, more])
        self.everything = episodes
        # Whole groups in the order of their tickets; flat ones only fill up what is missing.
        kept = torch.argsort(self.flat(episodes).byte(), stable=True)[:wanted]
        return episodes.select(kept.sort().values)

    def score(self, episodes: EpisodeBatch) -> None:
        """Pay the rewards, unless ``collect`` did, and let adaptive terms learn."""
        if self.config.max_rollouts == 1:
            super().score(episodes)
        else:
            scorer.update(self.played(episodes), scorer.reward_wrappers(self.envs))

    def played(self, episodes: EpisodeBatch) -> EpisodeBatch:
        """All episodes of the iteration in which ``episodes`` were chosen to be learned from."""
        return episodes if self.everything is None else self.everything

    def sequence_kl(self, batch: TrainingBatch) -> tuple[float, int]:
        """KL to the reference over all episodes played, and their number."""
        played = self.played(batch.episodes)
        if len(played) == len(batch):
            return super().sequence_kl(batch)
        assert self.reference is not None
        played = spread(played.to(self.policy.device))
        difference = self.policy.log_prob(played) - self.reference.log_prob(played)
        return float(masked_sum(difference, played.action_mask)) / len(played), len(played)
