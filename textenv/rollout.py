"""The rollout: play exactly n episodes, refill rows as they finish, and return the episodes sorted by id."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from textenv import scoring as scorer
from textenv.envs.guards import played
from textenv.envs.step_buffer import FinishedEpisodes, to_episodes
from textenv.envs.vector_env import TextVectorEnv
from textenv.episodes.batch import EpisodeBatch
from textenv.modeling.model_checks import check_not_nan
from textenv.utils.checks import check_at_least, check_choice, check_flag

if TYPE_CHECKING:
    from rich.progress import Progress

FOREIGN = "other-wrappers"
"""Name of the reward term for what other libraries' wrappers add."""
SCORING = ("auto", "deferred", "immediate")


@torch.no_grad()
def collect(
    envs: Any,
    policy: Any,
    episodes: int,
    *,
    scoring: str = "auto",
    seed: int | None = None,
    first_ticket: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
    score: bool = True,
    update_terms: bool = True,
    waiting: str = "auto",
) -> EpisodeBatch:
    """Play the next ``episodes`` episodes to their end.

    Args:
        envs: a native ``TextVectorEnv``, wrapped or not, in same-step or next-step autoreset mode.
        policy: has ``act(obs, key=..., active=...) -> (actions, {"log_prob": (N,), "value": (N,)})``, or is a
            plain callable ``(obs, info) -> actions``.
        episodes: n, of all ranks together; the first n that *start*, not the first n that finish.
        scoring: "deferred" scores the finished episodes in large batches after the rollout; "immediate"
            scores in every step; "auto" is deferred unless another library's wrapper changes rewards.
        seed: restart the stream of episodes with this seed; None continues it.
        first_ticket: id of the first episode (for resumed runs).
        rank: this process, which plays every ``world_size``-th episode (or group of episodes on one prompt).
        world_size: number of processes.
        progress: show a progress bar.
        score: False skips deferred scoring (``textenv.scoring.score_episodes``) and ``update``.
        update_terms: update adaptive terms from these episodes (off in evaluation).
        waiting: rows that wait for a partner's reply: "step" lets the others go on, "block" waits for all;
            "auto" is "step". The episodes are the same.

    Returns:
        The episodes in order of id, with rewards, and with log-probs and values if the policy gives them.

    Raises:
        TypeError: if ``envs`` is not a native vector environment.
        ValueError: if an argument is out of range, or the policy's logits are not finite.
        RuntimeError: if ``envs`` is in use by another rollout, or a reward of it is being computed.
    """
    base = getattr(envs, "unwrapped", envs)
    if not isinstance(base, TextVectorEnv):
        raise TypeError(
            "envs must be the native vector environment (gym.make_vec without vectorization_mode), "
            f"got {type(base).__name__}"
        )
    if not (callable(policy) or hasattr(policy, "act")):
        raise TypeError(f"policy must have act(...) or be callable, got {type(policy).__name__}")
    for name, flag in (("progress", progress), ("score", score), ("update_terms", update_terms)):
        check_flag(name, flag)
    check_at_least("world_size", world_size, 1)
    check_at_least("episodes", episodes, 1 if world_size == 1 else world_size * base.samples_per_prompt)
    check_choice("scoring", scoring, SCORING)
    check_choice("waiting", waiting, ("auto", "step", "block"))
    if base.autoreset == "disabled":
        raise ValueError("autoreset must be 'same_step' or 'next_step' in a rollout, got 'disabled'")
    options: dict[str, Any] = {"episodes": episodes, "rank": rank, "world_size": world_size}
    if first_ticket is not None:
        options["first_ticket"] = first_ticket

    base.refuse_while_scored("collect")
    wrappers = scorer.reward_wrappers(envs)
    foreign = scorer.foreign_reward_wrappers(envs)
    deferred = _defer(foreign, scoring)
    before = [wrapper.scoring for wrapper in wrappers]
    waiting_before = base.waiting
    if hasattr(policy, "attach"):
        policy.attach(base)
    try:
        scorer.set_scoring(wrappers, "deferred" if deferred else "immediate")
        base.waiting = "step" if waiting == "auto" else waiting
        batch = _play(envs, base, policy, seed, options, add_foreign=bool(foreign), progress=progress)
    finally:
        for wrapper, mode in zip(wrappers, before, strict=True):
            wrapper.scoring = mode
        base.waiting = waiting_before
    if batch.log_probs is not None:
        check_not_nan(batch.log_probs, policy)
    if hasattr(policy, "sampling"):
        batch.sampling = {**policy.sampling(), **batch.sampling}
    if score and deferred and wrappers:
        scorer.score_episodes(batch, wrappers)
    if score and update_terms:
        scorer.update(batch, wrappers)
    return batch


def _defer(foreign: Sequence[Any], scoring: str) -> bool:
    """Whether to score after the rollout, given the wrappers that this would bypass."""
    if not foreign:
        return scoring != "immediate"
    names = ", ".join(type(wrapper).__name__ for wrapper in foreign)
    if scoring == "deferred":
        raise ValueError(
            f"scoring must be 'auto' or 'immediate' where {names} changes the rewards, got 'deferred'"
        )
    if scoring == "auto":
        warnings.warn(
            f"{names} changes rewards in every step, so scoring is immediate (slower)", stacklevel=3
        )
    return False


def _play(
    envs: Any,
    base: TextVectorEnv,
    policy: Any,
    seed: int | None,
    options: dict[str, Any],
    *,
    add_foreign: bool,
    progress: bool,
) -> EpisodeBatch:
    """The loop: act, record, step, collect finished episodes."""
    obs, info = envs.reset(seed=seed, options=options)
    total = base.episodes_started + base.episodes_left
    done: list[FinishedEpisodes] = []
    finished = 0
    bar = _Bar(total) if progress else None
    try:
        with played(base):
            while finished < total:
                actions = _act(policy, obs, info, base)
                obs, rewards, _, _, info = envs.step(actions)
                if add_foreign:
                    # The change by other wrappers is a term of its own, so that terms sum to the reward.
                    change = torch.as_tensor(rewards, device=base.device) - base.step_reward
                    base.add_reward(FOREIGN, change)
                ended = base.finished_episodes
                if ended is not None:
                    done.append(ended)
                    finished += len(ended.rows)
                    if bar:
                        bar.advance(len(ended.rows))
    finally:
        if bar:
            bar.close()
    batch = to_episodes(done, base.prompts, base.legality.to_sampling())
    return batch.sorted_by_id()


def _act(policy: Any, obs: dict[str, Any], info: dict[str, Any], base: TextVectorEnv) -> Any:
    """Choose actions and record the policy's log-probs and values."""
    if not hasattr(policy, "act"):
        return policy(obs, info)
    answer = policy.act(obs, key=info["key"], active=info["active"])
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
        raise TypeError(f"policy.act must return (actions, {{name: (N,)}}), got {type(answer).__name__}")
    actions, known = answer
    base.record(**known)
    return actions


class _Bar:
    """A progress bar over episodes on standard error."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("episodes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress: Progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("episodes", total=total)
        self._progress.start()

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def close(self) -> None:
        self._progress.stop()
