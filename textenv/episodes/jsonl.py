"""Fields of episodes and preference pairs as JSON lines, one episode or pair per line.

A line holds the fields of an episode without padding. Sampling, and dtypes that are not the usual ones, are
repeated in every line: any subset of lines is a valid file, and files can be appended to each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from textenv.episodes.fields import is_per_token, usual_dtype
from textenv.episodes.ragged import (
    PAIR_WEIGHTS,
    REQUIRED_IN_FILES,
    SIDES,
    STORED,
    TEXTS,
    RaggedEpisodes,
    dtypes_of,
    to_numpy,
    to_tensor,
)
from textenv.utils.checks import check_at_least
from textenv.utils.json_text import parse_json

_META = ("sampling", "dtypes", "pad_token_id", "width")
_NUMBERS = {"int64": "iu", "bool": "bi", "float32": "fiu"}
"""Usual dtype -> numpy's ``dtype.kind`` of the values that a line may have for it."""


def episode_lines(ragged: RaggedEpisodes) -> Iterator[str]:
    """One JSON object per episode, without the line break."""
    return (json.dumps(row, ensure_ascii=False) for row in _rows(ragged))


def pair_lines(sides: Mapping[str, RaggedEpisodes], weights: Mapping[str, Tensor]) -> Iterator[str]:
    """One JSON object per pair, without the line break.

    Args:
        sides: ``chosen`` and ``rejected``, each of B episodes.
        weights: ``margin`` and ``label`` -> (B,) where they are given.
    """
    numbers = {name: _shortest(to_numpy(tensor)) for name, tensor in weights.items()}
    dtypes = dtypes_of(weights)
    for i, pair in enumerate(zip(*map(_rows, sides.values()), strict=True)):
        row = dict(zip(sides, pair, strict=True)) | {name: values[i] for name, values in numbers.items()}
        yield json.dumps(row | ({"dtypes": dtypes} if dtypes else {}), ensure_ascii=False)


def read_episodes(path: Path) -> RaggedEpisodes:
    """Read a file of episode lines.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no episode, or a line is not a valid one (the message starts with FILE:LINE).
    """
    return _collect(_parsed_lines(path))


def read_pairs(path: Path) -> tuple[dict[str, RaggedEpisodes], dict[str, Tensor]]:
    """Read a file of preference lines: (sides, weights), as in ``pair_lines``; see ``read_episodes``."""
    lines = list(_parsed_lines(path))
    weights: dict[str, list[float]] = {}
    for where, row in lines:
        for name in SIDES:
            if not isinstance(row.get(name), dict):
                raise ValueError(
                    f"{where}: a pair must have the objects 'chosen' and 'rejected', got {sorted(row)}"
                )
        _refuse_unknown(row, (*SIDES, *PAIR_WEIGHTS, "dtypes"), where)
        for name in PAIR_WEIGHTS:
            if (name in row) != (name in lines[0][1]):
                raise ValueError(f"{where}: {name} must be in every line or in none")
            if name in row:
                weights.setdefault(name, []).append(float(_numbers(row[name], name, where, 0)))
    dtypes = lines[0][1].get("dtypes", {})
    tensors = {name: to_tensor(np.array(x), dtypes.get(name, "float32")) for name, x in weights.items()}
    sides = {side: _collect((f"{where}: {side}", row[side]) for where, row in lines) for side in SIDES}
    return sides, tensors


def _shortest(values: np.ndarray) -> list[Any]:
    """The shortest JSON numbers that read back exactly: 0.1, not 0.10000000149011612, for float32."""
    if values.dtype == np.float32:
        short = values.astype(str).astype(np.float64)
        if np.array_equal(short.astype(np.float32), values, equal_nan=True):
            return short.tolist()
    return values.astype(np.int64).tolist() if values.dtype == bool else values.tolist()


def _rows(ragged: RaggedEpisodes) -> Iterator[dict[str, Any]]:
    ends = ragged.lengths.cumsum()
    for i, end in enumerate(ends):
        tokens = slice(int(end - ragged.lengths[i]), int(end))
        row: dict[str, Any] = {name: texts[i] for name, texts in ragged.texts.items()}
        terms: dict[str, Any] = {}
        for name, values in ragged.columns.items():
            if name.startswith("reward_terms/"):
                terms[name.removeprefix("reward_terms/")] = _shortest(values[tokens])
            elif is_per_token(name):
                row[name] = _shortest(values[tokens])
            else:
                row[name] = _shortest(values[i : i + 1])[0]
        for name in ("terminated", "truncated"):
            row[name] = bool(row[name])
        if terms:
            row["reward_terms"] = terms
        if ragged.extras:
            row["extras"] = {name: values[i] for name, values in ragged.extras.items()}
        yield row | ragged.meta


