"""Rows that are read, checked, stored and rendered many at a time are those that come one by one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from textenv.data import json_lines, row_blocks
from textenv.data.json_lines import JsonLines
from textenv.data.loading import load_columns, prompts_from_records
from textenv.data.record_warnings import Repeats
from textenv.data.row_blocks import source_blocks
from textenv.prompts.columns import Columns, transposed
from textenv.prompts.messages import are_plain, check_messages, render, render_all
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.prompts import build_prompts

Seen = tuple[list[tuple[str, Any]], str | None]
"""(place, value) of the rows before the first error, and the error."""

TEXTS = st.text(st.sampled_from('a":, \\{}[]\té\u2028😀'), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
ODD_LINES = [
    "",
    "  ",
    "\u00a0",
    ' {"a": 1} ',
    '{"a" : 1}',
    '{"a": 1, "a": 2}',
    '{"a": 1, "\\u0061": 2}',
    '{"b": {"a": 1, "a" : 2}}',
    '{"b": [[{"a": 1}, {"a": 1, "a": 1}]]}',
    '{"a": " :", "a": "\\": "}',
    '{"a": 1}, {"b": [{}',
    "{}]}",
    "[1]",
    "3",
    "{",
    '{"a": 1}\r',
    '{"a":\r1}',
    '{"a": 1} x',
    '{"a": NaN, "b": 1e999}',
    '{"a": "\\ud800"}',
    '{"a": ' + "9" * 5000 + "}",
    '{"a": ' + "[" * 2000 + "]" * 2000 + "}",
    "\ufeff{}",
]


def seen(rows: Iterable[tuple[str, Any]]) -> Seen:
    """What iterating gives; ``repr``, because NaN is not NaN and 1 is 1.0."""
    found: list[tuple[str, Any]] = []
    try:
        for place, row in rows:
            found.append((place, repr(row)))
    except (TypeError, ValueError) as error:
        return found, f"{type(error).__name__}: {error}"
    return found, None


def one_by_one(blocks: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    for block in blocks:
        yield from block


LINES = st.lists(
    st.dictionaries(TEXTS, VALUES, max_size=3).map(json.dumps)
    | st.dictionaries(TEXTS, VALUES, max_size=2).map(lambda row: json.dumps(row, ensure_ascii=False))
    | st.dictionaries(TEXTS, TEXTS, max_size=2).map(lambda row: json.dumps(row, separators=(" , ", " : ")))
    | st.sampled_from(ODD_LINES),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.sampled_from([1, 30, 2**16]))
@example(['{"a": 1}, {"b": [{}', "{}]}"], "\n", True, 2**16)
@example(['{"a": 1, "a": 2}', '{"a": 1}'], "\n", False, 2**16)
def test_lines_together_are_the_lines_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, last: bool, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes((end.join(lines) + end * last).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "_BLOCK_BYTES", size)
        assert seen(one_by_one(JsonLines(path).blocks())) == seen(JsonLines(path)())


@pytest.mark.parametrize("odd", ODD_LINES)
def test_each_odd_line_among_plain_ones(tmp_path: Path, odd: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n' + odd + '\n{"a": 2}\n', encoding="utf-8")
    assert seen(one_by_one(JsonLines(path).blocks())) == seen(JsonLines(path)())


def test_bytes_that_are_no_utf_8_are_named_by_their_place_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 4)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n{"a": "\xff"}\n')
    rows, error = seen(one_by_one(JsonLines(path).blocks()))
    assert rows == [(f"{path}:1", "{'a': 1}"), (f"{path}:2", "{'a': 2}")]
    assert error is not None and f"{path}:3: not UTF-8: byte 0xff at offset 28" in error


def test_plain_lines_are_not_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(json_lines, "parse_json", refuse)
    path = tmp_path / "lines.jsonl"
    row = {"prompt": [{"role": "user", "content": "1: {a}"}], "n": {"a": [1, {"b": 2}]}}
    path.write_text((json.dumps(row) + "\n") * 3)
    assert [row for block in JsonLines(path).blocks() for row in block.rows] == [row] * 3


def test_blocks_of_several_files_and_of_other_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_blocks, "_ROWS", 2)
    for i in range(2):
        (tmp_path / f"{i}.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    (tmp_path / "2.csv").write_text("prompt\nd\ne\nf\n")
    source = load_columns(tmp_path).source
    assert seen(one_by_one(source_blocks(source))) == seen(source())
    assert len(seen(source())[0]) == 9


USER = {"role": "user", "content": "Hi"}
PROMPTS: list[Any] = [
    "a",
    "ab",
    "",
    "é",
    "\ud800",
    None,
    3,
    b"a",
    [USER],
    [{"content": "Hi", "role": "user"}],
    [{**USER, "name": None}],
    [{**USER, "name": "x"}],
    [{**USER, "content": None}],
    [{"role": "user"}],
    [USER, {"role": "assistant", "content": "a"}],
    [{"role": "assistant", "content": "a"}],
    [],
    [3],
    (USER,),
]
ROWS = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(PROMPTS) for name in ("prompt", "q", "messages", "x")}
) | st.builds(lambda text: {"prompt": text}, st.sampled_from(["a", "ab", [USER]]))


def columns_of(blocks: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    """Checked blocks of columns as rows that have every column of their block."""
    for block in blocks:
        for i in range(block.count):
            yield block.place(i), {name: values[i] for name, values in block.columns.items()}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ROWS, min_size=1, max_size=6),
    st.sampled_from([[], ["prompt"], ["messages"], ["x"], ["prompt", "x"]]),
    st.sampled_from([None, {"q": "prompt"}]),
    st.integers(1, 3),
)
def test_records_together_are_the_records_one_by_one(
    rows: list[dict[str, Any]], required: list[str], rename: dict[str, str] | None, size: int
) -> None:
    try:
        records = load_columns(rows, columns=required, rename=rename)
    except ValueError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "_ROWS", size)
        whole, whole_error = seen(records.rows())
        for limit in (None, 1, 2):
            expected, error = whole, whole_error
            if limit is not None and limit <= len(expected):
                expected, error = expected[:limit], None
            found, found_error = seen(columns_of(records.blocks(limit)))
            assert [place for place, _ in found] == [place for place, _ in expected]
            assert found_error == error
        collected, wanted = Columns(), Columns()
        if whole_error is None:
            for block in records.blocks():
                collected.extend(block.columns, block.count)
            for row in records:
                wanted.add(row)
            assert repr(collected.values) == repr(wanted.values)


def test_messages_are_copies_of_the_users_own() -> None:
    mine = [dict(USER)]
    prompts = build_prompts(data=[{"prompt": mine}], tokenizer=letter_tokenizer("a")).prompts
    prompts[0][0]["content"] = "changed"  # type: ignore[index]
    assert mine == [USER]


def test_plain_messages_are_those_that_the_check_leaves_alone() -> None:
    for prompt in PROMPTS:
        if are_plain([prompt]):
            assert check_messages(prompt, "") == prompt
    assert [i for i, prompt in enumerate(PROMPTS) if are_plain([prompt])] == [8, 9, 14, 15]
    assert not are_plain([[USER], []]) and not are_plain([])


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)), max_size=8), st.integers(1, 4))
def test_columns_of_blocks_are_those_of_rows(rows: list[dict[str, int]], size: int) -> None:
    blocks, single = Columns(), Columns()
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        blocks.extend(transposed(some), len(some))
    for row in rows:
        single.add(row)
    assert blocks.values == single.values and list(blocks.values) == list(single.values)


@given(st.lists(st.sampled_from([*PROMPTS, [{**USER, "n": 1}], [{**USER, "n": 1.0}]]), max_size=8))
def test_repeats_do_not_depend_on_the_blocks(contents: list[Any]) -> None:
    expected = len(contents) - len({one if isinstance(one, str) else repr(one) for one in contents})
    for size in (1, 3, 8):
        repeats = Repeats("the list", "prompt")
        for start in range(0, len(contents), size):
            repeats.extend(contents[start : start + size])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            repeats.warn()
        texts = [str(warning.message) for warning in caught]
        count = f"{expected} of {len(contents)} records"
        assert texts == ([f"the list: {count} repeat an earlier one's prompt"] if expected else [])


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([{"messages": [USER]}, {"messages": [{**USER, "role": "assistant"}]}, {}], "row 1: messages"),
        ([{"prompt": "a"}, {"prompt": [USER]}, {"prompt": None}], "row 1: prompts must be all texts"),
        ([{"prompt": [USER]}, {"prompt": "a"}, {"prompt": ""}], "row 1: prompts must be all texts"),
        ([{"prompt": "a"}, {"prompt": ""}, {"prompt": [USER]}], "row 1: prompt is empty"),
    ],
)  # fmt: skip
def test_the_first_wrong_row_is_named(rows: list[dict[str, Any]], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        prompts_from_records(load_columns(rows), letter_tokenizer("a"))


@pytest.fixture
def template() -> Callable[[str], PreTrainedTokenizerFast]:
    def make(text: str) -> PreTrainedTokenizerFast:
        tokenizer = letter_tokenizer("abc")
        tokenizer.chat_template = text
        return tokenizer

    return make


def test_conversations_rendered_together_are_those_rendered_alone(
    template: Callable[[str], PreTrainedTokenizerFast],
) -> None:
    tokenizer = template(
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "<{{ m.content | trim }}{{ kind }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    chats = [[{**USER, "content": text}] for text in (" a ", "b", "c")]
    assert render_all(chats, tokenizer) == ["<a>", "<b>", "<c>"]
    options = [{"kind": "a"}, {"kind": "b"}, {}]
    assert render_all(chats, tokenizer, options=options) == ["<aa>", "<bb>", "<c>"]
    for own, chat, text in zip(options, chats, ("<aa>", "<bb>", "<c>"), strict=True):
        assert render(chat, tokenizer, generation_prompt=True, options=own) == text
    assert render_all(chats, tokenizer, options=options[:1] * 3) == ["<aa>", "<ba>", "<ca>"]
    wrong = [*chats, [{"role": "tool", "content": "a"}]]
    with pytest.raises(ValueError, match=r"prompts\[13\]: .*template does not accept .*'tool'.*no tools"):
        render_all(wrong, tokenizer, first=10)
