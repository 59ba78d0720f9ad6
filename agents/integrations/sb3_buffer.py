"""A rollout buffer for Stable-Baselines3 that keeps sequences, not one prefix per token.

SB3's own buffer stores the observation of every step, and its algorithms run the model on each: T prefixes
for an episode of T tokens. Here each stretch of an episode is stored once, and ``get`` returns whole
stretches with the mask of their actions; everything else is per action and flat, as SB3's losses need it.
With a partner each turn is a stretch, with everything before it as its prompt.
Shape letters: T steps of a rollout, N environment rows, S stretches, A actions, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples


class SequenceRolloutBuffer(DictRolloutBuffer):
    """Stretches of episodes, each stored once.

    A minibatch holds whole stretches, in random order, of at most ``batch_size`` actions together (or one
    longer stretch). Its observations are those of ``LMActorCriticPolicy``'s sequences: ``input_ids`` with the
    actions in place, ``attention_mask``, ``prompt_length`` and ``action_mask``; its other fields are (A,) in
    the order of the mask.
    """

    def reset(self) -> None:
        """Empty the buffer."""
        shape = (self.buffer_size, self.n_envs)
        self.observations = {}
        self.actions = np.zeros((*shape, self.action_dim), dtype=np.int64)
        names = ("rewards", "returns", "episode_starts", "values", "log_probs", "advantages")
        for name in names:
            setattr(self, name, np.zeros(shape, dtype=np.float32))
        self.generator_ready = False
        self.pos, self.full = 0, False
        length = self.obs_shape["input_ids"][0]
        self._ids = np.zeros((self.n_envs, length), dtype=np.int64)
        self._prompt = np.zeros(self.n_envs, dtype=np.int64)
        self._column = np.zeros(self.n_envs, dtype=np.int64)
        self._since = np.zeros(self.n_envs, dtype=np.int64)
        self._stored: dict[str, list[np.ndarray]] = {}

    def add(  # type: ignore[override]
        self,
        obs: dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        """Take in one step of all rows; see ``DictRolloutBuffer.add``.

        Raises:
            ValueError: if an observation does not go on where the one before it ended.
        """
        lengths = np.asarray(obs["attention_mask"]).sum(-1, dtype=np.int64)
        prompt = np.asarray(obs["prompt_length"]).reshape(-1)
        expected = self._column + self.pos - self._since
        # A partner's reply was appended, so a turn begins at the end of this observation.
        replied = (lengths > expected) & (prompt == lengths)
        begins = np.asarray(episode_start).astype(bool) | (self.pos == 0) | replied
        broken = ~begins & (lengths != expected)
        if broken.any():
            row = int(broken.argmax())
            raise ValueError(
                f"row {row} must hold {expected[row]} tokens at step {self.pos} of the rollout, "
                f"got {lengths[row]}; sequences need an environment with autoreset='same_step'"
            )
        if self.pos:
            self._store(begins)
        self._column = np.where(begins, lengths, self._column)
        self._since = np.where(begins, self.pos, self._since)
        self._prompt = np.where(begins, prompt, self._prompt)
        self._ids[begins] = np.asarray(obs["input_ids"])[begins]
        chosen = np.asarray(action).reshape(self.n_envs)
        self._ids[np.arange(self.n_envs), lengths] = chosen

        self.actions[self.pos] = chosen[:, None]
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value.detach().cpu().numpy().flatten()
        self.log_probs[self.pos] = log_prob.detach().cpu().numpy().flatten()
        self.pos += 1
        self.full = self.pos == self.buffer_size
        if self.full:
            self._store(np.ones(self.n_envs, dtype=bool))

    def _store(self, ended: np.ndarray) -> None:
        """Put away the stretches of the rows ``ended`` (N,)."""
        rows = np.flatnonzero(ended)
        facts = {
            "ids": self._ids[rows].copy(),
            "prompt": self._prompt[rows],
            "column": self._column[rows],
            "row": rows,
            "since": self._since[rows],
            "count": self.pos - self._since[rows],
        }
        for name, value in facts.items():
            self._stored.setdefault(name, []).append(value)

    def get(self, batch_size: int | None = None) -> Iterator[DictRolloutBufferSamples]:  # type: ignore[override]
        """Minibatches of whole stretches in random order; None = all of them at once.

        Raises:
            ValueError: if the rollout is not complete.
        """
        if not self.full:
            raise ValueError(f"the rollout must be {self.buffer_size} steps long, got {self.pos}")
        if not self.generator_ready:
            self._stretches = {name: np.concatenate(parts) for name, parts in self._stored.items()}
            self.generator_ready = True
        order = np.random.permutation(len(self._stretches["row"]))
        sizes = self._stretches["count"][order].tolist()
        limit = self.buffer_size * self.n_envs if batch_size is None else batch_size
        start = actions = 0
        for stop, size in enumerate(sizes):
            if stop > start and actions + size > limit:
                yield self._samples(order[start:stop])
                start, actions = stop, 0
            actions += size
        yield self._samples(order[start:])

    def _samples(self, index: np.ndarray) -> DictRolloutBufferSamples:
        """The stretches ``index`` (s,), trimmed to the longest."""
        found = {name: values[index] for name, values in self._stretches.items()}
        counts, begin = found["count"], found["column"]
        end = begin + counts
        columns = np.arange(int(end.max()))
        # The place of each action in the (T, N) arrays, stretch by stretch.
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        place = (np.repeat(found["since"], counts) + within, np.repeat(found["row"], counts))
        observations: dict[str, Any] = {
            "input_ids": found["ids"][:, : len(columns)],
            "attention_mask": columns < end[:, None],
            "prompt_length": found["prompt"],
            "action_mask": (columns >= begin[:, None]) & (columns < end[:, None]),
        }
        return DictRolloutBufferSamples(
            observations={name: self.to_torch(value) for name, value in observations.items()},
            actions=self.to_torch(self.actions[place].astype(np.float32)),
            old_values=self.to_torch(self.values[place]),
            old_log_prob=self.to_torch(self.log_probs[place]),
            advantages=self.to_torch(self.advantages[place]),
            returns=self.to_torch(self.returns[place]),
        )
