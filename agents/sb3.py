"""Stable-Baselines3's PPO as an agent, for studies, the command line and ``textenv.train``.

Stable-Baselines3 collects and learns; this class counts the cost, evaluates, logs and saves. The adapter of
environment and policy is ``textenv.agents.integrations.sb3``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import stable_baselines3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from textenv.agents.base.agent import Agent
from textenv.agents.base.arguments import refuse_dataset
from textenv.agents.base.metrics import Timer
from textenv.agents.base.registry import register_agent
from textenv.agents.distributed import process_group
from textenv.agents.evaluation.task_returns import kl_wrappers
from textenv.agents.integrations.sb3 import sb3_agent
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.settings.effects import FROM_EPISODES, Idle
from textenv.agents.settings.sb3 import SB3Config
from textenv.rewards.kl import KLPenalty
from textenv.rewards.wrappers import wrap_reward
from textenv.tasks.stop_tokens import warn_of_missing_ends


@register_agent("sb3")
class SB3(Agent):
    """Stable-Baselines3's own PPO, with its cost counted as for the other agents.

    Subclasses that override ``make_learner`` run another on-policy algorithm of Stable-Baselines3.
    """

    config_class = SB3Config
    policy_arguments: ClassVar[Mapping[str, str]] = {
        "value_head": "the agent's critic is always a value head on the policy's trunk"
    }
    online = True
    config: SB3Config
    cannot: ClassVar[Mapping[str, str]] = {
        "exact resume": "Stable-Baselines3 keeps neither the episodes that a rollout left unfinished nor its "
        "random state: a resumed run goes on with the weights and the optimizer, from new episodes",
        "rollouts": "Stable-Baselines3 plays its episodes itself",
        "several processes": "Stable-Baselines3 learns in one process",
    }

    def make_policy(self, model: Any) -> LanguagePolicy:
        """A policy with a critic on its trunk."""
        if isinstance(model, LanguagePolicy):
            model.add_critic("shared")
            return model
        return LanguagePolicy(
            model, tokenizer=self.tokenizer, seed=self.config.seed, value_head="shared", **self.policy_kwargs
        )

    def setup(self) -> None:
        """Put the KL penalty into the reward.

        Raises:
            ValueError: if there are several processes, the rollout has no equal minibatches, or there is a
                data set.
        """
        refuse_dataset(self, FROM_EPISODES)
        cfg = self.config
        if process_group.world_size() > 1:
            raise ValueError(f"agent 'sb3' needs one process: {self.cannot['several processes']}")
        self.rollout_tokens = cfg.n_steps * self.envs.num_envs
        if self.rollout_tokens % cfg.minibatches or self.rollout_tokens // cfg.minibatches < 2:
            raise ValueError(
                f"minibatches must split n_steps * num_envs ({self.rollout_tokens}) into equal parts >= 2, "
                f"got {cfg.minibatches}"
            )
        self.envs.unwrapped.bind(self.policy)
        self.env_has_kl = bool(kl_wrappers(self.envs))
        if cfg.kl_coef or self.env_has_kl:
            self.reference = self.policy.reference()
        if cfg.kl_coef and not self.env_has_kl:
            self.envs = wrap_reward(self.envs, KLPenalty(coef=cfg.kl_coef))

    def idle(self) -> Idle:
        """A KL penalty where the environment pays one of its own."""
        found = super().idle()
        if self.env_has_kl and self.config.kl_coef:
            found |= self.config.changed("kl_coef", because="where the environment has a KL reward")
        return found

    def planned_iterations(self) -> int:
        """Rollouts of the whole run."""
        return self.config.iterations

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run, where every pass has ``minibatches`` of them."""
        return self.config.iterations * self.config.epochs * self.config.minibatches

    def rate(self, progress: float) -> float:
        """The learning rate, for Stable-Baselines3, whose share of the run that is left is not looked at."""
        return float(self.schedule.get_last_lr()[0])

    def make_learner(self) -> Any:
        """The algorithm of Stable-Baselines3 around the policy and the environment."""
        cfg = self.config
        return sb3_agent(
            stable_baselines3.PPO,
            self.policy,
            self.envs,
            n_steps=cfg.n_steps,
            batch_size=self.rollout_tokens // cfg.minibatches,
            n_epochs=cfg.epochs,
            gamma=cfg.gamma,
            gae_lambda=cfg.gae_lambda,
            clip_range=cfg.clip_range,
            normalize_advantage=cfg.whiten_advantages,
            ent_coef=cfg.entropy_coef,
            vf_coef=cfg.value_coef,
            max_grad_norm=math.inf if cfg.max_grad_norm is None else cfg.max_grad_norm,
            target_kl=cfg.stop_at_kl,
            learning_rate=self.rate,
            # A resumed run goes on with other prompts and noise than it began with.
            seed=cfg.seed + self.iteration,
            device=self.policy.device,
        )

    def train_loop(self) -> None:
        """Let Stable-Baselines3 collect and learn, one rollout at a time; count, evaluate, log."""
        warn_of_missing_ends(self.envs, self.policy)
        learner = self.make_learner()
        learner.set_logger(Logger(folder=None, output_formats=[]))
        learner.policy.optimizer = self.optimizer

        def after_step(*_: Any) -> None:
            self.optimizer_steps += 1
            self.gradient_tokens += learner.policy.scored_tokens
            self.schedule.step()

        hook = self.optimizer.register_step_post_hook(after_step)
        try:
            while self.iteration < self.planned_iterations() and not self.stopped:
                self.iteration += 1
                self.end_iteration(self.one_rollout(learner))
        finally:
            hook.remove()

    def one_rollout(self, learner: Any) -> dict[str, float]:
        """Collect a rollout and learn from it; the metrics of both.

        Raises:
            RuntimeError: if the loss is NaN or infinite.
        """
        watch, trained = _Rollout(), self.gradient_tokens
        learner.learn(self.rollout_tokens, callback=watch, log_interval=None, reset_num_timesteps=False)
        watch.timer.split("update")
        self.policy.invalidate()
        self.episodes_seen += len(watch.ended)
        self.reward_calls += len(watch.ended)
        self.env_tokens += self.rollout_tokens
        found = {name.removeprefix("train/"): float(x) for name, x in learner.logger.name_to_value.items()}
        learner.logger.dump()
        if not math.isfinite(found.get("loss", 0.0)):
            raise RuntimeError(
                f"the loss is not finite in iteration {self.iteration}, after {self.optimizer_steps} "
                f"optimizer steps: {found['loss']}. Lower the learning rate, or look at the rewards."
            )
        row = watch.metrics() | {f"sb3/{name}": value for name, value in found.items()}
        return row | watch.timer.metrics(self.rollout_tokens, self.gradient_tokens - trained)


class _Rollout(BaseCallback):
    """What a rollout of Stable-Baselines3 says about the episodes that end in it."""

    def __init__(self) -> None:
        super().__init__()
        self.timer = Timer()
        self.ended: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.ended += [self.locals["infos"][row] for row in np.flatnonzero(self.locals["dones"])]
        return True

    def _on_rollout_end(self) -> None:
        self.timer.split("rollout")

    def metrics(self) -> dict[str, float]:
        """Means over the episodes that ended; none without any."""
        if not self.ended:
            return {}
        row = {"episode/eos_rate": 1 - float(np.mean([info["truncated"] for info in self.ended]))}
        known = [info["episode"] for info in self.ended if "episode" in info]
        if known:
            row["objective/reward"] = float(np.mean([episode["r"] for episode in known]))
            row["episode/length"] = float(np.mean([episode["l"] for episode in known]))
        return row
