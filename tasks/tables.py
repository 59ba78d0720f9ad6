"""Reading columns of data from where users keep them: files, folders, hub ids, lists, data sets."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textenv.checks import check_choice

FILE_TYPES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Named columns of equal length that remember where each row came from.

    Example:
        >>> table = read_table([{"prompt": "Hi", "n": 1}, {"prompt": "Ho", "n": 2}])
        >>> table["n"], len(table), table.where(1)
        ([1, 2], 2, 'row 1 of the list')
    """

    columns: dict[str, list[Any]]
    source: str
    """What errors call it: a file's path, a hub id, "the list"."""
    lines: Sequence[int] | None = field(default=None, repr=False)
    """Line number of each row in the file, counted from 1, where the file has lines."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> list[Any]:
        """A column by name.

        Raises:
            ValueError: if there is none; the message lists those there are.
        """
        if name not in self.columns:
            raise ValueError(
                f"{self.source} has no column {name!r}; it has {', '.join(self.columns) or 'none'}"
            )
        return self.columns[name]

    def where(self, row: int) -> str:
        """Where a row stands, for errors."""
        return f"row {row} of {self.source}" if self.lines is None else f"{self.source}:{self.lines[row]}"


def read_table(source: Any, *, split: str = "train") -> Table:
    """Read columns.

    Args:
        source: a path to a .jsonl, .json (JSON lines), .csv, .tsv or .parquet file; a folder written by
            ``Dataset.save_to_disk``; a hub id; a ``datasets`` Dataset or DatasetDict; a list of rows
            (mappings), of texts (they become the column "prompt") or of conversations (the column
            "messages"); a mapping of columns.
        split: of a hub id, DatasetDict or folder; other sources have none and ignore it.

    Returns:
        At least one row; every row has every column, None where a JSON row lacks it.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if a row can't be read (naming file and line), the type of file or the split is unknown,
            the hub id can't be loaded, or there is no row.
        TypeError: if ``source`` is nothing of the above.
    """
    table = _read(source, split)
    lengths = {name: len(column) for name, column in table.columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of {table.source} must have equal lengths, got {lengths}")
    if len(table) == 0:
        raise ValueError(f"{table.source} has no rows")
    return table


def _read(source: Any, split: str) -> Table:
    if isinstance(source, str | os.PathLike):
        return _read_path_or_hub(source, split)
    if isinstance(source, Mapping):
        if source and all(hasattr(part, "column_names") for part in source.values()):
            check_choice("split", split, list(source))
            return _from_dataset(source[split], f"split {split!r} of the data set")
        return Table(
            columns={str(name): list(column) for name, column in source.items()}, source="the columns"
        )
    if hasattr(source, "column_names") and hasattr(source, "__getitem__"):
        return _from_dataset(source, "the data set")
    if isinstance(source, Sequence):
        return _from_list(source)
    raise TypeError(
        f"expected a path, hub id, data set, list of rows or mapping of columns, got {type(source).__name__}"
    )


def _from_list(rows: Sequence[Any]) -> Table:
    name = "the list"
    if all(isinstance(row, str) for row in rows):
        return Table(columns={"prompt": list(rows)}, source=name)
    if all(isinstance(row, Mapping) for row in rows):
        return Table(columns=_transpose(rows), source=name)
    if all(isinstance(row, Sequence) and not isinstance(row, str) for row in rows):
        return Table(columns={"messages": [list(row) for row in rows]}, source=name)
    kinds = sorted({type(row).__name__ for row in rows})
    raise TypeError(
        f"a list must hold texts only, mappings only or lists of messages only, got {', '.join(kinds)}"
    )


def _transpose(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(str(name) for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _from_dataset(dataset: Any, source: str) -> Table:
    return Table(columns={name: list(dataset[name]) for name in dataset.column_names}, source=source)


def _read_path_or_hub(source: str | os.PathLike[str], split: str) -> Table:
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, split)
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix not in FILE_TYPES:
            raise ValueError(f"{path} must end in one of {', '.join(FILE_TYPES)}, got {suffix!r}")
        if suffix == ".parquet":
            return _read_parquet(path)
        return _read_csv(path, suffix) if suffix in (".csv", ".tsv") else _read_json_lines(path)
    name = os.fspath(source)
    if isinstance(source, os.PathLike) or suffix in FILE_TYPES or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"there is no file or folder {name}")
    return _read_hub(name, split)


def _read_json_lines(path: Path) -> Table:
    rows, lines = [], []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}:{number} is not a JSON value on one line: {error.msg} at column {error.colno}"
                ) from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number} must be a JSON object, got {type(row).__name__}")
            rows.append(row)
            lines.append(number)
    return Table(columns=_transpose(rows), source=str(path), lines=lines)


def _read_csv(path: Path, suffix: str) -> Table:
    rows, lines = [], []
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
        before = 1
        try:
            for row in reader:
                fields, extra = len(reader.fieldnames or ()), row.get(None)
                found = fields + len(extra) if extra else sum(value is not None for value in row.values())
                if found != fields:
                    raise ValueError(
                        f"{path}:{before + 1} must have {fields} fields like the header, got {found}"
                    )
                rows.append(row)
                lines.append(before + 1)
                before = reader.line_num
        except csv.Error as error:
            raise ValueError(f"{path}:{before + 1} is not valid CSV: {error}") from error
    return Table(columns=_transpose(rows), source=str(path), lines=lines)


def _read_parquet(path: Path) -> Table:
    import datasets

    try:
        with tempfile.TemporaryDirectory() as cache:
            loaded = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
            return _from_dataset(loaded, str(path))
    except (ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error


def _read_folder(path: Path, split: str) -> Table:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"{path} must be a folder written by Dataset.save_to_disk: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        check_choice("split", split, list(loaded))
        loaded = loaded[split]
    return _from_dataset(loaded, str(path))


def _read_hub(name: str, split: str) -> Table:
    import datasets

    try:
        return _from_dataset(datasets.load_dataset(name, split=split), f"{name} ({split})")
    except Exception as error:  # the hub client raises dozens of kinds; all mean that the data is not here
        raise ValueError(
            f"{name!r} is no file or folder here, and as a hub id its split {split!r} can't be loaded: "
            f"{error}"
        ) from error
