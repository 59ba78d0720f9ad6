"""Episodes and preference pairs as ``datasets.Dataset``: ragged Arrow columns, one row per episode or pair.

Extra task columns are named ``extras/NAME``, reward terms ``reward_terms/NAME``, the sides of a pair
``chosen/...`` and ``rejected/...``. What is not per row (sampling, dtypes, pad id) is JSON in the dataset's
description, the one free field that ``datasets`` keeps through select, shuffle, save and push.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.preferences import PreferenceBatch
from textenv.episodes.ragged import (
    PER_ROW,
    PER_TOKEN,
    REQUIRED,
    TEXTS,
    RaggedEpisodes,
    dtypes_of,
    is_per_token,
    to_numpy,
    to_tensor,
)

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


def _columns_of(ragged: RaggedEpisodes) -> dict[str, pa.Array]:
    """Arrow columns; extras that Arrow would change (mixed types, partial dicts) become JSON text."""
    import pyarrow as pa

    offsets = pa.array(np.concatenate([[0], ragged.lengths.cumsum()]), pa.int64())
    columns = {}
    for name, values in ragged.columns.items():
        flat = pa.array(values)
        columns[name] = pa.LargeListArray.from_arrays(offsets, flat) if is_per_token(name) else flat
    as_json = []
    for name, column_values in ragged.extras.items():
        texts = [json.dumps(value) for value in column_values]
        try:
            column = pa.array(column_values)
            exact = [json.dumps(value) for value in column.to_pylist()] == texts
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, TypeError):
            exact = False
        if not exact:
            as_json.append(name)
            column = pa.array(texts, pa.string())
        columns[f"extras/{name}"] = column
    if as_json:
        ragged.meta["json_extras"] = as_json
    return columns | {name: pa.array(values, pa.string()) for name, values in ragged.texts.items()}


def _from_table(table: pa.Table, meta: dict[str, Any], prefix: str, where: str) -> RaggedEpisodes:
    """The episodes in the columns of an Arrow table whose names start with ``prefix``."""
    columns = {name[len(prefix) :]: table[name] for name in table.column_names if name.startswith(prefix)}
    known = {*PER_ROW, *PER_TOKEN, *TEXTS}
    for name in REQUIRED:
        if name not in columns:
            raise ValueError(f"{where} has no column {prefix + name!r}; its columns: {table.column_names}")
    ragged = RaggedEpisodes(_flat(columns["input_ids"], "input_ids", prefix, where)[1], meta=meta)
    for name, column in columns.items():
        if name.startswith("extras/"):
            values = column.to_pylist()
            name = name.removeprefix("extras/")
            as_json = name in meta.get("json_extras", [])
            ragged.extras[name] = [json.loads(value) for value in values] if as_json else values
        elif is_per_token(name) or name in PER_ROW:
            ragged.columns[name], lengths = _flat(column, name, prefix, where)
            if is_per_token(name) and not np.array_equal(lengths, ragged.lengths):
                row = int(np.flatnonzero(lengths != ragged.lengths)[0])
                raise ValueError(
                    f"{where}, row {row}: {prefix + name} has {lengths[row]} values, "
                    f"expected {ragged.lengths[row]} like input_ids"
                )
        elif name not in known:
            raise ValueError(
                f"{where} has an unknown column {prefix + name!r}; extra columns are named 'extras/NAME'"
            )
    return ragged


def _flat(column: pa.ChunkedArray, name: str, prefix: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(flat values, (B,) values in each row) of a column of lists or of numbers; nulls are refused."""
    import pyarrow as pa

    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if lists != is_per_token(name):
        expected = "numbers" if lists else "lists"
        raise ValueError(f"{where}: {prefix + name} must be a column of {expected}, got {column.type}")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise ValueError(
            f"{where}, row {row}: {prefix + name} is null, expected {'a list' if lists else 'a number'}"
        )
    array = column.combine_chunks()
    lengths = np.ones(len(array), dtype=np.int64)
    if lists:
        lengths = array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf" and len(values):
        raise ValueError(f"{where}: {prefix + name} must hold numbers, got {column.type}")
    return values, lengths


def _dataset(columns: dict[str, pa.Array], meta: dict[str, Any]) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    dataset = datasets.Dataset(pa.table(columns))
    dataset.info.description = json.dumps(meta)
    return dataset


def _meta_of(dataset: datasets.Dataset, kind: str, where: str) -> dict[str, Any]:
    try:
        meta: Any = json.loads(dataset.info.description or "{}")
    except json.JSONDecodeError:
        meta = {}  # somebody else's description: columns alone decide
    found = meta.get("kind", kind) if isinstance(meta, dict) else kind
    if found != kind:
        raise ValueError(f"{where} holds {found}, expected {kind}")
    return meta if isinstance(meta, dict) else {}


def episodes_to_dataset(batch: EpisodeBatch, tokenizer: Any = None) -> datasets.Dataset:
    """A ``datasets.Dataset`` with one row per episode, and the sampling as JSON in its description.

    Args:
        batch: B episodes.
        tokenizer: if given, the columns ``prompt`` and ``completion`` hold the texts, for the human reader.

    Raises:
        ValueError: if the batch is not valid.
        TypeError: if extras or sampling hold something that JSON does not know.
    """
    ragged = RaggedEpisodes.pack(batch, tokenizer)
    columns = _columns_of(ragged)
    return _dataset(columns, {"kind": "episodes", **ragged.meta})


def episodes_from_dataset(dataset: datasets.Dataset, *, where: str = "the dataset") -> EpisodeBatch:
    """The inverse of ``episodes_to_dataset``; selections and shuffles of such a dataset are fine.

    Raises:
        ValueError: if a required column is missing, or one is unknown or does not fit ``input_ids``.
    """
    meta = _meta_of(dataset, "episodes", where)
    return _from_table(dataset.with_format("arrow")[:], meta, "", where).unpack()


def preferences_to_dataset(pairs: PreferenceBatch, tokenizer: Any = None) -> datasets.Dataset:
    """A ``datasets.Dataset`` with one row per pair; see ``episodes_to_dataset``."""
    import pyarrow as pa

    columns: dict[str, pa.Array] = {}
    meta: dict[str, Any] = {"kind": "preferences"}
    for side in ("chosen", "rejected"):
        ragged = RaggedEpisodes.pack(getattr(pairs, side), tokenizer)
        columns |= {f"{side}/{name}": column for name, column in _columns_of(ragged).items()}
        meta[side] = ragged.meta
    weights = {name: getattr(pairs, name) for name in ("margin", "label") if getattr(pairs, name) is not None}
    columns |= {name: pa.array(to_numpy(tensor)) for name, tensor in weights.items()}
    meta["dtypes"] = dtypes_of(weights)
    return _dataset(columns, meta)


def preferences_from_dataset(dataset: datasets.Dataset, *, where: str = "the dataset") -> PreferenceBatch:
    """The inverse of ``preferences_to_dataset``."""
    meta = _meta_of(dataset, "preferences", where)
    table = dataset.with_format("arrow")[:]
    sides = {
        side: _from_table(table, meta.get(side, {}), f"{side}/", where).unpack()
        for side in ("chosen", "rejected")
    }
    weights = {
        name: to_tensor(table[name].to_numpy(), meta.get("dtypes", {}).get(name, "float32"))
        for name in ("margin", "label")
        if name in table.column_names
    }
    return PreferenceBatch(
        chosen=sides["chosen"],
        rejected=sides["rejected"],
        margin=weights.get("margin"),
        label=weights.get("label"),
    )
