"""A custom agent, in a comparison with PPO.

python examples/custom_agent.py --seeds 2
textenv compare STUDY.yaml --import examples/custom_agent.py      # an agent "best-half" in the file
"""

import argparse
import tempfile
from dataclasses import dataclass

import torch

from textenv.agents import OnlineAgent, OnlineConfig, register_agent
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.losses import sft_loss
from textenv.agents.study import StudyConfig, run_study, write_outputs


@dataclass(frozen=True, kw_only=True)
class BestHalfConfig(OnlineConfig):
    """Settings of every online agent, and one more."""

    share: float = 0.5
    """Share of the episodes, the best by return, that are imitated."""


@register_agent("best-half")
class BestHalf(OnlineAgent):
    """Imitates the episodes with the highest returns among those that it generates."""

    config_class = BestHalfConfig

    def advantages(self, episodes):
        """1 for the episodes whose return is among the best, 0 for the others: (B,)."""
        threshold = torch.quantile(episodes.returns, 1 - self.config.share)
        return TrainingBatch(episodes, {"chosen": (episodes.returns >= threshold).float()})

    def loss(self, batch, totals):
        """Likelihood of the chosen episodes' tokens, and statistics."""
        mask = batch.mask & (batch["chosen"] > 0).unsqueeze(-1)
        loss = sft_loss(self.policy(batch.episodes).log_probs, mask, denominator=totals.tokens)
        return loss, {"best-half/nll": loss.detach()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare a custom agent with PPO on a probe.")
    parser.add_argument("--seeds", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=10, help="(default: %(default)s)")
    args = parser.parse_args()
    shared = {"iterations": args.iterations, "episodes_per_iteration": 64, "learning_rate": 2e-3}
    study = StudyConfig(
        agents={"best-half": {"settings": shared}, "ppo": {"settings": {**shared, "kl_coef": 0.0}}},
        tasks={"probe-end": {"num_envs": 64}},
        seeds=args.seeds,
    )
    with tempfile.TemporaryDirectory() as folder:
        run_study(study, folder, log=print)
        print("\n".join(write_outputs(study, folder).verdict))
