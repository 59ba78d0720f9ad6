"""Deferred scoring of finished episodes in large batches, and inspection of a stack of wrappers.

Reward terms are recognised by ``score_parts`` and reward wrappers by ``term`` and ``name``; this module
imports no particular reward. Shape letters: B episodes, L tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from textenv.envs.step_buffer import PARTNER, RAW, counts
from textenv.episodes.batch import EpisodeBatch
from textenv.utils.deprecation import warn_renamed

SCORING_MODES = ("immediate", "deferred")
FLOAT32_MAX = float(torch.finfo(torch.float32).max)
"""Largest reward: rewards are kept as float32."""


class RewardError(RuntimeError):
    """A reward could not be computed; the message names it and, where known, the prompt and completion."""


# -- the wrapper stack -------------------------------------------------------------------------------------


def walk(envs: Any) -> Iterator[Any]:
    """Every layer of a wrapped environment, outermost first, the environment itself last."""
    layer = envs
    while isinstance(layer, gym.Wrapper | gym.vector.VectorWrapper):
        yield layer
        layer = layer.env
    yield layer


def reward_wrappers(envs: Any) -> list[Any]:
    """The layers with a reward term, innermost first (the order in which they add rewards)."""
    return [layer for layer in walk(envs) if hasattr(layer, "term") and hasattr(layer, "scoring")][::-1]


def foreign_reward_wrappers(envs: Any) -> list[Any]:
    """The layers that change rewards, or may, and are not reward terms, outermost first.

    Such a layer must see the reward of every step, so its stack can only be scored immediately. This holds
    for Gymnasium's reward wrappers (ClipReward, TransformReward, NormalizeReward, ...) and is assumed of
    every other library's wrapper that overrides ``step``: deferred scoring would bypass it without notice.
    """
    return [layer for layer in walk(envs) if _may_change_rewards(layer)]


def _may_change_rewards(layer: Any) -> bool:
    cls = type(layer)
    if hasattr(layer, "term") and hasattr(layer, "scoring"):
        return False
    if isinstance(layer, gym.RewardWrapper | gym.vector.VectorRewardWrapper):
        return True
    if not isinstance(layer, gym.Wrapper | gym.vector.VectorWrapper):
        return False  # the environment itself
    step_owner = next(base for base in cls.__mro__ if "step" in vars(base))
    if step_owner.__module__.startswith("textenv."):
        return False
    # Of Gymnasium's wrappers that override step directly, only NormalizeReward changes rewards; it is no
    # RewardWrapper.
    return step_owner.__name__ == "NormalizeReward" or not step_owner.__module__.startswith("gymnasium.")


def set_scoring(wrappers: Iterable[Any], mode: str) -> None:
    """Switch reward wrappers to "immediate" (score in ``step``) or "deferred" (``score_episodes``).

    Raises:
        ValueError: if ``mode`` is neither.
    """
    if mode not in SCORING_MODES:
        raise ValueError(f"scoring must be one of {', '.join(SCORING_MODES)}, got {mode!r}")
    for wrapper in wrappers:
        wrapper.scoring = mode


def unique_name(name: str, taken: Iterable[str]) -> str:
    """``name``, or the first free one of ``name#2``, ``name#3``, ...

    >>> unique_name("brevity", ["brevity", "brevity#2"])
    'brevity#3'
    """
    taken = set(taken)
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}#{count}"
    return candidate


# -- scoring -----------------------------------------------------------------------------------------------


@torch.no_grad()
def score_episodes(batch: EpisodeBatch, wrappers: Sequence[Any]) -> EpisodeBatch:
    """Compute all rewards of finished episodes: the same as the wrappers would add step by step.

    Replaces ``batch.reward_terms`` (one entry per wrapper, and ``raw/NAME`` for the inputs of shaped rewards)
    and ``batch.rewards``, their sum. The rewards of a partner's replies, term "partner", stay.

    Args:
        batch: B episodes; changed in place.
        wrappers: reward wrappers, innermost first, or reward terms. An empty list means no reward.

    Returns:
        ``batch``.

    Raises:
        RewardError: if a term fails, or gives a wrong shape, NaN or infinity.
    """
    terms: dict[str, Tensor] = {}
    rewards = torch.zeros(batch.input_ids.shape, device=batch.device)
    if PARTNER in batch.reward_terms:  # part of the episode, as its replies are
        terms[PARTNER] = batch.reward_terms[PARTNER]
        rewards = rewards + terms[PARTNER]
    for wrapper in wrappers:
        term = getattr(wrapper, "term", wrapper)
        name = wrapper.name if wrapper is not term else unique_name(term.name, terms)
        raw_names = getattr(wrapper, "raw_names", None) or raw_part_names(term, terms)
        with scored_by(getattr(wrapper, "unwrapped", None), name):
            values, parts = checked_parts(term, batch)
        terms[name] = placed(values, batch)
        rewards = rewards + terms[name]
        for part, value in parts.items():
            terms[raw_names[part]] = placed(value, batch)
    if not bool(rewards.isfinite().all()):
        row = int((~rewards.isfinite()).any(-1).nonzero()[0])
        names = ", ".join(name for name in terms if counts(name))
        raise RewardError(f"the sum of the rewards {names} is beyond float32 for {quote(batch, row)}")
    batch.reward_terms = terms
    batch.rewards = rewards
    return batch


def score(batch: EpisodeBatch, wrappers: Sequence[Any]) -> EpisodeBatch:
    """Old name of ``score_episodes``."""
    warn_renamed("textenv.scoring.score", "textenv.scoring.score_episodes")
    return score_episodes(batch, wrappers)


@contextmanager
def scored_by(env: Any, name: str) -> Iterator[None]:
    """While the block runs, an environment cannot be reset, stepped or closed: its reward is computed.

    Args:
        env: an unwrapped environment, or None.
        name: of the reward.
    """
    env = getattr(env, "rows", env)  # a single environment has one with one row underneath
    if env is None:
        yield
        return
    before = getattr(env, "scored_by", None)
    env.scored_by = name
    try:
        yield
    finally:
        env.scored_by = before


@torch.no_grad()
def update(batch: EpisodeBatch, wrappers: Sequence[Any]) -> None:
    """Update the state of every term (running statistics, adaptive coefficients) from scored episodes.

    Args:
        batch: B scored episodes in order of id.
        wrappers: reward wrappers, innermost first, or reward terms.
    """
    if not len(batch):
        return
    taken: list[str] = []
    for wrapper in wrappers:
        term = getattr(wrapper, "term", wrapper)
        raw_names = getattr(wrapper, "raw_names", None) or raw_part_names(term, taken)
        taken += [getattr(wrapper, "name", ""), *raw_names.values()]
        term.update(with_raw_parts(batch, raw_names))


def state_dict(wrappers: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The state of every term by wrapper name: JSON values."""
    return {wrapper.name: wrapper.term.state_dict() for wrapper in wrappers}


