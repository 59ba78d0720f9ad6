"""The fields of episodes and preference pairs on disk, without loss.

The path selects the format: JSON lines if it ends in ``.jsonl`` (readable), else a ``datasets`` Arrow folder
(compact and fast; ``load_from_disk`` opens it). Padding is not stored. Files are written under
another name and renamed: after a crash either the older or the newer file is there, complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from textenv.episodes.arrow import from_dataset, pairs_from_dataset, pairs_to_dataset, to_dataset
from textenv.episodes.jsonl import episode_lines, pair_lines, read_episodes, read_pairs
from textenv.episodes.ragged import RaggedEpisodes
from textenv.utils.files import atomic_file, atomic_folder

if TYPE_CHECKING:
    import datasets

Fields = Mapping[str, Any]
"""All fields of an ``EpisodeBatch`` by name."""
Texts = Sequence[tuple[str, str]]
"""B pairs (prompt, completion)."""
_MARKER = "dataset_info.json"


def save_fields(fields: Fields, path: str | os.PathLike[str], *, texts: Texts | None = None) -> None:
    """Write the fields of a valid batch to ``path``; see ``EpisodeBatch.save``.

    Raises:
        ValueError: if there is no episode and ``path`` ends in ``.jsonl``.
        TypeError: if extras or sampling hold something that is not a JSON value.
        FileExistsError: if ``path`` is a folder with other content.
    """
    ragged = RaggedEpisodes.pack(fields, texts)
    if _is_json_lines(path):
        _write_lines(path, episode_lines(ragged), len(ragged.lengths))
    else:
        _write_folder(path, to_dataset(ragged))


def load_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arguments of ``EpisodeBatch`` that ``save_fields`` wrote, on the CPU.

    Raises:
        FileNotFoundError: if there is nothing at ``path``, or a file of the folder is missing.
        ValueError: if the file is damaged or holds something else.
    """
    if _is_json_lines(path):
        return read_episodes(Path(path)).unpack()
    return from_dataset(_read_folder(path), where=str(path)).unpack()


def save_pair_fields(
    sides: Mapping[str, Fields],
    weights: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    texts: Mapping[str, Texts] | None = None,
) -> None:
    """Write preference pairs to ``path``, one per row; see ``save_fields``.

    Args:
        sides: ``chosen`` and ``rejected`` -> the fields of B episodes.
        weights: ``margin`` and ``label`` -> (B,) where they are given.
        path: an older file or saved folder there is replaced.
        texts: ``chosen`` and ``rejected`` -> B pairs (prompt, completion).
    """
    packed = {
        side: RaggedEpisodes.pack(fields, None if texts is None else texts[side])
        for side, fields in sides.items()
    }
    if _is_json_lines(path):
        _write_lines(path, pair_lines(packed, weights), len(packed["chosen"].lengths))
    else:
        _write_folder(path, pairs_to_dataset(packed, weights))


def load_pair_fields(
    path: str | os.PathLike[str],
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """(sides, weights) that ``save_pair_fields`` wrote; see ``load_fields``."""
    if _is_json_lines(path):
        sides, weights = read_pairs(Path(path))
    else:
        sides, weights = pairs_from_dataset(_read_folder(path), where=str(path))
    return {side: ragged.unpack() for side, ragged in sides.items()}, weights


@contextmanager
def errors_name(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors about the content of a file become a ValueError whose message starts with the path."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise ValueError(f"{path}: damaged or not written by textenv: {error}") from error
    except (TypeError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


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
