"""Sources of records: files, folders, ``datasets`` objects, lists and hub ids, read one row at a time.

A source is a function that starts a pass over the rows. Each row has a place ("file.jsonl:12") for error
messages. Files are streamed, so memory use does not grow with their size (except for a list in a ``.json``
file). They are not read with ``datasets.load_dataset``: it converts all rows to one Arrow schema (JSON keys
that repeat are lost, absent ones become None), and it streams Parquet many times slower than pyarrow.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from textenv.data.json_lines import JsonLines, decoded_lines
from textenv.data.row_blocks import ChainedSource, Row, Source
from textenv.utils.json_text import parse_json
from textenv.utils.names import nearest, shown

if TYPE_CHECKING:
    import datasets

DataLike: TypeAlias = (
    "str | os.PathLike[str] | datasets.Dataset | Sequence[Mapping[str, Any]] | Mapping[str, Any]"
)

OTHER_VALIDATION = ("valid", "val", "dev", "eval")
"""Other names of the split "validation"."""
VALIDATION = frozenset({"validation", *OTHER_VALIDATION})
"""All names of a validation split."""
HELD_OUT_SHARE = 0.1
"""Default fraction of the prompts that is held out, see ``textenv.data.held_out``."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_BATCH = 1024
"""Number of rows that are converted from Arrow to Python at once."""


def open_source(data: DataLike, *, split: str | None = None, config: str | None = None) -> tuple[str, Source]:
    """Open ``data``; ``textenv.data.load_columns`` lists what it may be.

    Returns:
        (name for messages, source).

    Raises:
        FileNotFoundError: if a path does not exist, or a folder has no data file.
        ConnectionError: if a hub id cannot be loaded.
        ValueError: if the format is unknown, or there is no such split.
        TypeError: if ``data`` has another type than those listed.
    """
    if isinstance(data, (str, os.PathLike)):
        path = Path(data)
        if path.is_file():
            _only_train(split, f"the file {path}")
            return str(path), _file_source(path)
        if path.is_dir():
            return str(path), _folder_source(path, split)
        # A hub id never starts with a dot: "./data", "../data" and ".cache/data" are paths.
        local = not isinstance(data, str) or data.startswith(".") or path.suffix in _READERS
        if local or not _HUB_ID.fullmatch(str(data)):
            raise FileNotFoundError(f"{data}: no such file or folder")
        return _from_hub(str(data), split, config)
    if isinstance(data, Mapping):
        if _is_dataset(next(iter(data.values()), None)):  # a datasets.DatasetDict
            name = _pick_split(list(data), split, "the dataset")
            return f"the dataset's split {name!r}", _dataset_source(data[name], f"{name} row ")
        _only_train(split, "a dictionary of columns")
        return "the columns", _columns_source(data)
    if _is_dataset(data):
        _only_train(split, "a datasets.Dataset")
        return "the dataset", _dataset_source(data, "row ")
    if isinstance(data, Sequence):
        _only_train(split, "a list")
        return "the list", lambda: _list_rows(data)
    raise TypeError(
        "data must be a path, a hub id, a datasets.Dataset, a list of dicts or a dict of lists, "
        f"got {type(data).__name__}"
    )


def splits_of(data: DataLike) -> list[str]:
    """Names of the splits of a folder or a ``DatasetDict``; [] for other data and for hub ids.

    >>> splits_of([{"prompt": "a"}])
    []
    """
    if isinstance(data, str | os.PathLike) and Path(data).is_dir():
        folder = Path(data)
        if (folder / "dataset_dict.json").exists():
            import datasets

            return list(datasets.load_from_disk(folder))
        if (folder / "state.json").exists():
            return []
        return sorted({_split_of(file, folder) for file in _data_files(folder)})
    if isinstance(data, Mapping) and _is_dataset(next(iter(data.values()), None)):
        return list(data)
    return []


def may_be_hub_id(data: DataLike) -> bool:
    """Whether ``data`` is a name that is not an existing file or folder."""
    return isinstance(data, str | os.PathLike) and not Path(data).exists()


def is_untyped(place: str) -> bool:
    """Whether the row is from a CSV file, where numbers are texts."""
    return re.search(r"\.csv:\d+$", place, re.IGNORECASE) is not None


def _only_train(split: str | None, what: str) -> None:
    if split not in (None, "train"):
        raise ValueError(f"{what} has no splits, so split must be None or 'train', got {split!r}")


def _pick_split(names: Sequence[str], split: str | None, where: str) -> str:
    if split is None:
        split = names[0] if len(names) == 1 else "train"
    if split == "validation" and split not in names:
        split = next((name for name in OTHER_VALIDATION if name in names), split)
    if split not in names:
        raise ValueError(f"{where} has no split {split!r}; {nearest(split, names, 'its splits')}")
    return split


def _file_source(path: Path) -> Source:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}, expected one of {sorted(_READERS)}")
    return reader(path)


def _read_json(path: Path) -> Iterator[Row]:
    """Read a ``.json`` file: a list of objects, or JSON lines."""
    head = next((text for _, text in decoded_lines(path) if text.strip()), "")
    if not head.lstrip().startswith("["):
        yield from JsonLines(path)()
        return
    rows = parse_json("".join(text for _, text in decoded_lines(path)), str(path), lines=True)
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, item {i}: expected a JSON object, got {type(row).__name__}")
        yield f"{path}, item {i}", row