def _parsed_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(FILE:LINE, object) of every line that is not blank."""
    found = False
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 at byte {error.start} of the line") from None
            if not text.strip():
                continue
            row = parse_json(text, where)
            if not isinstance(row, dict):
                raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
            found = True
            yield where, row
    if not found:
        raise ValueError(f"{path}: the file holds no episodes")


def _refuse_unknown(row: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    if unknown := sorted(set(row) - set(known)):
        raise ValueError(f"{where}: unknown fields {unknown}; known are {sorted(known)}")


def _numbers(value: Any, name: str, where: str, dims: int) -> np.ndarray:
    """Check a number (dims 0) or a list of numbers (dims 1) for the kind of the field, as an array."""
    try:
        array = np.asarray(value) if value != [] else np.zeros(0, dtype=np.int64)
    except ValueError:
        array = np.empty((0, 0), dtype=object)
    kinds = _NUMBERS[usual_dtype(name)]
    if array.ndim != dims or array.dtype.kind not in kinds:
        expected = {"iu": "integer", "bi": "0 or 1", "fiu": "number"}[kinds]
        shown = json.dumps(value)
        raise ValueError(
            f"{where}: {name} must be {'a list, each' if dims else 'one'} {expected}, "
            f"got {shown if len(shown) <= 60 else shown[:60] + '...'}"
        )
    if kinds == "bi" and array.dtype.kind == "i" and bool(((array != 0) & (array != 1)).any()):
        raise ValueError(f"{where}: {name} must be 0 or 1, got {sorted(set(array.ravel().tolist()))}")
    return array


def _collect(lines: Iterable[tuple[str, dict[str, Any]]]) -> RaggedEpisodes:
    """Check each line, also against the first line, and concatenate them."""
    known = (*STORED, *TEXTS, *_META, "reward_terms", "extras")
    columns: dict[str, list[np.ndarray]] = {}
    extras: dict[str, list[Any]] = {}
    lengths: list[int] = []
    meta: dict[str, Any] = {}
    first: set[str] = set()
    for where, row in lines:
        _refuse_unknown(row, known, where)
        flat = {name: value for name, value in row.items() if name in STORED}
        for group in ("reward_terms", "extras"):
            if not isinstance(row.get(group, {}), dict):
                raise ValueError(f"{where}: {group} must be an object, got {type(row[group]).__name__}")
        flat |= {f"reward_terms/{name}": value for name, value in row.get("reward_terms", {}).items()}
        names = set(flat) | {f"extras/{name}" for name in row.get("extras", {})}
        if not lengths:
            for name in REQUIRED_IN_FILES:
                if name not in flat:
                    raise ValueError(f"{where}: an episode must have {name}, got {sorted(row)}")
            first = names
            meta = {name: row[name] for name in _META if name in row}
        if names != first:
            raise ValueError(f"{where}: {sorted(names ^ first)} must be in every line or in none")
        for name in ("sampling", "dtypes"):
            if row.get(name, {}) != meta.get(name, {}):
                raise ValueError(
                    f"{where}: {name} differs from the first line's: {row.get(name)} and {meta.get(name)}"
                )
        width = row.get("width", 0)
        check_at_least(f"{where}: width", width, 0)
        meta["width"] = max(width, meta.get("width", 0))
        for name, value in flat.items():
            array = _numbers(value, name, where, 1 if is_per_token(name) else 0)
            if is_per_token(name) and len(array) != len(flat["input_ids"]):
                raise ValueError(
                    f"{where}: {name} has {len(array)} values, "
                    f"expected {len(flat['input_ids'])} like input_ids"
                )
            columns.setdefault(name, []).append(np.atleast_1d(array))
        _check_mask(flat, where)
        lengths.append(len(flat["input_ids"]))
        for name, value in row.get("extras", {}).items():
            extras.setdefault(name, []).append(value)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return RaggedEpisodes(np.array(lengths, dtype=np.int64), joined, extras, {}, meta)


def _check_mask(row: Mapping[str, Any], where: str) -> None:
    if row["action_mask"] and row["action_mask"][0]:
        raise ValueError(f"{where}: action_mask must be 0 at the first token: it has no state before it")
    for name, values in row.items():
        if name == "rewards" or name.startswith("reward_terms/"):
            for place, (value, chosen) in enumerate(zip(values, row["action_mask"], strict=True)):
                if value != 0 and not chosen:
                    raise ValueError(
                        f"{where}: {name} must be 0 where action_mask is 0 (a reward is for a token that the "
                        f"policy chose), got {value} at token {place}"
                    )
