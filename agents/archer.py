"""ArCHer: critics of whole turns, trained off-policy, and a policy gradient over the tokens of a turn.

Zhou et al. 2024, "ArCHer: training language model agents via hierarchical multi-turn RL". Shape letters: B
episodes, L tokens, F sampled turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from textenv.agents.base.arguments import refuse_dataset
from textenv.agents.base.metrics import mean_row
from textenv.agents.base.online import OnlineAgent
from textenv.agents.base.registry import register_agent
from textenv.agents.checkpointing.state import TrainingState
from textenv.agents.data.batch import Totals, TrainingBatch
from textenv.agents.data.replay import EpisodeBuffer
from textenv.agents.distributed import process_group
from textenv.agents.evaluation.task_returns import kl_wrappers
from textenv.agents.losses.advantages import next_action_values
from textenv.agents.losses.masked import masked_squared_error, masked_sum
from textenv.agents.losses.policy_gradient import entropy_loss
from textenv.agents.losses.turns import at_turns, turn_sums
from textenv.agents.optim.backend import Stats
from textenv.agents.policies.heads import HeadKind, ValueHead, head_dtype
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.utterance_critic import TWINS, UtteranceCritic
from textenv.agents.rollouts.utterances import TurnStates, sample_turns, turn_states
from textenv.agents.settings.archer import ArcherConfig
from textenv.agents.settings.effects import FROM_EPISODES, Idle, unlike
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.turns import turn_starts

NOISE_SEED = 1_000_003
"""Added to the seed for the noise of the sampled turns, which is other than that of the episodes."""


class ArcherPolicy(LanguagePolicy):
    """A language policy with critics of turns, their target network, and a baseline per token.

    Args:
        model: see ``LanguagePolicy``.
        critic_head: shape of the critics' heads.
        options: further arguments of ``LanguagePolicy``.
    """

    def __init__(self, model: Any, *, critic_head: HeadKind = "mlp", **options: Any) -> None:
        super().__init__(model, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.turn_critic = UtteranceCritic(self.model, self.hidden_size, kind=critic_head)
            baseline = ValueHead(self.hidden_size, kind="linear")
        self.target_critic = self.turn_critic.frozen_copy()
        self.token_baseline = baseline.to(self.device, head_dtype(self.model))

    def extra_settings(self) -> dict[str, Any]:
        """Constructor arguments as JSON values."""
        return {"critic_head": self.turn_critic.kind}


@register_agent("archer")
class Archer(OnlineAgent):
    """ArCHer: twin Q and V of turns from a replay buffer, policy gradient over the tokens of a turn."""

    config_class = ArcherConfig
    policy_class = ArcherPolicy
    config: ArcherConfig
    policy: ArcherPolicy
    sampled_turns = 0
    """Turns that were sampled in states of the replay buffer, in the whole run."""

    def make_policy(self, model: Any) -> ArcherPolicy:
        """A policy with critics of turns.

        Raises:
            TypeError: if the policy has none.
        """
        if isinstance(model, ArcherPolicy):
            return model
        if isinstance(model, LanguagePolicy):
            raise TypeError(f"ArCHer needs an ArcherPolicy or a model, got {type(model).__name__}")
        cfg = self.config
        return ArcherPolicy(
            model, tokenizer=self.tokenizer, seed=cfg.seed, critic_head=cfg.critic_head, **self.policy_kwargs
        )

    def setup(self) -> None:
        """Make the replay buffer.

        Raises:
            ValueError: if there is a data set, or there are several processes.
        """
        refuse_dataset(self, FROM_EPISODES)
        if process_group.world_size() > 1:
            raise ValueError(f"agent 'archer' needs one process, got {process_group.world_size()}")
        self.buffer = EpisodeBuffer(self.config.buffer_episodes)
        if kl_wrappers(self.envs):
            self.reference = self.policy.reference()
        self.envs.unwrapped.bind(self.policy)

    def idle(self) -> Idle:
        """Settings without effect on a policy that was made before."""
        made_with = {"critic_head": self.policy.turn_critic.kind}
        because = "on an ArcherPolicy, which was made with its own"
        return super().idle() | unlike(self.config, made_with, made_with, because)

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run: those of the critics and of the policy."""
        cfg, iterations = self.config, self.config.num_iterations
        actor = max(0, iterations - cfg.critic_warmup) * cfg.epochs * cfg.minibatches
        return iterations * cfg.critic_steps + actor

    def score(self, episodes: EpisodeBatch) -> None:
        """Compute rewards, and put the episodes into the replay buffer."""
        super().score(episodes)
        self.buffer.add(episodes)

    def advantages(self, episodes: EpisodeBatch) -> TrainingBatch:
        """Advantages min_i Q_i(s, a) - min_i V_i(s) of the turns, at all their tokens: (B, L)."""
        episodes = episodes.to(self.policy.device)
        values = self.policy.turn_critic.evaluate(episodes, self.config.max_tokens_per_microbatch)
        return TrainingBatch(episodes, {"advantages": values.advantages})

    def update(self, batch: TrainingBatch) -> dict[str, float]:
        """Train the critics on the replay buffer, then the policy on new turns in states of the buffer."""
        metrics = mean_row([self.optimizer_step(one) for one in self.critic_batches()])
        if self.iteration > self.config.critic_warmup:
            turns = self.actor_turns()
            if turns is not None:
                actor = self.advantages(turns)
                metrics |= super().update(actor)
                metrics["archer/advantage"] = float(actor["advantages"][actor.mask].mean())
        return {**metrics, "archer/buffer": float(len(self.buffer))}

    # -- critics ---------------------------------------------------------------------------------------------

    def critic_batches(self) -> Iterator[TrainingBatch]:
        """``critic_steps`` batches from the buffer with their targets, each made with the present targets.

        R_k is the sum of the rewards of turn k, and a' a turn that the policy samples in the same state:

            Q_i(s_k, a_k) -> R_k + gamma targetV_i(s_{k+1}), 0 after the last turn
            V_i(s_k)      -> targetQ_i(s_k, a')
        """
        cfg, device = self.config, self.policy.device
        count = cfg.critic_steps * cfg.critic_batch_size
        drawn = self.buffer.draw(count, seed=cfg.seed, number=2 * self.iteration)
        known, place = drawn.unique(return_inverse=True)
        episodes = self.buffer.episodes.select(known)
        states = turn_states(episodes, self.envs)
        turns = self.sample(episodes, states)
        limit = cfg.max_tokens_per_microbatch
        for rows in place.split(cfg.critic_batch_size):
            part = episodes.select(rows).to(device)
            starts = turn_starts(part.action_mask)
            rewards = at_turns(turn_sums(part.rewards, part.action_mask), part.action_mask)
            target = self.policy.target_critic.evaluate(part, limit)
            tensors: dict[str, Tensor] = {"v_known": torch.zeros_like(rewards)}
            for i in range(TWINS):
                following = next_action_values(target.v[i], starts)
                tensors[f"q_target_{i}"] = rewards.to(following) + cfg.gamma * following
                tensors[f"v_target_{i}"] = torch.zeros_like(tensors[f"q_target_{i}"])
            if turns is not None:
                # Pairs of a row of the batch and a turn that was sampled in one of its states.
                row, turn = (states.rows.unsqueeze(0) == rows.unsqueeze(1)).nonzero(as_tuple=True)
                column = states.columns[turn]
                found = self.policy.target_critic.evaluate(turns.select(turn).to(device), limit)
                at = (row.to(device), column.to(device))
                tensors["v_known"][at] = 1.0
                for i in range(TWINS):
                    # A sampled turn stands alone: its Q is at all its tokens, the first one included.
                    own = found.q[i][torch.arange(len(turn), device=device), at[1]]
                    tensors[f"v_target_{i}"][at] = own
            yield TrainingBatch(part, tensors)

    def after_step(self) -> None:
        """Move the target network after a step of the critics."""
        if self._critics_step:
            self.policy.target_critic.follow(self.policy.turn_critic, self.config.target_alpha)
            self.policy.invalidate()

    _critics_step = False
    """Whether the present optimizer step is one of the critics."""

    def totals(self, batch: TrainingBatch) -> Totals:
        """Denominators of one optimizer step; ``turns`` and ``states`` of the critics' batches."""
        totals = super().totals(batch)
        self._critics_step = "v_known" in batch.tensors
        if self._critics_step:
            totals.extra["turns"] = max(1.0, float(turn_starts(batch.mask).sum()))
            totals.extra["states"] = max(1.0, float(batch["v_known"].sum()))
        return totals

    def loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """The loss of the critics for their batches, else that of the policy."""
        if "v_known" in batch.tensors:
            return self.critic_loss(batch, totals)
        return self.actor_loss(batch, totals)

    def critic_loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """Sum of the mean squared errors of Q_1, Q_2, V_1 and V_2 over turns."""
        values = self.policy.turn_critic(batch.episodes)
        starts, states = turn_starts(batch.mask), batch["v_known"] > 0
        q_loss = v_loss = torch.zeros((), device=batch.mask.device)
        for i in range(TWINS):
            q_loss = q_loss + masked_squared_error(
                values.q[i], batch[f"q_target_{i}"], starts, totals.extra["turns"]
            )
            v_loss = v_loss + masked_squared_error(
                values.v[i], batch[f"v_target_{i}"], states, totals.extra["states"]
            )
        return q_loss + v_loss, {"archer/q_loss": q_loss.detach(), "archer/v_loss": v_loss.detach()}

    # -- the policy ------------------------------------------------------------------------------------------

    def actor_turns(self) -> EpisodeBatch | None:
        """``actor_turns`` new turns in states drawn from the buffer; None if no state has room for a turn."""
        cfg = self.config
        rows = self.buffer.draw(cfg.actor_turns, seed=cfg.seed, number=2 * self.iteration + 1)
        episodes = self.buffer.episodes.select(rows)
        states = turn_states(episodes, self.envs)
        # One turn of each drawn episode, so that long episodes are not drawn more often than short ones.
        generator = torch.Generator().manual_seed((cfg.seed * 1_000_003 + self.iteration) % 2**63)
        order = torch.randperm(len(states.rows), generator=generator)
        _, first = torch.unique(states.rows[order], return_inverse=True)
        chosen = [
            order[(first == i).nonzero()[0, 0]] for i in range(int(first.max()) + 1 if len(first) else 0)
        ]
        if not chosen:
            return None
        index = torch.stack(chosen)
        return self.sample(episodes, TurnStates(states.rows[index], states.columns[index]))

    def actor_loss(self, batch: TrainingBatch, totals: Totals) -> tuple[Tensor, Stats]:
        """REINFORCE: minus the mean over turns of the sum over tokens of (A - baseline) log pi.

        The baseline of a token, if there is one, regresses on A by its own head, without gradient to the
        policy.
        """
        cfg, mask = self.config, batch.mask
        new = self.policy(batch.episodes, entropy=cfg.entropy_coef > 0, hidden=cfg.token_baseline)
        advantages, stats = batch["advantages"].to(new.log_probs), {}
        loss = torch.zeros_like(new.log_probs.sum())
        if cfg.token_baseline:
            assert new.hidden is not None
            # The state before the token in column p is in column p - 1.
            states = torch.nn.functional.pad(new.hidden[:, :-1].detach(), (0, 0, 1, 0))
            baseline = self.policy.token_baseline(states)
            loss = loss + masked_squared_error(baseline, advantages, mask, totals.tokens)
            stats["archer/baseline_loss"] = loss.detach()
            advantages = advantages - baseline.detach()
        policy_loss = -masked_sum(advantages * new.log_probs, mask) / totals.episodes
        loss = loss + policy_loss
        if cfg.entropy_coef:
            negative_entropy = entropy_loss(new.entropy, mask, denominator=totals.tokens)
            loss = loss + cfg.entropy_coef * negative_entropy
            stats["policy/entropy"] = -negative_entropy.detach()
        return loss, {**stats, "policy/loss": policy_loss.detach()}

    def sample(self, episodes: EpisodeBatch, states: TurnStates) -> EpisodeBatch | None:
        """New turns of the policy in these states, None without states; their tokens are counted."""
        if not len(states.rows):
            return None
        seed = self.config.seed + NOISE_SEED
        turns = sample_turns(self.policy, self.envs, episodes, states, seed=seed, first=self.sampled_turns)
        self.sampled_turns += len(turns)
        self.env_tokens += int(turns.response_lengths.sum())
        return turns

    # -- checkpoints -----------------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """Counters of the run, and ``sampled_turns``."""
        return {**super().counters(), "sampled_turns": self.sampled_turns}

    def training_state(self) -> TrainingState:
        """With the replay buffer."""
        state = super().training_state()
        state.values["buffer"], tensors = self.buffer.state()
        state.tensors |= {f"buffer/{name}": tensor for name, tensor in tensors.items()}
        return state

    def load_training_state(self, state: TrainingState) -> None:
        """Restore the replay buffer."""
        super().load_training_state(state)
        prefix = "buffer/"
        found = {name.removeprefix(prefix): t for name, t in state.tensors.items() if name.startswith(prefix)}
        self.buffer.load(state.values["buffer"], found)