def _read_csv(path: Path) -> Iterator[Row]:
    reader = csv.reader((text for _, text in decoded_lines(path)), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1  # first line of the row: a quoted cell may span lines
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}:{line}: not CSV: {error}") from None
        if cells is None:
            return
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                raise ValueError(f"{path}:{line}: the header names a column twice: {header}")
        elif cells:
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}:{line}: {len(cells)} cells, expected {len(header)} like the header {header}"
                )
            yield f"{path}:{line}", dict(zip(header, cells, strict=True))


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise ValueError(f"{path}: two columns have the same name: {shown(sorted(names))}")
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error


_READERS: dict[str, Callable[[Path], Source]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": lambda path: lambda: _read_json(path),
    ".csv": lambda path: lambda: _read_csv(path),
    ".parquet": lambda path: lambda: _read_parquet(path),
}
"""Suffix -> function that opens such a file."""


def _folder_source(folder: Path, split: str | None) -> Source:
    """Open a folder saved by ``datasets``, or a folder of data files with splits by file or folder name."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        import datasets

        saved = datasets.load_from_disk(folder)
        if not isinstance(saved, Mapping):
            _only_train(split, f"the dataset in {folder}")
            return _dataset_source(saved, f"{folder}, row ")
        name = _pick_split(list(saved), split, str(folder))
        return _dataset_source(saved[name], f"{folder}, {name} row ")
    files = _data_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder}: no data file in this folder, expected one of {sorted(_READERS)}")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file, folder), []).append(file)
    chosen = [_file_source(file) for file in splits[_pick_split(list(splits), split, str(folder))]]
    return ChainedSource(chosen)


def _data_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in _READERS and file.is_file())


def _split_of(file: Path, folder: Path) -> str:
    """The split in a path ("test" for "test-00000-of-00002.parquet", "dev" for "dev/a.csv"), else "train"."""
    for part in (file.stem, *(parent.name for parent in file.relative_to(folder).parents)):
        found = re.fullmatch(r"(train|validation|valid|val|dev|test|eval)(?:[-_.].*)?", part)
        if found:
            return found[1]
    return "train"


def _is_dataset(data: Any) -> bool:
    """Whether this is a Dataset or IterableDataset. Checked by name, to avoid importing ``datasets``."""
    return any(base.__module__.startswith("datasets.") for base in type(data).__mro__)


def _dataset_source(dataset: Any, place: str) -> Source:
    def rows() -> Iterator[Row]:
        number = 0
        batches = dataset.with_format(None).iter(batch_size=_BATCH)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # from a user's generator, or a damaged image
                kind = type(error).__name__
                raise ValueError(f"{place}{number} or after: cannot be read: {kind}: {error}") from error
            if batch is None:
                return
            columns = list(batch)
            for values in zip(*batch.values(), strict=True):
                yield f"{place}{number}", dict(zip(columns, values, strict=True))
                number += 1

    return rows


def _columns_source(columns: Mapping[str, Any]) -> Source:
    for name, values in columns.items():
        _check_column_name(name, "the dictionary of columns")
        if isinstance(values, str | bytes | Mapping) or not (
            hasattr(values, "__len__") and hasattr(values, "__getitem__")
        ):
            raise TypeError(f"column {name!r} must be a list of values, got {shown(values)}")
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"all columns must have the same number of values, got {shown(sizes)}")

    def rows() -> Iterator[Row]:
        for i, values in enumerate(zip(*columns.values(), strict=True)):
            yield f"row {i}", dict(zip(columns, values, strict=True))

    return rows


def _check_column_name(name: Any, where: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{where}: the name of a column must be a string, got {shown(name)}")


def _list_rows(rows: Sequence[Any]) -> Iterator[Row]:
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"row {i} must be a dict with column names, got {shown(row)}")
        for name in row:
            _check_column_name(name, f"row {i}")
        yield f"row {i}", dict(row)


def _from_hub(name: str, split: str | None, config: str | None) -> tuple[str, Source]:
    import datasets

    _check_reachable(name)
    try:
        dataset = datasets.load_dataset(name, config, split=split or "train")
    except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise _unreachable(name, error) from error
    return name, _dataset_source(dataset, f"{name}, row ")


def _check_reachable(name: str) -> None:
    """Ask the hub once, because without a network ``datasets`` retries for more than 20 seconds.

    A data set in the cache is not checked.

    Raises:
        ConnectionError: if the hub does not answer.
    """
    import datasets
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    cached = (
        Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___"),
        Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}",
    )
    if any(folder.exists() for folder in cached):
        return
    try:
        HfApi().dataset_info(name, timeout=10)
    except HfHubHTTPError:  # the hub answered; datasets reports its answer
        return
    except Exception as error:  # the type depends on the HTTP library
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"{name!r} is no file or folder here, and as a hub id it cannot be loaded: {error}. "
        "Without a network, give a path, a datasets.Dataset or a list of dicts."
    )
