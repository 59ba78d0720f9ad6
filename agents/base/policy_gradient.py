"""What online policy-gradient agents share: reference and KL, shaped scores, the surrogate, what is reported.

An agent of this family supplies ``estimate`` (advantages and returns of an iteration's episodes) and may add
to ``objective``; the loop around them is ``OnlineAgent``'s. Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from textenv.agents.base.online import OnlineAgent
from textenv.agents.checkpointing.state import TrainingState
from textenv.agents.data.batch import Totals, TrainingBatch, rows_of_step
from textenv.agents.data.episodes import as_demonstrations
from textenv.agents.distributed import process_group
from textenv.agents.evaluation.evaluator import Evaluation
from textenv.agents.evaluation.kl import kl_row
from textenv.agents.evaluation.task_scores import kl_wrappers, paid_kl, task_scores
from textenv.agents.losses.aggregation import get_aggregation
from textenv.agents.losses.importance import importance_weights
from textenv.agents.losses.policy_gradient import (
    entropy_loss,
    kl_loss,
    log_ratio,
    masked_mean,
    masked_sum,
    masked_whiten,
    ppo_policy_loss,
    ratio_stats,
    reinforce_loss,
    sft_loss,
)
from textenv.agents.optim.backend import Stats
from textenv.agents.optim.weight_average import RunningStd, WeightAverage
from textenv.agents.policies.teacher_forced import Evaluation as PolicyOutput
from textenv.agents.settings.effects import Idle, idle_beside_kl, refuse_dataset
from textenv.agents.settings.policy_gradient import PolicyGradientConfig
from textenv.data.encoding import raise_at
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.kl import KLPenalty, adapted_coefficient
from textenv.rewards.wrappers import wrap_reward


class PolicyGradientAgent(OnlineAgent):
    """Base of online policy-gradient agents."""

    config: PolicyGradientConfig
    critic: ClassVar[bool] = False
    """Whether the policy has a value head."""

    # -- what an agent of the family supplies ----------------------------------------------------------------

    def estimate(self, episodes: EpisodeBatch, rewards: Tensor, old: PolicyOutput) -> tuple[Tensor, Tensor]:
        """Advantages and returns of an iteration: (B, L) each, 0 off the action mask.

        Args:
            episodes: B episodes on the policy's device.
            rewards: (B, L) as ``shaped_rewards`` gives them.
            old: what the policy that played them says about them.
        """
        raise NotImplementedError

    def evaluate_old(self, episodes: EpisodeBatch) -> PolicyOutput:
        """What the policy says about the episodes before it learns from them."""
        return self.policy.evaluate(episodes, values=False)

    def objective(self, new: PolicyOutput, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """The policy's loss of a micro-batch, clipped or plain, and its statistics."""
        cfg, mask, tokens = self.config, batch.mask, totals.tokens
        old, advantages = batch["old_log_probs"], batch["advantages"]
        reduce = partial(get_aggregation(cfg.aggregation), totals=totals)
        if cfg.clip_range is None:
            loss = reinforce_loss(new.log_probs, advantages, mask, reduce=reduce)
            found = ratio_stats(log_ratio(new.log_probs, old, mask), mask, denominator=tokens)
        else:
            loss, found = ppo_policy_loss(
                new.log_probs,
                old,
                advantages,
                mask,
                clip_range=cfg.clip_range,
                clip_range_high=cfg.clip_range_high,
                dual_clip=cfg.dual_clip,
                level=cfg.ratio_level,
                reduce=reduce,
                denominator=tokens,
            )
        stats = {f"policy/{name}": value for name, value in found.items() if name != "ratio"}
        return loss, stats | {"policy/loss": loss.detach(), "ratio": found["ratio"]}

    # -- the update ------------------------------------------------------------------------------------------

    def load_dataset(self, dataset: Any) -> EpisodeBatch:
        """Episodes for the pretraining loss; see ``as_demonstrations``."""
        try:
            return as_demonstrations(dataset, self.tokenizer)
        except (TypeError, ValueError) as error:
            raise_at("dataset", error)

    def setup(self) -> None:
        """Take the reference, and put the KL penalty into the reward where it belongs there.

        Raises:
            ValueError: if ``ptx_coef`` is set without a data set or 0 with one, or ``packing`` is set for a
                model that cannot.
        """
        cfg = self.config
        if cfg.ptx_coef and self.dataset is None:
            raise ValueError(f"ptx_coef={cfg.ptx_coef} needs dataset=, got None")
        if not cfg.ptx_coef:
            refuse_dataset(self, "with ptx_coef=0, the weight of the loss on it")
        self.policy.packing = cfg.packing
        self.score_std = RunningStd()
        self.loss_kl_coef = cfg.kl_coef if cfg.kl_placement == "loss" else 0.0
        self.envs.unwrapped.bind(self.policy)
        self.paid_kl = penalised = bool(kl_wrappers(self.envs))
        if cfg.kl_coef or penalised:
            self.reference = self.policy.reference()
        if cfg.kl_coef and cfg.kl_placement == "reward" and not penalised:
            term = KLPenalty(
                coef=cfg.kl_coef, controller=cfg.kl_controller, target=cfg.kl_target, horizon=cfg.kl_horizon
            )
            self.envs = wrap_reward(self.envs, term)
        self.average = None if cfg.ema_decay is None else WeightAverage(self.policy, cfg.ema_decay)

    def idle(self) -> Idle:
        """Settings of a KL penalty that the environment pays by one of its own."""
        return super().idle() | (idle_beside_kl(self.config) if self.paid_kl else {})

    @property
    def adapts_loss(self) -> bool:
        """Whether the coefficient of the KL in the loss follows the measured KL."""
        return self.loss_kl_coef > 0 and self.config.kl_controller == "adaptive"

    def played(self, episodes: EpisodeBatch) -> EpisodeBatch:
        """What adaptive statistics learn from, where ``episodes`` are learned from."""
        return episodes

    def sequence_kl(self, batch: TrainingBatch) -> tuple[float, int]:
        """KL (k1) of the policy that played to the reference in nats a sequence, and over how many."""
        kl = masked_sum(batch["old_log_probs"] - batch["ref_log_probs"], batch.mask)
        return float(kl) / len(batch), len(batch)

    def update(self, batch: TrainingBatch) -> dict[str, float]:
        """The passes; afterwards an adaptive coefficient of the KL in the loss moves."""
        if not self.adapts_loss:
            return super().update(batch)
        kl, episodes = self.sequence_kl(batch)
        row = super().update(batch)
        self.loss_kl_coef = adapted_coefficient(
            self.loss_kl_coef, kl, episodes, target=self.config.kl_target, horizon=self.config.kl_horizon
        )
        return row

    def collect(self) -> EpisodeBatch:
        """Play; a first step on the whole batch is served by the pass for the old log-probs and values."""
        episodes = super().collect()
        if self.config.minibatches == 1 and not self.config.entropy_coef and process_group.alone():
            self.policy.expect_step(episodes)
        return episodes

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """Old log-probs (and values), reference log-probs where there is one, advantages and returns."""
        cfg, episodes = self.config, episodes.to(self.policy.device)
        old = self.evaluate_old(episodes)
        advantages, returns = self.estimate(episodes, self.shaped_rewards(episodes), old)
        if cfg.whiten_advantages:
            advantages = masked_whiten(advantages, episodes.action_mask, min_std=cfg.whiten_min_std)
        tensors = {"old_log_probs": old.log_probs, "advantages": advantages, "returns": returns}
        if cfg.importance_correction != "none":
            tensors["importance_weights"] = importance_weights(
                episodes, old.log_probs, level=cfg.importance_correction, clip=cfg.importance_clip
            )
            # Weights >= 0 commute with the clips of the surrogate, so they may as well be the advantages'.
            tensors["advantages"] = advantages * tensors["importance_weights"]
        if old.values is not None:
            tensors["old_values"] = old.values
        if self.reference is not None:
            tensors["ref_log_probs"] = self.reference.log_prob(episodes)
        return TrainingBatch(episodes, tensors)

    def shaped_rewards(self, episodes: EpisodeBatch, *, update: bool = True) -> Tensor:
        """Rewards with scores scaled and clipped as configured; the KL penalty is left as it is.

        Args:
            episodes: B scored episodes.
            update: let the running standard deviation learn from them.
        """
        cfg = self.config
        if not cfg.score_scale and cfg.score_clip is None:
            return episodes.rewards
        kl = paid_kl(episodes, self.envs)
        scores = episodes.rewards - kl
        if cfg.score_scale:
            if update:
                played = self.played(episodes)
                self.score_std.update((played.rewards - paid_kl(played, self.envs)).sum(-1))
            scores = scores / self.score_std.std
        if cfg.score_clip is not None:
            total = scores.sum(-1)
            clipped = total.clamp(-cfg.score_clip, cfg.score_clip)
            scores = scores + episodes.at_last_action(clipped - total)
        return scores + kl

    def judged_scores(self, episodes: EpisodeBatch) -> Tensor:
        """Returns without a KL penalty, scaled and clipped as ``shaped_rewards`` does: (B,) float64."""
        scores, limit = task_scores(episodes, self.envs), self.config.score_clip
        if self.config.score_scale:
            scores = scores / self.score_std.std
        return scores if limit is None else scores.clamp(-limit, limit)

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """``objective``, and by option KL, entropy bonus and pretraining loss."""
        cfg, mask, tokens = self.config, batch.mask, totals.tokens
        new = self.policy(batch.episodes, values=self.critic, entropy=cfg.entropy_coef > 0)
        loss, stats = self.objective(new, batch, totals)
        if cfg.entropy_coef:
            bonus = entropy_loss(new.entropy, mask, denominator=tokens)
            loss = loss + cfg.entropy_coef * bonus
            stats["policy/entropy"] = -bonus.detach()
        if self.loss_kl_coef:
            reduce = partial(get_aggregation(cfg.aggregation), totals=totals)
            penalty = kl_loss(new.log_probs, batch["ref_log_probs"], mask, reduce=reduce)
            loss = loss + self.loss_kl_coef * penalty
            stats["policy/kl_loss"] = penalty.detach()
        if cfg.ptx_coef and totals.extra.pop("ptx", False):
            ptx = self.ptx_loss()
            loss = loss + cfg.ptx_coef * ptx
            stats["policy/ptx_loss"] = ptx.detach()
        return loss, stats

    def totals(self, batch: TrainingBatch) -> Totals:
        """Denominators, and that the pretraining loss is due once, with the step's first micro-batch."""
        totals = super().totals(batch)
        totals.longest = self.envs.unwrapped.max_new_tokens
        totals.extra["ptx"] = 1.0
        return totals

    def ptx_loss(self) -> Tensor:
        """Next-token loss on the rows of ``dataset`` whose turn it is in this optimizer step."""
        cfg = self.config
        index = rows_of_step(len(self.dataset), self.optimizer_steps, size=cfg.ptx_batch_size, seed=cfg.seed)
        tokens = max(1.0, float(self.dataset.action_mask[index].sum()))
        own = index[process_group.rank() :: process_group.world_size()]
        # A process without a row passes over one that does not count.
        rows = self.dataset.select(own if len(own) else index[:1])
        mask = rows.action_mask if len(own) else torch.zeros_like(rows.action_mask)
        return sft_loss(self.policy(rows).log_probs, mask, denominator=tokens)

    def should_stop_early(self, stats: Mapping[str, float]) -> bool:
        """Whether the policy has moved further than ``stop_at_kl``."""
        limit = self.config.stop_at_kl
        return limit is not None and stats["policy/approx_kl"] > limit

    def after_step(self) -> None:
        """Move the average of the weights."""
        if self.average is not None:
            self.average.update()

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the rollout: score, KL to the reference, entropy."""
        row, mask, episodes = super().rollout_metrics(batch), batch.mask, batch.episodes
        row["objective/entropy"] = -float(masked_mean(batch["old_log_probs"], mask))
        row["objective/score"] = row["objective/reward"]
        if "ref_log_probs" in batch.tensors:
            kl = masked_sum(batch["old_log_probs"] - batch["ref_log_probs"], mask)
            row |= kl_row(float(kl), episodes=len(batch), tokens=int(mask.sum()))
        if "importance_weights" in batch.tensors:
            weights = batch["importance_weights"]
            row["importance/weight"] = float(masked_mean(weights, mask))
            clipped = (weights >= self.config.importance_clip).to(weights.dtype)
            row["importance/clip_fraction"] = float(masked_mean(clipped, mask))
        for wrapper in kl_wrappers(self.envs):
            row["objective/score"] -= float(episodes.reward_terms[wrapper.name].sum(-1).mean())
            row["objective/kl_coef"] = wrapper.term.coef
        if self.adapts_loss:
            row["objective/kl_coef"] = self.loss_kl_coef
        return row

    # -- the averaged weights --------------------------------------------------------------------------------

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block the policy has its averaged weights, if ``ema_decay`` asks for an average."""
        return nullcontext() if self.average is None else self.average.applied()

    def evaluate(self, envs: Any = None, episodes: int | None = None, **options: Any) -> Evaluation:
        """Play and measure, with the averaged weights if there are any; see ``Agent.evaluate``."""
        with self.averaged():
            return super().evaluate(envs, episodes, **options)

    def save_policy(self, path: Path) -> None:
        """Write the policy with its averaged weights, if there are any."""
        with self.averaged():
            super().save_policy(path)

    # -- checkpoints -----------------------------------------------------------------------------------------

    def training_state(self) -> TrainingState:
        """With the statistics that scores are scaled by and the coefficient of the KL in the loss.

        With an average also the weights in training: the policy's files hold the averaged ones.
        """
        state = super().training_state()
        state.values |= {"score_std": self.score_std.state_dict(), "loss_kl_coef": self.loss_kl_coef}
        if self.average is not None:
            state.tensors |= self.average.state_tensors()
        return state

    def load_training_state(self, state: TrainingState) -> None:
        """Restore what ``training_state`` gave."""
        super().load_training_state(state)
        self.score_std.load_state_dict(state.values["score_std"])
        if self.adapts_loss:
            self.loss_kl_coef = state.values.get("loss_kl_coef", self.loss_kl_coef)  # the oldest have none
        if self.average is not None:
            self.average.load(state.tensors)
