"""Methods of ``TextVectorEnv`` for policies and reward wrappers.

They bind a policy, record log-probs, add rewards and read finished episodes. Everything refers to the most
recent step. Shape letters: N rows, F rows that finished in that step, S rows that acted in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textenv.envs.step_buffer import FinishedEpisodes, StepBuffer
from textenv.envs.transition import Transition
from textenv.envs.turns import WAITING
from textenv.episodes.batch import EpisodeBatch
from textenv.utils.checks import check_choice
from textenv.utils.deprecation import warn_renamed

if TYPE_CHECKING:
    from textenv.envs.rows import Rows
    from textenv.envs.scheduler import EpisodeScheduler
    from textenv.envs.token_constraints import TokenConstraints
    from textenv.envs.turn_times import TurnTimes
    from textenv.envs.turns import Conversation, Turns
    from textenv.prompts.prompt_set import PromptSet


class EnvHooks:
    """What policies and reward wrappers call on the unwrapped environment."""

    num_envs: int
    device: torch.device
    prompts: PromptSet
    legality: TokenConstraints
    max_new_tokens: int
    _scheduler: EpisodeScheduler
    _pad: int
    _rows: Rows
    _recorded: dict[str, Tensor]
    _turns: Turns | None

    policy: Any = None
    """The policy given to ``bind``; KL penalties ask it for log-probs and its reference."""

    # -- before a step -----

    def bind(self, policy: Any) -> None:
        """Make the acting policy available to reward terms."""
        self.policy = policy

    def record(self, **values: Any) -> None:
        """Store the policy's values for the coming step, (N,) each: ``log_prob`` and ``value``.

        Finished episodes hold them as ``log_probs`` and ``values``.

        Raises:
            ValueError: if a value does not have shape (N,).
        """
        tensors = {name: torch.as_tensor(value).detach().to(self.device) for name, value in values.items()}
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != (self.num_envs,):
                raise ValueError(
                    f"record({name}=...) must have shape ({self.num_envs},), got {tuple(tensor.shape)}"
                )
        self._buffer.record(tensors, self._rows.steps)
        self._recorded = tensors

    def upcoming_prompts(self, count: int) -> tuple[Tensor, Tensor]:
        """The next prompts of a rollout, so that a policy can prefill them in one batch.

        Args:
            count: largest number of prompts.

        Returns:
            (ids (m, P) int64 right-padded, lengths (m,) int64) on the CPU, m <= count; m is 0 outside
            rollouts.
        """
        # A partner's opening follows the prompt when the episode starts.
        coming = self._scheduler.upcoming(count if self._turns is None else 0)
        ids, _, lengths = self.prompts.rows(coming, self._pad)
        return ids, lengths

    # -- after a step -----

    def add_reward(self, name: str, values: Tensor) -> None:
        """Add (N,) float ``values`` to reward term ``name`` for the last step.

        A term named "raw/..." is stored in ``reward_terms`` and is not part of the reward.

        Raises:
            ValueError: if ``values`` does not have shape (N,).
        """
        if tuple(values.shape) != (self.num_envs,):
            raise ValueError(
                f"add_reward({name!r}, values) must have shape ({self.num_envs},), got {tuple(values.shape)}"
            )
        self._transition.add_reward(name, values.to(self.device), self._rows, self._buffer)

    @property
    def finished(self) -> EpisodeBatch | None:
        """The F episodes that ended, in row order and without rewards; None if there are none."""
        return self._transition.finished_batch()

    @property
    def finished_with_rewards(self) -> EpisodeBatch | None:
        """``finished`` with the rewards that were added so far."""
        return self._transition.finished_batch_with_rewards()

    @property
    def finished_rows(self) -> Tensor:
        """(F,) int64: the rows of ``finished``."""
        return self._transition.finished_rows

    @property
    def finished_episodes(self) -> FinishedEpisodes | None:
        """``finished`` as stored by step; rewards that are added later in this step change it."""
        return self._transition.finished

    @property
    def stepped(self) -> EpisodeBatch:
        """The S episodes of all rows that acted, finished or not, up to the token just chosen."""
        return self._transition.stepped_batch(self._rows)

    @property
    def stepped_rows(self) -> Tensor:
        """(S,) int64: the rows of ``stepped``."""
        return self._transition.acting_rows

    @property
    def turn_over(self) -> Tensor:
        """(S,) bool: which of the rows of ``stepped`` ended a turn, or their episode, by this token."""
        last = self._transition
        over = last.terminated | last.truncated | (self._rows.turn_steps == 0)
        return over[last.acting_rows]

    def recorded(self, name: str) -> Tensor | None:
        """(N,) values recorded under ``name`` for the step, or None."""
        return self._transition.recorded.get(name)

    @property
    def step_reward(self) -> Tensor:
        """(N,) float: sum of the reward terms that were added for the step so far."""
        return self._transition.reward

    # -- turns -----

    @property
    def has_partner(self) -> bool:
        """Whether episodes have several turns, with a partner's replies between them."""
        return self._turns is not None

    def turn_arguments(self) -> dict[str, Any]:
        """The arguments of ``TextVectorEnv`` that concern turns, for another environment like this one."""
        if self._turns is None:
            budgets = dict.fromkeys(("partner", "max_turns", "max_turn_tokens", "max_length"))
            return {**budgets, "waiting": "block", "chat": False}
        limits = self._turns.limits
        return {
            "partner": self._turns.spec,
            "max_turns": limits.max_turns,
            "max_turn_tokens": limits.max_turn_tokens,
            "max_length": limits.max_length,
            "waiting": self.waiting,
            "chat": self._turns.prompts.chat,
        }

    @property
    def max_turn_tokens(self) -> int:
        """Most tokens of a turn."""
        return self.max_new_tokens if self._turns is None else self._turns.limits.max_turn_tokens

    def conversation(self, row: int) -> Conversation:
        """What was said in the episode of a row so far, or in the one that ended there last.

        Raises:
            ValueError: without a partner.
        """
        if self._turns is None:
            raise ValueError("an environment without a partner has no conversations")
        return self._turns.conversations[row]

    @property
    def turn_times(self) -> TurnTimes | None:
        """How much partners held up the steps; None without a partner."""
        return None if self._turns is None else self._turns.times

    @property
    def waiting(self) -> str:
        """Mode "block": a step waits for all replies; "step": the rows that wait are inactive meanwhile."""
        return "block" if self._turns is None else self._turns.waiting

    @waiting.setter
    def waiting(self, mode: str) -> None:
        check_choice("waiting", mode, WAITING)
        if self._turns is not None:
            self._turns.waiting = mode

    # -- the stream of episodes -----

    @property
    def stream_seed(self) -> int | None:
        """The seed of the episode stream, None before the first reset."""
        return self._scheduler.seed

    @property
    def next_episode_id(self) -> int:
        """Id of the next episode of the queue; a resumed run passes it as ``options["first_ticket"]``."""
        return self._scheduler.count

    @property
    def episodes_left(self) -> int:
        """Episodes of this rollout that no row has started yet."""
        return 0 if self._scheduler.queue is None else self._scheduler.queue.remaining

    @property
    def episodes_started(self) -> int:
        """Episodes of this rollout that rows have started."""
        return 0 if self._scheduler.queue is None else self._scheduler.queue.assigned

    # -- deprecated names -----

    @property
    def ticket_count(self) -> int:
        """Old name of ``next_episode_id``."""
        warn_renamed("ticket_count", "next_episode_id")
        return self.next_episode_id

    def pay(self, name: str, values: Tensor) -> None:
        """Old name of ``add_reward``."""
        warn_renamed("pay", "add_reward")
        self.add_reward(name, values)

    @property
    def paid_now(self) -> Tensor:
        """Old name of ``step_reward``."""
        warn_renamed("paid_now", "step_reward")
        return self.step_reward

    def take_finished(self) -> EpisodeBatch | None:
        """Old name of ``finished_with_rewards``."""
        warn_renamed("take_finished()", "finished_with_rewards")
        return self.finished_with_rewards

    # -- for the environment -----

    def _init_hooks(self) -> None:
        self._sampling = self.legality.to_sampling()
        self._buffer = StepBuffer(self.num_envs, self.max_new_tokens, self.device)
        self._begin_step()

    def _begin_step(self) -> None:
        """After a reset: no row has acted yet."""
        none = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self._recorded = {}
        self._end_step(none, none, none)

    def _end_step(self, acting: Tensor, terminated: Tensor, truncated: Tensor) -> None:
        """After a step: the rows that acted and the rows that ended, (N,) bool each."""
        self._transition = Transition(
            self.prompts, self._sampling, acting, terminated, truncated, recorded=self._recorded
        )
        self._recorded = {}

    def _close_hooks(self) -> None:
        del self._buffer
        self._begin_step()
