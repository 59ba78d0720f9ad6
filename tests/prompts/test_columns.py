"""Columns of users' data: every value comes back as it was added, whatever holds it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textenv.prompts import columns
from textenv.prompts.columns import Column, Columns


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "CHUNK", 4)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
)
NESTED = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2), inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(st.integers(0, 3), inner, max_size=2)
    ),
    max_leaves=5,
)


def same(a: Any, b: Any) -> bool:
    """Equal and of equal types, inside, too: 1 is not 1.0, a list no tuple."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and math.copysign(1, a) == math.copysign(1, b) if isinstance(a, float) else a == b


@settings(max_examples=200)
@given(st.lists(NESTED | SCALARS, max_size=13))
def test_every_value_comes_back_with_its_type(values: list[Any]) -> None:
    column = Column(values)
    assert len(column) == len(values)
    assert same(list(column), values)
    assert same([column[i] for i in range(len(values))], values)
    assert same(column[1:9:2], values[1:9:2])
    assert column == values


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.0, 3, 4],  # no integer becomes a float
        [True, 1, 0, False],
        ["a", None, "", "b"],
        ["\ud800", "a", "b", "c"],  # no UTF-8
        [{"a": 1}, {"b": 2}, {}, None],  # no key is added
        [float("inf"), -0.0, 1e-320, 5.0],
        [[float("inf")], [1], [2], [3]],  # not JSON
        [2**63, 1, 2, 3],
        [b"a", b"b", None, b""],
        [np.float32(0.1), np.int64(3), np.str_("a"), None],
        [None, "é", "", "日本"],
        [[{"a": "x", "b": "x"}], [], [{"a": "", "b": "é"}, {"a": "x", "b": "y"}], [{"a": "x", "b": "x"}]],
        [[{"a": "x"}], [{"a": "x"}, {"b": "x"}], [{"a": "x"}], []],
        [[{"a": "x", "b": "y"}], [{"b": "x", "a": "y"}], [], []],
        [[{"a": np.str_("x")}], [{"a": "x"}], [], []],
        [[{1: "x"}], [{1: "y"}], [], []],
        [[{}], [{}], [{}], []],
        [[{"a": "\ud800"}], [{"a": "x"}], [], []],
        [[{"a": "x"}], None, [{"a": "x"}], []],
    ],
)
def test_values_that_arrow_would_change(values: list[Any]) -> None:
    assert same(list(Column(values)), values)


def test_nan_stays_nan() -> None:
    column = Column([float("nan"), 1.0, None, 2.0])
    assert math.isnan(column[0]) and column[1:] == [1.0, None, 2.0]


def test_positions_are_those_of_a_list() -> None:
    column = Column("abcdefghij")
    assert (column[-1], column[4], column[-10]) == ("j", "e", "a")
    for index in (10, -11):
        with pytest.raises(IndexError):
            column[index]


def test_full_chunks_of_scalars_and_messages_hold_no_python_objects() -> None:
    messages = [[{"role": "user", "content": str(i)}] for i in range(8)]
    column = Column(messages)
    column[0][0]["content"] = "changed"
    next(iter(column))[0]["content"] = "changed"
    assert column == messages
    assert not any(isinstance(chunk._values, list) for chunk in Column(range(8))._chunks + column._chunks)


def test_rows_become_columns_with_none_for_what_they_lack() -> None:
    collected = Columns()
    for row in ({"a": 1}, {"a": 2, "b": "x"}, {"b": "y"}):
        collected.add(row)
    assert collected.values == {"a": [1, 2, None], "b": [None, "x", "y"]}