def load_state_dict(wrappers: Sequence[Any], state: Mapping[str, dict[str, Any]]) -> None:
    """Restore the result of ``state_dict``.

    Raises:
        ValueError: if the names of the rewards differ.
    """
    names = [wrapper.name for wrapper in wrappers]
    if set(names) != set(state):
        raise ValueError(
            f"the state is for the rewards {sorted(state)}, this environment has {sorted(names)}"
        )
    for wrapper in wrappers:
        wrapper.term.load_state_dict(state[wrapper.name])


# -- one term's numbers ------------------------------------------------------------------------------------


def raw_part_names(term: Any, taken: Iterable[str]) -> dict[str, str]:
    """Name of each part of a term -> its unique name in ``reward_terms``, with the prefix ``raw/``."""
    names: dict[str, str] = {}
    for part in term.part_names:
        names[part] = unique_name(RAW + part, [*taken, *names.values()])
    return names


def with_raw_parts(batch: EpisodeBatch, raw_names: Mapping[str, str]) -> EpisodeBatch:
    """A view of ``batch`` whose ``reward_terms`` holds one term's parts, under that term's own names.

    Args:
        batch: scored episodes; not changed.
        raw_names: part name -> its key in ``batch.reward_terms``.
    """
    parts = {
        RAW + part: batch.reward_terms[key] for part, key in raw_names.items() if key in batch.reward_terms
    }
    view = copy.copy(batch)
    view.reward_terms = parts
    return view


