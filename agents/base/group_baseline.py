"""What agents share whose baseline is the group: several episodes on each prompt, compared with each other.

The environment deals them one after the other (``samples_per_prompt``). Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from textenv.agents.base.groups import check_groups
from textenv.agents.base.policy_gradient import PolicyGradientAgent
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.evaluation.task_scores import task_scores
from textenv.agents.losses.advantages import get_advantage, group_moments
from textenv.agents.policies.teacher_forced import Evaluation as PolicyOutput
from textenv.agents.settings.groups import GroupBaselineConfig, check_whole_groups
from textenv.episodes.batch import EpisodeBatch

GROUP_SIZE = 8
"""Episodes on each prompt where nobody says how many."""


class GroupBaselineAgent(PolicyGradientAgent):
    """Base of agents whose baseline is the group."""

    config: GroupBaselineConfig

    @classmethod
    def group_size(cls, config: Any, *, evaluation: bool = False) -> int:
        """Episodes on each prompt that an environment should deal."""
        return 1 if evaluation else config.samples_per_prompt or GROUP_SIZE

    def setup(self) -> None:
        """See that the environment deals groups.

        Raises:
            ValueError: if it does not, or an iteration holds no whole groups.
        """
        dealt, size = self.envs.unwrapped.samples_per_prompt, self.config.samples_per_prompt
        if size is not None or dealt == 1:
            check_groups(self.envs, size or GROUP_SIZE, who=type(self).__name__)
        self.size = size or dealt
        check_whole_groups(self.config.episodes_per_iteration, self.size)
        super().setup()

    def groups(self, episodes: EpisodeBatch) -> Tensor:
        """(B,) int64, the number of each episode's group."""
        return episodes.episode_id // self.size

    def group_spread(self, episodes: EpisodeBatch) -> Tensor:
        """(B,) sample standard deviation of the scores in each episode's group, 0 where all are equal."""
        return self._spread(task_scores(episodes, self.envs), episodes)

    def flat(self, episodes: EpisodeBatch) -> Tensor:
        """(B,) bool: whether all scores of the episode's group, as far as the agent sees them, are equal."""
        return self._spread(self.judged_scores(episodes), episodes) == 0

    def _spread(self, scores: Tensor, episodes: EpisodeBatch) -> Tensor:
        _, _, squares, counts = group_moments(scores, self.groups(episodes))
        return (squares / (counts - 1)).sqrt()

    def estimate(self, episodes: EpisodeBatch, rewards: Tensor, old: PolicyOutput) -> tuple[Tensor, Tensor]:
        """Advantages by the registered estimator; whether a group is flat is judged by scores."""
        return get_advantage(self.config.estimator)(
            rewards,
            episodes.action_mask,
            values=None,
            groups=self.groups(episodes),
            scores=self.judged_scores(episodes),
            gamma=self.config.gamma,
        )

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the rollout, and how far apart the scores of a prompt are."""
        row = super().rollout_metrics(batch)
        row["group/std"] = float(self.group_spread(batch.episodes).mean())
        row["group/flat"] = float(self.flat(batch.episodes).double().mean())
        return row
