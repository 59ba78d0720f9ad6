"""Base of online policy-gradient agents: reference policy and KL, scaled rewards, optional losses, metrics.

An agent of this family defines ``advantages(episodes)`` and ``loss(batch, totals)`` in its own file. Shape
letters: B episodes, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from textenv.agents.base.arguments import refuse_dataset
from textenv.agents.base.extra_losses import ExtraLoss, KLLoss, PretrainingLoss
from textenv.agents.base.old_hooks import accept_old_hooks
from textenv.agents.base.online import OnlineAgent
from textenv.agents.checkpointing.state import TrainingState
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.episodes import as_demonstrations
from textenv.agents.distributed import process_group
from textenv.agents.evaluation.evaluator import Evaluation
from textenv.agents.evaluation.kl import kl_row
from textenv.agents.evaluation.task_returns import kl_penalties, kl_wrappers, task_returns
from textenv.agents.losses.advantages import PER_TURN, value_mask
from textenv.agents.losses.aggregation import get_aggregation
from textenv.agents.losses.masked import masked_mean, masked_sum
from textenv.agents.losses.policy_gradient import Reduction
from textenv.agents.losses.running import RunningStd
from textenv.agents.optim.backend import Stats
from textenv.agents.optim.weight_average import WeightAverage
from textenv.agents.policies.outputs import PolicyOutput
from textenv.agents.settings.effects import Idle
from textenv.agents.settings.policy_gradient import PolicyGradientConfig, idle_beside_kl
from textenv.data.encoding import raise_at
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.kl import KLPenalty
from textenv.rewards.wrappers import wrap_reward


class PolicyGradientAgent(OnlineAgent):
    """Base of online policy-gradient agents."""

    config: PolicyGradientConfig
    kl_loss: KLLoss | None = None
    """The KL to the reference policy as a term of the loss (``kl_placement="loss"``)."""
    pretraining: PretrainingLoss | None = None
    """The pretraining loss (``ptx_coef``)."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Accept the deprecated hooks ``estimate`` and ``objective``, with a warning."""
        super().__init_subclass__(**kwargs)
        accept_old_hooks(cls)

    def load_dataset(self, dataset: Any) -> EpisodeBatch:
        """Episodes for the pretraining loss; see ``as_demonstrations``."""
        try:
            return as_demonstrations(dataset, self.tokenizer)
        except (TypeError, ValueError) as error:
            raise_at("dataset", error)

    def setup(self) -> None:
        """Make the reference policy, the KL penalty in the reward or in the loss, and the pretraining loss.

        Raises:
            ValueError: if ``ptx_coef`` is set without a data set or 0 with one, or ``packing`` is set for a
                model without support.
        """
        cfg = self.config
        if cfg.ptx_coef and self.dataset is None:
            raise ValueError(f"ptx_coef={cfg.ptx_coef} needs dataset=, got None")
        if not cfg.ptx_coef:
            refuse_dataset(self, "with ptx_coef=0, the weight of the loss on it")
        self.policy.packing = cfg.packing
        self.score_std = RunningStd()
        self.envs.unwrapped.bind(self.policy)
        self.env_has_kl = bool(kl_wrappers(self.envs))
        if cfg.kl_coef or self.env_has_kl:
            self.reference = self.policy.reference()
        if cfg.kl_coef and cfg.kl_placement == "loss":
            self.kl_loss = KLLoss(cfg)
        if cfg.kl_coef and cfg.kl_placement == "reward" and not self.env_has_kl:
            term = KLPenalty(
                coef=cfg.kl_coef, controller=cfg.kl_controller, target=cfg.kl_target, horizon=cfg.kl_horizon
            )
            self.envs = wrap_reward(self.envs, term)
        if cfg.ptx_coef:
            self.pretraining = PretrainingLoss(self.policy, self.dataset, cfg)
        self.average = None if cfg.ema_decay is None else WeightAverage(self.policy, cfg.ema_decay)

    def idle(self) -> Idle:
        """Settings of a KL penalty without effect, because the environment has its own KL penalty."""
        return super().idle() | (idle_beside_kl(self.config) if self.env_has_kl else {})

    def collect(self) -> EpisodeBatch:
        """Generate episodes.

        If the first optimizer step is on the whole batch, the pass for the old log-probs (and values) is
        made with gradient and reused by that step.
        """
        episodes = super().collect()
        if self.config.minibatches == 1 and not self.config.entropy_coef and process_group.world_size() == 1:
            self.policy.expect_step(episodes)
        return episodes

    def generated(self, episodes: EpisodeBatch) -> EpisodeBatch:
        """All episodes of the iteration, from which ``episodes`` were selected: what statistics adapt to."""
        return episodes

    def shaped_rewards(self, episodes: EpisodeBatch, *, update: bool = True) -> Tensor:
        """Rewards (B, L), the task return scaled and clipped as configured; KL penalties are not changed.

        Args:
            episodes: B scored episodes.
            update: add their task returns to the running standard deviation first.
        """
        cfg = self.config
        if not cfg.score_scale and cfg.score_clip is None:
            return episodes.rewards
        kl = kl_penalties(episodes, self.envs)
        rewards = episodes.rewards - kl
        if cfg.score_scale:
            if update:
                generated = self.generated(episodes)
                self.score_std.update((generated.rewards - kl_penalties(generated, self.envs)).sum(-1))
            rewards = rewards / self.score_std.std
        if cfg.score_clip is not None:
            total = rewards.sum(-1)
            clipped = total.clamp(-cfg.score_clip, cfg.score_clip)
            rewards = rewards + episodes.at_last_action(clipped - total)
        return rewards + kl

    def shaped_task_returns(self, episodes: EpisodeBatch) -> Tensor:
        """Returns without KL penalties, scaled and clipped as in ``shaped_rewards``: (B,) float64."""
        returns, limit = task_returns(episodes, self.envs), self.config.score_clip
        if self.config.score_scale:
            returns = returns / self.score_std.std
        return returns if limit is None else returns.clamp(-limit, limit)

    def reference_tensors(self, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """``{"ref_log_probs": (B, L)}``, or ``{}`` without a reference policy."""
        return {} if self.reference is None else {"ref_log_probs": self.reference.log_prob(episodes)}

    def reduction(self, totals: Totals) -> Reduction:
        """The configured aggregation of per-token losses, divided by ``totals``."""
        return partial(get_aggregation(self.config.aggregation), totals=totals)

    @property
    def extra_losses(self) -> list[ExtraLoss]:
        """Optional terms of the loss, off by default."""
        return [term for term in (self.kl_loss, self.pretraining) if term is not None]

    def add_extra_losses(
        self, loss: Tensor, stats: Stats, new: PolicyOutput, batch: TrainingBatch, totals: Totals
    ) -> tuple[Tensor, Stats]:
        """Loss and statistics of a micro-batch with those of ``extra_losses`` added."""
        for term in self.extra_losses:
            found = term(new, batch, totals)
            if found is not None:
                loss, stats = loss + found[0], stats | found[1]
        return loss, stats

    def totals(self, batch: TrainingBatch) -> Totals:
        """Denominators of one optimizer step."""
        totals = super().totals(batch)
        totals.longest = self.envs.unwrapped.max_new_tokens
        advantage = getattr(self.config, "advantage", None)
        if advantage in PER_TURN:
            totals.extra["values"] = max(1.0, float(value_mask(advantage, batch.mask).sum()))
        if self.pretraining is not None:
            totals.extra[PretrainingLoss.STEP] = float(self.optimizer_steps)
        return totals

    def after_update(self, batch: TrainingBatch) -> None:
        """Move an adaptive coefficient of the KL in the loss toward its target."""
        if self.kl_loss is not None and self.kl_loss.adaptive:
            self.kl_loss.adapt(*self.sequence_kl(batch))

    def sequence_kl(self, batch: TrainingBatch) -> tuple[float, int]:
        """KL (k1) of the policy before the update to the reference, in nats per sequence; its episodes."""
        kl = masked_sum(batch["old_log_probs"] - batch["ref_log_probs"], batch.mask)
        return float(kl) / len(batch), len(batch)

    def should_stop_early(self, stats: Mapping[str, float]) -> bool:
        """Whether the approximate KL to the policy before the update exceeds ``stop_at_kl``."""
        limit = self.config.stop_at_kl
        return limit is not None and stats["policy/approx_kl"] > limit

    def after_step(self) -> None:
        """Update the moving average of the weights."""
        if self.average is not None:
            self.average.update()

    def rollout_metrics(self, batch: TrainingBatch) -> dict[str, float]:
        """Metrics of the rollout: task return, KL to the reference, entropy."""
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
        if self.kl_loss is not None and self.kl_loss.adaptive:
            row["objective/kl_coef"] = self.kl_loss.coef
        return row

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the policy has its averaged weights, if ``ema_decay`` is set."""
        return nullcontext() if self.average is None else self.average.applied()

    def evaluate(self, envs: Any = None, episodes: int | None = None, **options: Any) -> Evaluation:
        """Evaluate with the averaged weights, if there are any; see ``Agent.evaluate``."""
        with self.averaged():
            return super().evaluate(envs, episodes, **options)

    def save_policy(self, path: Path) -> None:
        """Write the policy with its averaged weights, if there are any."""
        with self.averaged():
            super().save_policy(path)

    def training_state(self) -> TrainingState:
        """With running statistics of task returns, and the coefficient of the KL in the loss.

        With averaged weights also the weights in training, because the policy's files hold the average.
        """
        state = super().training_state()
        state.values["score_std"] = self.score_std.state_dict()
        state.values["loss_kl_coef"] = 0.0 if self.kl_loss is None else self.kl_loss.coef
        if self.average is not None:
            state.tensors |= self.average.state_tensors()
        return state

    def load_training_state(self, state: TrainingState) -> None:
        """Restore ``training_state``."""
        super().load_training_state(state)
        self.score_std.load_state_dict(state.values["score_std"])
        if self.kl_loss is not None and self.kl_loss.adaptive:  # early checkpoints have no coefficient
            self.kl_loss.coef = state.values.get("loss_kl_coef", self.kl_loss.coef)
        if self.average is not None:
            self.average.load(state.tensors)


def policy_metrics(loss: Tensor, stats: Stats) -> Stats:
    """Statistics of a policy loss under the names of the metrics: ``policy/...`` and ``ratio``.

    Args:
        loss: scalar policy loss.
        stats: statistics of ``ppo_policy_loss`` or ``policy_gradient_loss``.
    """
    found = {f"policy/{name}": value for name, value in stats.items() if name != "ratio"}
    return found | {"policy/loss": loss.detach(), "ratio": stats["ratio"]}