def checked_parts(term: Any, episodes: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """``term.score_parts(episodes)``, checked, as float32 on the episodes' device.

    Args:
        term: a reward term.
        episodes: B episodes; if B = 0 the term is not called.

    Returns:
        Values, (B,) or for a per-token term (B, L) with zeros outside the action mask, and parts of the same
        shape.

    Raises:
        RewardError: if the term gives a wrong type or shape, an undeclared part, NaN or infinity.
    """
    expected = episodes.input_ids.shape if term.per_token else episodes.input_ids.shape[:1]
    if not len(episodes):
        empty = torch.zeros(expected, device=episodes.device)
        return empty, {part: empty for part in term.part_names}
    values, parts = _asked(term, episodes)
    if set(parts) != set(term.part_names):
        raise RewardError(
            f"reward {term.name!r} gave the parts {sorted(parts)}, "
            f"expected its part_names {sorted(term.part_names)}"
        )
    if not isinstance(values, Tensor):
        raise RewardError(f"reward {term.name!r} must give a tensor, got {type(values).__name__}")
    if values.shape != expected:
        hint = ""
        if values.shape == episodes.input_ids.shape:
            hint = "; a term with a reward per token sets per_token = True"
        raise RewardError(
            f"reward {term.name!r} must give shape {tuple(expected)}, got {tuple(values.shape)}{hint}"
        )
    for part, value in parts.items():
        if not isinstance(value, Tensor) or value.shape != expected:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise RewardError(
                f"reward {term.name!r}: part {part!r} must have shape {tuple(expected)}, got {got}"
            )
    clean = {part: _clean(term, value, episodes, f"{RAW}{part}") for part, value in parts.items()}
    return _clean(term, values, episodes, term.name), clean


def _asked(term: Any, episodes: EpisodeBatch) -> Any:
    """Call ``term.score_parts``; an error of the term becomes one that names it and the episode."""
    try:
        return term.score_parts(episodes)
    except Exception as error:
        if says_enough(error):
            raise
        raise raised_by(term, error, _blamed(term, episodes)) from error


def says_enough(error: Exception) -> bool:
    """Whether an error of a term needs no further context: the library's own errors and out of memory."""
    own = type(error).__module__.partition(".")[0] == "textenv"
    return own or isinstance(error, MemoryError | torch.OutOfMemoryError)


def raised_by(term: Any, error: BaseException, where: str) -> RewardError:
    """An error that names the term that raised ``error``."""
    return RewardError(f"reward {term.name!r} raised {type(error).__name__}: {error} {where}")


def _blamed(term: Any, episodes: EpisodeBatch) -> str:
    """The episode at which a term fails, found by bisection; or the batch size if no half fails."""
    rows = list(range(len(episodes)))
    while len(rows) > 1:
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            try:
                term.score_parts(episodes.select(half))
            except Exception:
                rows = half
                break
        else:
            return f"for a batch of {len(rows)} episodes, but for neither half of them"
    return f"for {quote(episodes, rows[0], term)}"


def _clean(term: Any, values: Tensor, episodes: EpisodeBatch, label: str) -> Tensor:
    """As finite float32 on the device, zero outside the action mask."""
    return checked_values(
        term, values, episodes, label, where=episodes.action_mask if values.dim() == 2 else None
    )


def checked_values(
    term: Any, values: Tensor, episodes: EpisodeBatch, label: str, *, where: Tensor | None = None
) -> Tensor:
    """Values of a term as float32 on the episodes' device.

    Args:
        term: their term.
        values: (B,) or (B, L).
        episodes: B episodes.
        label: name of the values, for errors.
        where: (B, L) bool; values elsewhere become 0.

    Raises:
        RewardError: if a number is complex, NaN, infinite or beyond float32.
    """
    if values.is_complex():
        raise RewardError(
            f"reward {term.name!r} must give real numbers, got {values.dtype} ({label}) "
            f"for {quote(episodes, 0, term)}"
        )
    if values.is_meta:
        raise RewardError(f"reward {term.name!r} gave a tensor on the meta device, without numbers ({label})")
    values = values.detach()
    exact = values if where is None else torch.where(where.to(values.device), values, 0)
    clean = exact.to(episodes.device, torch.float32)
    if not bool(clean.isfinite().all()):
        place = (~clean.isfinite()).nonzero()[0].tolist()
        given = float(exact[tuple(place)])
        beyond = f", beyond float32 ({FLOAT32_MAX:.3g})" if math.isfinite(given) else ""
        raise RewardError(
            f"reward {term.name!r} gave {given}{beyond} ({label})"
            f"{f' at column {place[1]}' if len(place) > 1 else ''} for {quote(episodes, place[0], term)}"
        )
    return clean


def placed(values: Tensor, episodes: EpisodeBatch) -> Tensor:
    """(B,) at the last actions, or (B, L) as it is: -> (B, L)."""
    return values if values.dim() == 2 else episodes.at_last_action(values)


def quote(episodes: EpisodeBatch, row: int, term: Any = None) -> str:
    """Prompt and completion of one episode, for errors: text if the term has a tokenizer, else ids."""
    tokenizer = getattr(term, "bound_tokenizer", None)
    one = episodes.select([row])
    if tokenizer is None:
        start = int(one.prompt_lengths[0])
        ids = one.input_ids[0].tolist()
        return f"prompt ids {ids[:start]}, completion ids {ids[start:]}"
    prompt, completion = one.texts(tokenizer)[0]
    return f"prompt {prompt!r}, completion {completion!r}"
