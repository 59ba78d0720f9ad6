"""Rewards made of other rewards: normalized, clipped, weighted, or an ensemble.

They contain terms; terms outside, such as a KL penalty, are not affected. A shaped reward is per token if one
of its parts is; parts per episode then count at the last action of episodes that have ended. Shape letters: B
episodes, L tokens.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from textenv.envs.step_buffer import RAW
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.registry import make_reward, register_reward
from textenv.rewards.term import RewardTerm
from textenv.scoring import checked_parts, unique_name, with_raw_parts
from textenv.utils.checks import check_choice, check_flag, check_number


class Shaped(RewardTerm):
    """Base of terms that contain terms; the parts' values are stored as ``raw/NAME``.

    Args:
        terms: the parts, as terms or specs.
    """

    nested: ClassVar[Mapping[str, str]] = {"of": "one"}

    def __init__(self, terms: Sequence[Any]) -> None:
        self.terms = [make_reward(term) for term in terms]
        # Names of each part and of its own parts among the parts of this term.
        self._own_names: list[str] = []
        self._inner_names: list[dict[str, str]] = []
        taken: list[str] = []
        for term in self.terms:
            taken.append(unique_name(term.name, taken))
            self._own_names.append(taken[-1])
            inner = {}
            for part in term.part_names:
                taken.append(unique_name(part, taken))
                inner[part] = taken[-1]
            self._inner_names.append(inner)
        self._part_names = tuple(taken)

    @abstractmethod
    def combine(self, values: Tensor) -> Tensor:
        """Shape the parts' values: (K, ...) of the K parts -> (...)."""

    @property
    def per_token(self) -> bool:  # type: ignore[override]
        """Whether a part is a reward per token."""
        return any(term.per_token for term in self.terms)

    @property
    def needs_policy(self) -> bool:  # type: ignore[override]
        """Whether a part needs the policy."""
        return any(term.needs_policy for term in self.terms)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parts' names, made unique, each followed by those of its own parts."""
        return self._part_names

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,), or (B, L) if a part is a reward per token."""
        return self.score_parts(episodes)[0]

    def score_parts(self, episodes: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The shaped score and the values of each part."""
        parts: dict[str, Tensor] = {}
        values = []
        for i, term in enumerate(self.terms):
            value, inner = self._ask(term, episodes)
            values.append(value)
            parts[self._own_names[i]] = value
            parts.update({self._inner_names[i][name]: inner_value for name, inner_value in inner.items()})
        return self.combine(torch.stack(values)), parts

    def _ask(self, term: RewardTerm, episodes: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """One part's values and parts, all (B,), or all (B, L) if this is a reward per token."""
        if not self.per_token:
            return checked_parts(term, episodes)
        if term.per_token:
            return checked_parts(term, episodes)
        # A prefix of an unfinished episode must not be scored like a whole episode.
        ended = (episodes.terminated | episodes.truncated).nonzero().squeeze(-1)
        values, parts = checked_parts(term, episodes.select(ended))

        def spread(value: Tensor) -> Tensor:
            full = torch.zeros(len(episodes), device=episodes.device)
            full[ended] = value
            return episodes.at_last_action(full)

        return spread(values), {name: spread(value) for name, value in parts.items()}

    # -- for the parts ---------------------------------------------------------------------------------------

    def bind(self, env: Any) -> None:
        """Bind every part to the environment."""
        super().bind(env)
        for term in self.terms:
            term.bind(env)

    def prepare(self, env: Any, scoring: str) -> None:
        """Call ``prepare`` of every part."""
        for term in self.terms:
            term.prepare(env, scoring)

    def update(self, episodes: EpisodeBatch) -> None:
        """Update the state of every part."""
        for term, inner in zip(self.terms, self._inner_names, strict=True):
            raw_names = {part: RAW + name for part, name in inner.items()}
            term.update(with_raw_parts(episodes, raw_names))

    def state_dict(self) -> dict[str, Any]:
        """The parts' states."""
        return {"of": [term.state_dict() for term in self.terms]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the parts' states."""
        inner = state["of"]
        if len(inner) != len(self.terms):
            raise ValueError(f"reward {self.name!r} has {len(self.terms)} parts, the state has {len(inner)}")
        for term, one in zip(self.terms, inner, strict=True):
            term.load_state_dict(one)

    def close(self) -> None:
        """Close every part."""
        for term in self.terms:
            term.close()


@register_reward("normalized")
class Normalized(Shaped):
    """Another reward minus its running mean, divided by its running standard deviation.

    The statistics cover all episodes so far (all actions for a reward per token) and are updated after each
    rollout, so a rollout is scored with those of the earlier ones. Before the first update the reward is
    unchanged.

    Args:
        of: the reward.
        center: subtract the mean.
        scale: divide by the standard deviation.
        clip: clip the result to [-clip, clip].
        epsilon: added to the standard deviation.
    """

    def __init__(
        self,
        of: Any,
        *,
        center: bool = True,
        scale: bool = True,
        clip: float | None = None,
        epsilon: float = 1e-6,
    ) -> None:
        check_flag("normalized: center", center)
        check_flag("normalized: scale", scale)
        if clip is not None:
            check_number("normalized: clip", clip, 0)
        check_number("normalized: epsilon", epsilon, 0)
        super().__init__([of])
        self.center, self.scale, self.clip, self.epsilon = center, scale, clip, epsilon
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    @property
    def std(self) -> float:
        """Running standard deviation, 1 while fewer than two different values were seen."""
        variance = self.squares / self.count if self.count > 1 else 0.0
        return math.sqrt(variance) if variance > 0 else 1.0

    def combine(self, values: Tensor) -> Tensor:
        """Normalise with the present statistics."""
        value = values[0]
        if self.center:
            value = value - self.mean
        if self.scale and self.count:
            value = value / (self.std + self.epsilon)
        return value if self.clip is None else value.clamp(-self.clip, self.clip)

    def update(self, episodes: EpisodeBatch) -> None:
        """Add these episodes to the running statistics (Chan et al. 1979, merging of two samples)."""
        super().update(episodes)
        raw = episodes.reward_terms.get(RAW + self._own_names[0])
        if raw is None:
            raw = self._ask(self.terms[0], episodes)[0]
        elif not self.per_token:
            raw = raw.sum(-1)
        sample = (raw[episodes.action_mask] if self.per_token else raw).double()
        if not len(sample):
            return
        count, mean = len(sample), float(sample.mean())
        squares = float((sample - mean).square().sum())
        total, shift = self.count + count, mean - self.mean
        self.squares += squares + shift * shift * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        """Count, mean and sum of squared deviations, and the part's state."""
        return {**super().state_dict(), "count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the statistics."""
        super().load_state_dict(state)
        self.count = int(state["count"])
        self.mean, self.squares = float(state["mean"]), float(state["squares"])


@register_reward("clipped")
class Clipped(Shaped):
    """Another reward clipped to [low, high].

    Args:
        of: the reward.
        low: lower bound, or None.
        high: upper bound, or None.
    """

    def __init__(self, of: Any, low: float | None = None, high: float | None = None) -> None:
        if low is None and high is None:
            raise ValueError("clipped: needs low, high or both, got neither")
        for field, value in (("low", low), ("high", high)):
            if value is not None:
                check_number(f"clipped: {field}", value)
        if low is not None and high is not None and not low <= high:
            raise ValueError(f"clipped: low must be <= high ({high}), got {low}")
        super().__init__([of])
        self.low, self.high = low, high

    def combine(self, values: Tensor) -> Tensor:
        """Clamp."""
        return values[0].clamp(self.low, self.high)


@register_reward("weighted")
class Weighted(Shaped):
    """Another reward times a constant.

    Args:
        of: the reward.
        weight: the constant; a negative one turns a score into a penalty.
    """

    def __init__(self, of: Any, weight: float) -> None:
        check_number("weighted: weight", weight)
        super().__init__([of])
        self.weight = weight

    def combine(self, values: Tensor) -> Tensor:
        """Multiply."""
        return self.weight * values[0]


@register_reward("ensemble")
class Ensemble(Shaped):
    """Several rewards combined: their mean, their minimum, or their mean minus k standard deviations.

    Pessimism against over-optimised reward models: Coste et al. 2024, "Reward model ensembles help mitigate
    overoptimization". The standard deviation is over the K parts (divided by K).

    Args:
        of: the rewards.
        how: "mean", "min" or "mean-std".
        k: weight of the standard deviation, for "mean-std".
    """

    nested: ClassVar[Mapping[str, str]] = {"of": "many"}

    def __init__(self, of: Sequence[Any], how: str = "mean", k: float = 1.0) -> None:
        check_choice("ensemble: how", how, ("mean", "min", "mean-std"))
        check_number("ensemble: k", k, 0)
        if not isinstance(of, list | tuple) or not of:
            raise ValueError(f"ensemble: of must be a list of rewards, got {of!r}")
        super().__init__(of)
        self.how, self.k = how, k

    def combine(self, values: Tensor) -> Tensor:
        """Reduce over the parts."""
        if self.how == "min":
            return values.amin(0)
        mean = values.mean(0)
        return mean if self.how == "mean" else mean - self.k * values.std(0, correction=0)
