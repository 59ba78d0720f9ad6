"""Fields of episodes and preference pairs as ``datasets.Dataset``: Arrow columns, one row per item.

Extra task columns are named ``extras/NAME``, reward terms ``reward_terms/NAME``, the sides of a pair
``chosen/...`` and ``rejected/...``. Values for the whole batch (sampling, dtypes, pad id) are JSON in the
dataset's description, the only free field that ``datasets`` keeps through select, shuffle, save and push.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from textenv.episodes.fields import is_per_token
from textenv.episodes.ragged import (
    PAIR_WEIGHTS,
    REQUIRED_IN_FILES,
    SIDES,
    TEXTS,
    RaggedEpisodes,
    dtypes_of,
    is_stored,
    to_numpy,
    to_tensor,
)

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


def _columns_of(ragged: RaggedEpisodes) -> dict[str, pa.Array]:
    """The fields as Arrow columns; extras that Arrow would change (mixed types) are stored as JSON text."""
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
    for name in REQUIRED_IN_FILES:
        if name not in columns:
            raise ValueError(f"{where} has no column {prefix + name!r}; its columns: {table.column_names}")
    ragged = RaggedEpisodes(_flat(columns["input_ids"], "input_ids", prefix, where)[1], meta=meta)
    for name, column in columns.items():
        if name.startswith("extras/"):
            values = column.to_pylist()
            name = name.removeprefix("extras/")
            as_json = name in meta.get("json_extras", [])
            ragged.extras[name] = [json.loads(value) for value in values] if as_json else values
        elif is_stored(name):
            ragged.columns[name], lengths = _flat(column, name, prefix, where)
            if is_per_token(name) and not np.array_equal(lengths, ragged.lengths):
                row = int(np.flatnonzero(lengths != ragged.lengths)[0])
                raise ValueError(
                    f"{where}, row {row}: {prefix + name} has {lengths[row]} values, "
                    f"expected {ragged.lengths[row]} like input_ids"
                )
        elif name not in TEXTS:
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
        meta = {}  # a description that another program wrote
    found = meta.get("kind", kind) if isinstance(meta, dict) else kind
    if found != kind:
        raise ValueError(f"{where} holds {found}, expected {kind}")
    return meta if isinstance(meta, dict) else {}


def to_dataset(ragged: RaggedEpisodes) -> datasets.Dataset:
    """One row per episode; values for the whole batch are JSON in the dataset's description."""
    columns = _columns_of(ragged)
    return _dataset(columns, {"kind": "episodes", **ragged.meta})


def from_dataset(dataset: datasets.Dataset, *, where: str = "the dataset") -> RaggedEpisodes:
    """The inverse of ``to_dataset``; the dataset may have been selected from or shuffled.

    Raises:
        ValueError: if a required column is missing, or one is unknown or does not fit ``input_ids``.
    """
    meta = _meta_of(dataset, "episodes", where)
    return _from_table(dataset.with_format("arrow")[:], meta, "", where)


def pairs_to_dataset(sides: Mapping[str, RaggedEpisodes], weights: Mapping[str, Tensor]) -> datasets.Dataset:
    """One row per pair of episodes.

    Args:
        sides: ``chosen`` and ``rejected``, each of B episodes.
        weights: ``margin`` and ``label`` -> (B,) where they are given.
    """
    import pyarrow as pa

    columns: dict[str, pa.Array] = {}
    meta: dict[str, Any] = {"kind": "preferences"}
    for side, ragged in sides.items():
        columns |= {f"{side}/{name}": column for name, column in _columns_of(ragged).items()}
        meta[side] = ragged.meta
    columns |= {name: pa.array(to_numpy(tensor)) for name, tensor in weights.items()}
    meta["dtypes"] = dtypes_of(weights)
    return _dataset(columns, meta)


def pairs_from_dataset(
    dataset: datasets.Dataset, *, where: str = "the dataset"
) -> tuple[dict[str, RaggedEpisodes], dict[str, Tensor]]:
    """The inverse of ``pairs_to_dataset``: (sides, weights)."""
    meta = _meta_of(dataset, "preferences", where)
    table = dataset.with_format("arrow")[:]
    sides = {side: _from_table(table, meta.get(side, {}), f"{side}/", where) for side in SIDES}
    weights = {
        name: to_tensor(table[name].to_numpy(), meta.get("dtypes", {}).get(name, "float32"))
        for name in PAIR_WEIGHTS
        if name in table.column_names
    }
    return sides, weights
