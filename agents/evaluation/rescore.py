"""``rescore``: the rewards of stored episodes, computed again by other reward terms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.envs.step_buffer import counts
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.registry import make_reward, reward_list
from textenv.scoring import score_episodes
from textenv.tasks.registry import task_names
from textenv.utils.terminal import text_table

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

RESCORED = ".rescored"
"""Part of the names of files with new rewards."""
_NOT_EPISODES = ("metrics.jsonl",)


@dataclass(frozen=True)
class Rescored:
    """Stored episodes and their new rewards."""

    source: Path
    """The file or folder with the old rewards."""
    path: Path
    """The new file or folder beside it."""
    old: dict[str, float]
    """Reward term -> mean sum in an episode; "return" is that of all."""
    new: dict[str, float]

    def table(self) -> Table:
        """Old and new means by term."""
        names = [*dict.fromkeys(["return", *self.old, *self.new])]
        rows = [[name, self.old.get(name, ""), self.new.get(name, "")] for name in names]
        return text_table(["mean of", "old", "new"], rows, title=str(self.source))


def stored_episodes(run: str | os.PathLike[str]) -> list[Path]:
    """The episodes in the folder of a run, or the file or Arrow folder itself.

    Raises:
        FileNotFoundError: if there is nothing at ``run``, or no episodes in it.
    """
    place = Path(run)
    if not place.exists():
        raise FileNotFoundError(f"{place}: no such file or folder")
    if place.is_file() or (place / "dataset_info.json").is_file():
        return [place]
    found = [path for path in place.rglob("*.jsonl") if _may_hold_episodes(path.relative_to(place))]
    found += [path.parent for path in place.rglob("dataset_info.json")]
    found = sorted(path for path in found if RESCORED not in path.name)
    if not found:
        raise FileNotFoundError(f"{place} holds no episodes: neither .jsonl files nor Arrow folders")
    return found


def rescore(
    episodes: EpisodeBatch, rewards: Any, tokenizer: PreTrainedTokenizerBase | None = None
) -> EpisodeBatch:
    """A copy of episodes with other rewards; the rewards of a partner's replies, term "partner", stay.

    Args:
        episodes: B episodes.
        rewards: a reward spec or a list of them.
        tokenizer: of the episodes, for rewards that read texts.

    Raises:
        ValueError: if a spec is malformed, or a reward needs the policy.
        RewardError: if a reward fails.
    """
    task_names()  # loads the tasks, which register rewards of their own
    terms = [make_reward(spec) for spec in reward_list(rewards)]
    for term in terms:
        if term.needs_policy:
            raise ValueError(f"reward {term.name!r} needs the policy, so stored episodes cannot be rescored")
        if tokenizer is not None:
            term.tokenizer = tokenizer
    copied = episodes.select(slice(None))
    try:
        return score_episodes(copied, terms)
    finally:
        for term in terms:
            term.close()


def rescore_run(
    run: str | os.PathLike[str],
    rewards: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    paths: Sequence[Path] | None = None,
) -> list[Rescored]:
    """Rescore all stored episodes of a run, and write them beside the old ones, which stay.

    ``last.jsonl`` becomes ``last.rescored.jsonl``, the next time ``last.rescored-2.jsonl``.

    Args:
        run: its folder, or a file or folder of episodes.
        rewards: a reward spec or a list of them.
        tokenizer: of the episodes.
        paths: only these; by default ``stored_episodes(run)``.

    Raises:
        FileNotFoundError: if there are no episodes.
        ValueError: if a file is damaged or holds no episodes; see also ``rescore``.
    """
    batches = [(path, EpisodeBatch.load(path)) for path in paths or stored_episodes(run)]
    made = [(path, old, rescore(old, rewards, tokenizer)) for path, old in batches]
    found = []
    for path, old, new in made:
        target = _beside(path)
        new.save(target, tokenizer=tokenizer)
        found.append(Rescored(path, target, _means(old), _means(new)))
    return found


def _may_hold_episodes(path: Path) -> bool:
    """Whether a .jsonl file of a run, seen from its folder, is no table, metrics or part of a checkpoint."""
    return path.name not in _NOT_EPISODES and not {"tables", "checkpoints", "best"} & set(path.parts)


def _beside(path: Path) -> Path:
    number = 1
    while True:
        mark = RESCORED if number == 1 else f"{RESCORED}-{number}"
        target = path.with_name(f"{path.stem}{mark}{path.suffix}")
        if not target.exists():
            return target
        number += 1


def _means(batch: EpisodeBatch) -> dict[str, float]:
    terms = {name: term for name, term in batch.reward_terms.items() if counts(name)}
    means = {name: term.sum(-1).mean().item() for name, term in terms.items()}
    return {"return": batch.returns.mean().item(), **means}
