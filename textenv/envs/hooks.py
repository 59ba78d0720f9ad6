"""What policies and reward terms ask of an environment: who acted, what ended, what was recorded and paid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from textenv.envs.step_buffer import Finished, Ledger
from textenv.envs.transition import LastStep
from textenv.episodes.batch import EpisodeBatch

if TYPE_CHECKING:
    from textenv.envs.rows import Rows
    from textenv.envs.scheduler import Dealer
    from textenv.envs.token_constraints import Legality
    from textenv.prompts.prompt_set import PromptSet


class Books:
    """The part of ``TextVectorEnv`` that policies and reward terms see: one page a step.

    Shape letters: N rows, F rows that finished in the last step, S rows that acted in it.
    """

    num_envs: int
    device: torch.device
    prompts: PromptSet
    legality: Legality
    max_new_tokens: int
    _dealer: Dealer
    _pad: int
    _rows: Rows
    _recorded: dict[str, Tensor]

    policy: Any = None
    """The policy that ``bind`` was told of; KL penalties ask it for log-probs and its reference."""

    # -- before a step -----

    def bind(self, policy: Any) -> None:
        """Tell reward terms which policy plays here."""
        self.policy = policy

    def record(self, **values: Any) -> None:
        """Store what the policy knows about the coming step, (N,) each: ``log_prob`` and ``value``.

        They come back in the finished episodes as ``log_probs`` and ``values``.
        """
        tensors = {name: torch.as_tensor(value).detach().to(self.device) for name, value in values.items()}
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != (self.num_envs,):
                raise ValueError(
                    f"record({name}=...) must have shape ({self.num_envs},), got {tuple(tensor.shape)}"
                )
        self._ledger.record(tensors, self._rows.steps)
        self._recorded = tensors

    def upcoming_prompts(self, count: int) -> tuple[Tensor, Tensor]:
        """Prompts that rows will get next, as far as the queue tells; a policy can prefill them in one batch.

        Args:
            count: at most so many.

        Returns:
            (ids (m, P) int64 right-padded, lengths (m,) int64) on the CPU, m <= count; m is 0 in plain
            stepping.
        """
        ids, _, lengths = self.prompts.rows(self._dealer.upcoming(count), self._pad)
        return ids, lengths

    # -- after a step -----

    def pay(self, name: str, values: Tensor) -> None:
        """Book the reward of term ``name`` for the step: (N,) float; "raw/..." is noted, not counted."""
        if tuple(values.shape) != (self.num_envs,):
            raise ValueError(
                f"pay({name!r}, values) must have shape ({self.num_envs},), got {tuple(values.shape)}"
            )
        self._last.pay(name, values.to(self.device), self._rows, self._ledger)

    @property
    def finished(self) -> EpisodeBatch | None:
        """The F episodes that ended, in row order and without rewards; None if none did."""
        return self._last.finished_batch()

    @property
    def finished_rows(self) -> Tensor:
        """(F,) int64: the rows of ``finished``."""
        return self._last.finished_rows

    @property
    def finished_snapshot(self) -> Finished | None:
        """``finished`` as it lies in memory; it takes in what is still to be paid for this step."""
        return self._last.finished

    def take_finished(self) -> EpisodeBatch | None:
        """``finished`` with everything that was paid so far."""
        return self._last.finished_batch_with_rewards()

    @property
    def stepped(self) -> EpisodeBatch:
        """The S episodes of all rows that acted, finished or not, up to the token just chosen."""
        return self._last.stepped_batch(self._rows)

    @property
    def stepped_rows(self) -> Tensor:
        """(S,) int64: the rows of ``stepped``."""
        return self._last.acting_rows

    def recorded(self, name: str) -> Tensor | None:
        """(N,) what was recorded under ``name`` for the step, or None."""
        return self._last.recorded.get(name)

    @property
    def paid_now(self) -> Tensor:
        """(N,) float: what was paid for the step so far."""
        return self._last.paid

    # -- for the environment -----

    def _open_books(self) -> None:
        self._sampling = self.legality.to_sampling()
        self._ledger = Ledger(self.num_envs, self.max_new_tokens, self.device)
        self._begin_page()

    def _begin_page(self) -> None:
        """A reset: nobody has acted yet."""
        nobody = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self._recorded = {}
        self._turn_page(nobody, nobody, nobody)

    def _turn_page(self, acting: Tensor, terminated: Tensor, truncated: Tensor) -> None:
        """A step: these rows acted, and these of them ended, (N,) bool each."""
        self._last = LastStep(
            self.prompts, self._sampling, acting, terminated, truncated, recorded=self._recorded
        )
        self._recorded = {}

    def _close_books(self) -> None:
        del self._ledger
        self._begin_page()
