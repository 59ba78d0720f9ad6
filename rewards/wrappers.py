"""The Gymnasium wrappers that add a reward term: one for single environments, one for vectorized ones.

Shape letters: N environment rows, F rows that finished in a step, S rows that acted in it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch import Tensor

from textenv.rewards.registry import OBJECT_PREFIX, make_reward, spec_of
from textenv.rewards.term import RewardTerm
from textenv.scoring import (
    SCORING_MODES,
    RewardError,
    checked_parts,
    checked_values,
    quote,
    raised_by,
    raw_part_names,
    says_enough,
    scored_by,
    unique_name,
    walk,
)

_NEEDED = ("bind", "tokenizer", "add_reward")


class RewardWrapperMixin:
    """A term with a unique name in the stack of wrappers, scored in ``step`` or deferred."""

    term: RewardTerm
    """The reward."""
    name: str
    """Its name in statistics and ``reward_terms``, unique in the stack: "brevity", "brevity#2"."""
    raw_names: dict[str, str]
    """Name of a part of the term -> its name in ``reward_terms``."""
    _scoring = "immediate"

    def _join(self, env: Any, term: RewardTerm, kind: str) -> None:
        """Bind the term to the environment below and choose a name."""
        base = env.unwrapped
        missing = [name for name in _NEEDED if not hasattr(base, name)]
        if missing:
            raise TypeError(
                f"{kind} needs a text environment below it, got {type(base).__name__} "
                f"without {missing[0]!r}; "
                "for a SyncVectorEnv or AsyncVectorEnv put the reward into each single environment"
            )
        taken: list[str] = []
        for layer in walk(env):
            if isinstance(layer, RewardWrapperMixin):
                taken += [layer.name, *layer.raw_names.values()]
        self.term = term
        self.name = unique_name(term.name, taken)
        self.raw_names = raw_part_names(term, taken)
        term.bind(base)

    @property
    def scoring(self) -> str:
        """Either "immediate" (in ``step``) or "deferred" (by ``textenv.scoring.score_episodes``)."""
        return self._scoring

    @scoring.setter
    def scoring(self, mode: str) -> None:
        if mode not in SCORING_MODES:
            raise ValueError(f"scoring must be one of {', '.join(SCORING_MODES)}, got {mode!r}")
        self._scoring = mode

    @torch.no_grad()
    def _add_step_reward(self, base: Any, num_envs: int) -> Tensor | None:
        """Add the term's reward for the last step: (N,) float32, or None if no row gets one."""
        term = self.term
        if term.per_token:
            rows = base.stepped_rows
            with scored_by(base, self.name):
                values, parts = self._at_step(base)
        else:
            episodes = base.finished
            if episodes is None:
                return None
            rows = base.finished_rows
            with scored_by(base, self.name):
                values, parts = checked_parts(term, episodes)
        if not len(rows):
            return None

        def scatter(value: Tensor) -> Tensor:
            full = torch.zeros(num_envs, device=rows.device)
            full[rows] = value.to(rows.device)
            return full

        for part, value in parts.items():
            base.add_reward(self.raw_names[part], scatter(value))
        reward = scatter(values)
        base.add_reward(self.name, reward)
        return reward

    def _at_step(self, base: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """A per-token term's values for the last token: (S,), and its parts."""
        term = self.term
        if not len(base.stepped_rows):
            nothing = torch.zeros(0)
            return nothing, {part: nothing for part in term.part_names}
        try:
            quick = term.step_parts(base)
        except Exception as error:
            if says_enough(error):
                raise
            raise raised_by(term, error, f"at a step of {quote(base.stepped, 0, term)}") from error
        if quick is None:
            values, parts = checked_parts(term, base.stepped)
            last = base.stepped.last_action.unsqueeze(-1)
            here = {part: value.gather(1, last).squeeze(-1) for part, value in parts.items()}
            return values.gather(1, last).squeeze(-1), here
        values, parts = quick
        for label, value in ((term.name, values), *parts.items()):
            if tuple(value.shape) != (len(base.stepped_rows),):
                raise RewardError(
                    f"reward {term.name!r} must give shape ({len(base.stepped_rows)},) for a step, got "
                    f"{tuple(value.shape)} ({label})"
                )
        episodes = base.stepped
        clean = {part: checked_values(term, value, episodes, part) for part, value in parts.items()}
        return checked_values(term, values, episodes, term.name), clean


class RewardWrapper(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs, RewardWrapperMixin):
    """Add a reward term to a single environment.

    Args:
        env: a text environment, wrapped or not.
        term: a reward term or its spec.

    Raises:
        TypeError: if there is no text environment below.
        ValueError: if the spec is malformed.
    """

    def __init__(self, env: gym.Env[Any, Any], term: Any) -> None:
        term = make_reward(term)
        RecordConstructorArgs.__init__(self, term=_written(term))
        gym.Wrapper.__init__(self, env)
        self._join(env, term, "RewardWrapper")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Let the term check the environment, then reset it."""
        self.term.prepare(self.unwrapped, self.scoring)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and add the term's reward unless its scoring is deferred."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.scoring == "immediate":
            added = self._add_step_reward(self.unwrapped, 1)
            if added is not None:
                reward = float(reward) + float(added[0])
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Close the term, then the environment."""
        base: Any = self.unwrapped
        base.refuse_while_scored("close")
        self.term.close()
        super().close()


class VectorRewardWrapper(VectorWrapper[Any, Any, Any, Any, Any], RecordConstructorArgs, RewardWrapperMixin):
    """Add a reward term to a vectorized environment.

    Args:
        env: a text environment, wrapped or not.
        term: a reward term or its spec.

    Raises:
        TypeError: if there is no text environment below.
        ValueError: if the spec is malformed.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], term: Any) -> None:
        term = make_reward(term)
        RecordConstructorArgs.__init__(self, term=_written(term))
        VectorWrapper.__init__(self, env)
        self._join(env, term, "VectorRewardWrapper")
        base: Any = self.unwrapped
        self.autoreset_mode: AutoresetMode = base.autoreset_mode
        """When ended rows start a new episode; Gymnasium's wrappers do not forward this attribute."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Let the term check the environment, then reset it."""
        self.term.prepare(self.unwrapped, self.scoring)
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and add the term's reward unless its scoring is deferred."""
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        if self.scoring == "immediate":
            added = self._add_step_reward(self.unwrapped, self.num_envs)
            if added is not None:
                rewards = _add(rewards, added)
        return observations, rewards, terminated, truncated, info

    def close(self, **kwargs: Any) -> None:
        """Close the term, then the environment."""
        base: Any = self.unwrapped
        base.refuse_while_scored("close")
        self.term.close()
        super().close(**kwargs)


def wrap_reward(env: Any, term: Any) -> RewardWrapper | VectorRewardWrapper:
    """Wrap an environment, single or vectorized, so that its steps add a reward.

    Args:
        env: a text environment, wrapped or not.
        term: a reward term or its spec.

    Raises:
        TypeError: if ``env`` is not a text environment.
        ValueError: if the spec is malformed.

    Example:
        >>> from textenv.tasks.make import make_vec_env
        >>> envs = make_vec_env(2, task="probe-count", rewards=[])
        >>> wrap_reward(envs, "length").name
        'length'
    """
    return VectorRewardWrapper(env, term) if isinstance(env, VectorEnv) else RewardWrapper(env, term)


def _add(rewards: Any, added: Tensor) -> Any:
    """The sum, in the array type and dtype of ``rewards``."""
    if isinstance(rewards, Tensor):
        return rewards + added.to(rewards)
    return rewards + added.cpu().numpy().astype(np.asarray(rewards).dtype)


def _written(term: RewardTerm) -> Any:
    """The term's spec for the environment's spec, or a marker if it has none."""
    return spec_of(term) or f"{OBJECT_PREFIX}{term.name}"
