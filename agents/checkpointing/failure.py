"""The error for losses, gradients and rewards that are not finite, and the files that document it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from textenv.agents.distributed import process_group
from textenv.episodes.batch import EpisodeBatch


class NonFiniteError(RuntimeError):
    """A loss, gradient or reward was NaN or infinite; the weights are those before the step."""

    def __init__(
        self, term: str, iteration: int, optimizer_steps: int, values: Mapping[str, float], where: Path
    ) -> None:
        shown = ", ".join(f"{name}={value:g}" for name, value in values.items())
        super().__init__(
            f"{term} is not finite in iteration {iteration}, after {optimizer_steps} optimizer steps "
            f"({shown}); "
            f"the episodes are in {where}. Lower the learning rate, or look at their rewards."
        )
        self.term = term
        self.iteration = iteration
        self.where = where


def save_failure(
    run_dir: Path | None, iteration: int, term: str, values: Mapping[str, float], episodes: EpisodeBatch
) -> Path:
    """Write the episodes of the failed step and its statistics; returns the folder.

    Every process calls it, and the main one writes.
    """
    folder = None
    with process_group.collective("saving what went wrong"):
        if process_group.is_main():
            folder = _write(run_dir, iteration, term, values, episodes)
    folder = process_group.broadcast(folder)
    assert folder is not None
    return folder


def _write(
    run_dir: Path | None, iteration: int, term: str, values: Mapping[str, float], episodes: EpisodeBatch
) -> Path:
    root = Path(tempfile.mkdtemp(prefix="textenv-")) if run_dir is None else run_dir
    folder = root / "failures" / f"iteration-{iteration:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    episodes.to("cpu").save(folder / "episodes.jsonl")
    facts = {"iteration": iteration, "term": term, "values": {k: str(v) for k, v in values.items()}}
    (folder / "failure.json").write_text(json.dumps(facts, indent=2) + "\n")
    return folder
