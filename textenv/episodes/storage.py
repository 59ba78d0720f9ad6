"""Saving and loading episodes and preference pairs without loss.

Two forms, chosen by the path: a ``datasets`` Arrow folder (compact and fast; ``load_from_disk`` opens it), or
JSON lines (a path that ends in ``.jsonl``; readable). Padding is not stored: rows are ragged on disk.
Both are written beside their place and renamed into it: a crash leaves the older file or the newer one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textenv.episodes.arrow import (
    episodes_from_dataset,
    episodes_to_dataset,
    preferences_from_dataset,
    preferences_to_dataset,
)
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.jsonl import episode_lines, preference_lines, read_episodes, read_preferences
from textenv.episodes.preferences import PreferenceBatch
from textenv.utils.files import atomic_file, atomic_folder

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "episodes_from_dataset",
    "episodes_to_dataset",
    "load_episodes",
    "load_preferences",
    "preferences_from_dataset",
    "preferences_to_dataset",
    "save_episodes",
    "save_preferences",
]

_MARKER = "dataset_info.json"


def save_episodes(
    batch: EpisodeBatch, path: str | os.PathLike[str], *, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write episodes to ``path``: JSON lines if it ends in ``.jsonl``, else an Arrow folder.

    Args:
        batch: B episodes.
        path: an older file or saved folder there is replaced.
        tokenizer: if given, the texts of prompt and completion are written, too, for the human reader.

    Raises:
        ValueError: if the batch is not valid, or has no episode and goes to JSON lines.
        TypeError: if extras or sampling hold something that is not a JSON value.
        FileExistsError: if ``path`` is a folder with other content.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "episodes.jsonl"
        >>> save_episodes(EpisodeBatch.from_ids([[5, 6]], [[7]], rewards=[0.1]), path)
        >>> load_episodes(path).rewards
        tensor([[0.0000, 0.0000, 0.1000]])
    """
    if _is_json_lines(path):
        _write_lines(path, episode_lines(batch, tokenizer), len(batch))
    else:
        _write_folder(path, episodes_to_dataset(batch, tokenizer))


def load_episodes(path: str | os.PathLike[str]) -> EpisodeBatch:
    """Read what ``save_episodes`` wrote; the batch is on the CPU.

    Raises:
        FileNotFoundError: if there is nothing at ``path``, or a file of the folder is missing.
        ValueError: if what is there is damaged or something else; the message names the file (and line).
    """
    with _naming(path):
        if _is_json_lines(path):
            return read_episodes(Path(path))
        return episodes_from_dataset(_read_folder(path), where=str(path))


def save_preferences(
    pairs: PreferenceBatch, path: str | os.PathLike[str], *, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write preference pairs to ``path``, one a row; see ``save_episodes``."""
    if _is_json_lines(path):
        _write_lines(path, preference_lines(pairs, tokenizer), len(pairs))
    else:
        _write_folder(path, preferences_to_dataset(pairs, tokenizer))


def load_preferences(path: str | os.PathLike[str]) -> PreferenceBatch:
    """Read what ``save_preferences`` wrote; see ``load_episodes``."""
    with _naming(path):
        if _is_json_lines(path):
            return read_preferences(Path(path))
        return preferences_from_dataset(_read_folder(path), where=str(path))


def _is_json_lines(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix == ".jsonl"


def _write_lines(path: str | os.PathLike[str], lines: Iterable[str], count: int) -> None:
    if count == 0:
        raise ValueError(f"{path}: JSON lines cannot hold an empty batch; save it as a folder (no .jsonl)")
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def _write_folder(path: str | os.PathLike[str], dataset: datasets.Dataset) -> None:
    with atomic_folder(path, marker=_MARKER) as temporary, _without_progress_bars():
        dataset.save_to_disk(
            temporary, num_shards=None if len(dataset) else 1
        )  # 0 rows: else no file, no schema


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    import datasets

    were_on = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what is said of a damaged file without its name into a ValueError that starts with the path."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise ValueError(f"{path}: damaged or not written by textenv: {error}") from error
    except (TypeError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def _read_folder(path: str | os.PathLike[str]) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such file or folder")
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is a file, expected a folder of saved episodes or a path that ends in .jsonl"
        )
    described: dict[str, Any] = {}
    for name in (_MARKER, "state.json"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder}: not a folder of saved episodes (there is no {name} in it)")
        try:
            described = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{folder / name}: damaged: {error}") from None
    for entry in described.get("_data_files", []):
        file = folder / entry["filename"]
        if not file.exists():
            raise FileNotFoundError(f"{file}: missing, though {folder / 'state.json'} names it")
        try:
            with pa.memory_map(str(file)) as source:
                pa.ipc.open_stream(source).read_all()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: damaged: {error}") from error
    return datasets.load_from_disk(folder)
