"""JSON files appear whole, and hold only what JSON can hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from textenv.utils.json_files import json_values, read_object, write_json


class Span(NamedTuple):
    low: float
    high: float


def test_values_of_json() -> None:
    found = json_values(
        {1: [math.inf, -math.inf, math.nan, 0.5], "span": Span(1.0, math.nan), "t": (True, None)}
    )
    assert found == {"1": [None, None, None, 0.5], "span": {"low": 1.0, "high": None}, "t": [True, None]}


def test_a_file_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "made" / "run.json"
    write_json(path, {"name": "ü", "loss": math.nan})
    assert path.read_text(encoding="utf-8") == '{\n  "name": "\\u00fc",\n  "loss": null\n}\n'
    assert read_object(path, {"name": str}) == {"name": "ü", "loss": None}
    write_json(path, {"a": 1}, indent=None)
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n'


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    unwritable: Any = {"a": object()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, unwritable)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert [*tmp_path.iterdir()] == [path]
