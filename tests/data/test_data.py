"""Users' data: every kind of source gives the same records, and every mistake names its place."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch

from textenv.data.loading import (
    episodes_from_records,
    load_columns,
    preferences_from_records,
    prompts_from_records,
)
from textenv.prompts.chat import encode_conversation

ROWS = [
    {"prompt": "one", "completion": " uno", "answer": "1"},
    {"prompt": "twö", "completion": " dos", "answer": "2"},
]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_any(folder: Path, kind: str) -> Any:
    """ROWS in every form that a source may have."""
    table = datasets.Dataset.from_list(ROWS)
    path = folder / f"rows.{kind}"
    if kind in ("jsonl", "ndjson"):
        return write_lines(path, ROWS)
    if kind == "json":
        path.write_text(json.dumps(ROWS, indent=2), encoding="utf-8")
    elif kind == "lines.json":
        return str(write_lines(path, ROWS))
    elif kind == "csv":
        path.write_text("\ufeffprompt,completion,answer\none, uno,1\n\ntwö, dos,2\n", encoding="utf-8")
    elif kind == "parquet":
        table.to_parquet(path)
    elif kind == "folder":
        write_lines(folder / "rows" / "a.jsonl", ROWS[:1])
        write_lines(folder / "rows" / "b.jsonl", ROWS[1:])
        return folder / "rows"
    elif kind == "saved dataset":
        table.save_to_disk(folder / "saved")
        return folder / "saved"
    elif kind == "saved dict":
        datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(folder / "saved")
        return folder / "saved"
    elif kind == "dataset":
        return table
    elif kind == "iterable dataset":
        return table.to_iterable_dataset()
    elif kind == "dataset dict":
        return datasets.DatasetDict({"train": table, "test": table.select([0])})
    elif kind == "list":
        return ROWS
    elif kind == "columns":
        return {name: [row[name] for row in ROWS] for name in ROWS[0]}
    return path


KINDS = [
    "jsonl",
    "ndjson",
    "json",
    "lines.json",
    "csv",
    "parquet",
    "folder",
    "saved dataset",
    "saved dict",
    "dataset",
    "iterable dataset",
    "dataset dict",
    "list",
    "columns",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same_records_twice(tmp_path: Path, kind: str) -> None:
    records = load_columns(write_any(tmp_path, kind))
    assert list(records) == ROWS
    assert list(records) == ROWS
    assert set(records.columns) == {"prompt", "completion", "answer"}
    assert records.required == ("prompt", "completion")
    assert records.to_columns()["answer"] == ["1", "2"]


@pytest.mark.parametrize(
    ("columns", "required"),
    [
        ("text", ["text"]),
        ("prompt", ["prompt"]),
        ("prompt completion reward", ["prompt", "completion"]),
        ("prompt chosen rejected margin", ["prompt", "chosen", "rejected"]),
        ("prompt messages", ["messages"]),
        ("text prompt", ["prompt"]),
    ],
)
def test_the_format_is_found_by_its_columns(columns: str, required: list[str]) -> None:
    row = dict.fromkeys(columns.split(), "x")
    assert list(load_columns([row]).required) == required


def test_splits_of_folders_by_file_and_folder_name(tmp_path: Path) -> None:
    write_lines(tmp_path / "train-00000-of-00002.jsonl", [{"text": "a"}])
    write_lines(tmp_path / "train-00001-of-00002.jsonl", [{"text": "b"}])
    write_lines(tmp_path / "test" / "part.jsonl", [{"text": "c"}])
    assert load_columns(tmp_path).to_columns() == {"text": ["a", "b"]}
    assert load_columns(tmp_path, split="test").to_columns() == {"text": ["c"]}
    with pytest.raises(ValueError, match=r"no split 'tests'; its splits: test, train"):
        load_columns(tmp_path, split="tests")
    assert list(load_columns(tmp_path / "test", split="train")) == [{"text": "c"}]


def test_splits_of_datasets(tmp_path: Path) -> None:
    for kind in ("dataset dict", "saved dict"):
        data = write_any(tmp_path, kind)
        assert list(load_columns(data, split="test")) == ROWS[:1]
        with pytest.raises(ValueError, match="no split 'dev'"):
            load_columns(data, split="dev")
    for kind in ("dataset", "list", "columns", "jsonl"):
        data = write_any(tmp_path, kind)
        assert list(load_columns(data, split="train")) == ROWS
        with pytest.raises(ValueError, match="has no splits, so split must be None or 'train', got 'test'"):
            load_columns(data, split="test")


def test_columns_can_be_renamed() -> None:
    records = load_columns([{"question": "one", "a": 1}], rename={"question": "prompt"})
    assert list(records) == [{"prompt": "one", "a": 1}]
    with pytest.raises(ValueError, match=r"rename: the list has no column 'questoin'; its columns: question"):
        load_columns([{"question": "one"}], rename={"questoin": "prompt"})
    with pytest.raises(ValueError, match="gives two columns of the list the same name"):
        load_columns([{"question": "one", "prompt": "x"}], rename={"question": "prompt"})


def test_a_long_file_is_streamed(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 1000}) + "\n"
    path = tmp_path / "long.jsonl"
    path.write_text(line * 20_000)  # 20 MB
    tracemalloc.start()
    count = sum(1 for _ in load_columns(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', ":3: not JSON: Expecting value"),
        ("a.jsonl", b'{"text": "x"}\n["y"]\n', ":2: expected a JSON object with column names, got list"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": "\xe9"}\n',
            ":2: not UTF-8: byte 0xe9 at offset 24 of the file",
        ),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), ":1: not UTF-8: byte 0xff at offset 0"),
        ("a.jsonl", b"\n\n", " holds no records"),
        ("a.json", b'[{"text": "x"},\n{"text" "y"}]', ":2: not JSON: Expecting ':' delimiter at column 9"),
        ("a.json", b'[{"text": "x"}, 3]', ", item 1: expected a JSON object, got int"),
        ("a.json", b'{\n"text": "x"}\n', ":1: not JSON"),
        ("a.csv", b"", " holds no records"),
        ("a.csv", b"text\n", " holds no records"),
        ("a.csv", b'text,b\n"x\ny",1\nz\n', ":4: 1 cells, expected 2 like the header ['text', 'b']"),
        ("a.csv", b'text\n"x\n', ":2: not CSV: unexpected end of data"),
        ("a.csv", b"text,text\nx,y\n", ":1: the header names a column twice"),
        ("a.csv", b"text\nx\n\xff\n", ":3: not UTF-8: byte 0xff at offset 7"),
        ("a.parquet", b"PAR1 no", ": not a readable Parquet file"),
        ("a.xlsx", b"", ": unknown kind of file '.xlsx', expected one of"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a\\.") as caught:
        list(load_columns(path))
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({"prompt": None}, ValueError, "prompt is null"),
        ({"prompt": ""}, ValueError, "prompt is empty"),
        ({"prompt": 5}, TypeError, "prompt must be a string or a list of messages, got int 5"),
        ({"prompt": []}, ValueError, "prompt must have at least one message"),
        ({"prompt": ["x"]}, TypeError, r"prompt\[0\] must be a dict with 'role' and 'content', got str"),
        ({"prompt": [{"role": "user"}]}, ValueError, r"prompt\[0\] has no 'content'; it has 'role'"),
        ({"prompt": [{"role": "user", "content": 1}]}, TypeError, r"\['content'\] must be a string, got int"),
        (
            {"promt": "x"},
            ValueError,
            r"no column 'prompt'; its columns: promt",
        ),
        ({"prompt": "x", "completion": None}, ValueError, "completion is null"),
        (
            {"prompt": "x", "completion": "y", "reward": "high"},
            TypeError,
            "reward must be a number, got str 'high'",
        ),
        (
            {"prompt": "x", "completion": "y", "reward": True},
            TypeError,
            "reward must be a number, got bool True",
        ),
        (
            {"prompt": "x", "completion": "y", "reward": float("nan")},
            ValueError,
            "reward must be finite, got nan",
        ),
        ({"prompt": "x", "completion": "y", "label": 2}, ValueError, "label must be true or false, got 2"),
        (
            {"prompt": "x", "completion": "y", "label": "yes"},
            TypeError,
            "label must be true or false, got str 'yes'",
        ),
        ({"prompt": "x", "chosen": "y", "rejected": "y"}, ValueError, "chosen and rejected are equal: 'y'"),
        (
            {"prompt": "x", "chosen": "y", "rejected": "z", "label": 1.5},
            ValueError,
            r"label must lie in \[0, 1\]",
        ),
        ({"prompt": "x", "chosen": "y", "rejected": "z", "margin": None}, ValueError, "margin is null"),
        ({"messages": "hello"}, TypeError, "messages must be a list of messages, got str"),
        (
            {"messages": [{"role": "user", "content": "Hi"}]},
            ValueError,
            "the last message must be the assistant's",
        ),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, ValueError, "there is no prompt"),
        ({"text": 3}, TypeError, "text must be a string, got int 3"),
    ],
)
def test_a_bad_record_is_named(
    tmp_path: Path, byte_tokenizer: Any, row: dict, error: type[Exception], message: str
) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    usual = {
        "chosen": "p",
        "rejected": "q",
        "completion": "c",
        "text": "t",
        "messages": messages,
        "reward": 1.0,
    }
    usual |= {"prompt": "good", "label": True, "margin": 0.5}
    names = ["prompt" if name == "promt" else name for name in row]
    good = {name: usual[name] for name in names}
    if isinstance(row.get("prompt"), list) and row["prompt"]:
        good["prompt"] = [{"role": "user", "content": "good"}]
    path = write_lines(tmp_path / "rows.jsonl", [good, row])
    records = load_columns(path, columns=names)
    if "chosen" in names:
        convert: Any = preferences_from_records
    else:
        convert = prompts_from_records if names == ["prompt"] else episodes_from_records
    with pytest.raises(error, match=message) as caught:
        convert(records, byte_tokenizer)
    assert str(caught.value).startswith(f"{path}:2")


def test_missing_columns_list_what_is_there() -> None:
    with pytest.raises(ValueError, match=r"no column 'completion'; its columns: completions, "):
        load_columns([{"prompt": "x", "completions": "y"}], columns=["prompt", "completion"])
    with pytest.raises(ValueError, match=r"none of the known columns.*; its columns: promt"):
        load_columns([{"promt": "x"}])
    with pytest.raises(ValueError, match=r"the list has no column 'chosen'"):
        load_columns(ROWS).require("chosen")
    with pytest.raises(TypeError, match="columns must be a list of names, got 'prompt'"):
        load_columns(ROWS, columns="prompt")


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: no such file or folder"):
        load_columns(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file or folder"):
        load_columns("none.csv")
    with pytest.raises(FileNotFoundError, match="a/b/c: no such file or folder"):
        load_columns("a/b/c")
    for path in ("./data", "../data", ".cache/pairs"):
        with pytest.raises(FileNotFoundError, match=r"(data|pairs): no such file or folder"):
            load_columns(path)
    with pytest.raises(FileNotFoundError, match="no data file in this folder"):
        load_columns(tmp_path)
    with pytest.raises(ConnectionError, match=r"'someone/something' is no file or folder here.*give a path"):
        load_columns("someone/something")
    with pytest.raises(TypeError, match=r"data must be a path, .*got generator"):
        load_columns(row for row in ROWS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="row 1 must be a dict with column names, got 'two'"):
        list(load_columns([ROWS[0], "two"]))  # type: ignore[list-item]
    with pytest.raises(ValueError, match="all columns must have the same number of values"):
        load_columns({"prompt": ["a", "b"], "answer": ["c"]})
    with pytest.raises(ValueError, match="the list holds no records"):
        load_columns([])


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    asked = []

    def info(self: Any, name: str, timeout: float) -> None:
        asked.append(name)
        raise TimeoutError("no answer")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked again"))
    with pytest.raises(ConnectionError, match=r"'some/data' is no file or folder here, .*: no answer"):
        load_columns("some/data")
    assert asked == ["some/data"]


def test_prompts_carry_their_columns(byte_tokenizer: Any) -> None:
    prompts = prompts_from_records(load_columns(ROWS), byte_tokenizer)
    assert prompts.texts == ["one", "twö"]
    assert prompts.columns == {"completion": [" uno", " dos"], "answer": ["1", "2"]}
    chat = prompts_from_records(load_columns(ROWS), byte_tokenizer, chat_template=True)
    assert chat.texts is not None and chat.texts[0] == "<user> one\n<assistant> "


def test_prompts_from_messages_leave_the_answer_off(byte_tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    records = load_columns([{"messages": turns}, {"messages": turns[:1]}])
    with pytest.warns(UserWarning, match="1 of 2 records repeat an earlier one's prompt"):
        prompts = prompts_from_records(records, byte_tokenizer)
    assert prompts.texts == ["<user> Hi\n<assistant> "] * 2
    with pytest.raises(TypeError, match="row 1: prompts must be all texts or all messages, got list"):
        prompts_from_records(load_columns([{"prompt": "Hi"}, {"prompt": turns[:1]}]), byte_tokenizer)


def test_episodes_from_prompts_and_completions(byte_tokenizer: Any) -> None:
    rows = [row | {"reward": reward} for row, reward in zip(ROWS, (1, 0.5), strict=True)]
    batch = episodes_from_records(load_columns(rows), byte_tokenizer).validate()
    assert batch.prompt_texts(byte_tokenizer) == ["one", "twö"]
    assert batch.completion_texts(byte_tokenizer) == [" uno", " dos"]
    assert batch.input_ids[0, batch.last_action[0]] == byte_tokenizer.eos_token_id and batch.terminated.all()
    assert batch.rewards[torch.arange(2), batch.last_action].tolist() == [1.0, 0.5]
    assert batch.returns.tolist() == [1.0, 0.5]
    assert batch.extras == {"answer": ["1", "2"]}
    assert batch.episode_id.tolist() == [0, 1]


def test_episodes_from_plain_text_start_with_bos(byte_tokenizer: Any) -> None:
    batch = episodes_from_records(load_columns([{"text": "ab"}]), byte_tokenizer)
    assert batch.input_ids[0].tolist()[0] == byte_tokenizer.bos_token_id
    assert batch.action_mask.tolist() == [[False, True, True, True]]


def test_labels_become_bools_where_required(tmp_path: Path, byte_tokenizer: Any) -> None:
    rows = [row | {"label": label} for row, label in zip(ROWS, (1, False), strict=True)]
    columns = ["prompt", "completion", "label"]
    batch = episodes_from_records(load_columns(rows, columns=columns), byte_tokenizer)
    assert batch.extras["label"] == [True, False] and isinstance(batch.extras["label"][0], bool)
    (tmp_path / "a.csv").write_text("prompt,completion,label,reward\na,b,True,1.5\nc,d,0,-2\n")
    batch = episodes_from_records(load_columns(tmp_path / "a.csv", columns=columns), byte_tokenizer)
    assert batch.extras["label"] == [True, False] and batch.returns.tolist() == [1.5, -2.0]
    (tmp_path / "b.csv").write_text("prompt,completion,reward\na,b,1.5\nc,d,high\n")
    with pytest.raises(ValueError, match=r"b\.csv:3: reward must be a number, got 'high'"):
        episodes_from_records(load_columns(tmp_path / "b.csv"), byte_tokenizer)


def test_more_records_than_one_chunk_keep_their_order(byte_tokenizer: Any) -> None:
    rows = [{"prompt": f"p{i}", "completion": "c" * (i % 7), "n": i} for i in range(1500)]
    batch = episodes_from_records(load_columns(rows), byte_tokenizer)
    assert batch.extras["n"] == list(range(1500)) == batch.episode_id.tolist()
    assert batch.prompt_texts(byte_tokenizer)[1400] == "p1400"
    rows[1300]["prompt"] = "p" * 50
    with pytest.raises(ValueError, match=r"^row 1300: .* 50 tokens, .*max_length=20"):
        episodes_from_records(load_columns(rows), byte_tokenizer, max_length=20)


def test_long_completions_are_cut_and_marked(byte_tokenizer: Any) -> None:
    batch = episodes_from_records(load_columns(ROWS), byte_tokenizer, max_length=6)
    assert batch.lengths.tolist() == [6, 6]
    assert batch.truncated.all() and not batch.terminated.any()


def test_an_empty_completion_needs_eos(byte_tokenizer: Any) -> None:
    records = load_columns([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": ""}])
    assert episodes_from_records(records, byte_tokenizer).response_lengths.tolist() == [2, 1]
    with pytest.raises(ValueError, match="row 1: no token to learn from"):
        episodes_from_records(records, byte_tokenizer, append_eos=False)


def test_repeats_are_kept_and_counted(byte_tokenizer: Any) -> None:
    with pytest.warns(
        UserWarning, match="the list: 2 of 4 records repeat an earlier one's prompt and completion"
    ):
        batch = episodes_from_records(load_columns(ROWS * 2), byte_tokenizer)
    assert len(batch) == 4


def test_preferences(byte_tokenizer: Any) -> None:
    rows = [
        {"prompt": "a", "chosen": "yes", "rejected": "no", "margin": 2, "label": 0.75, "who": "ann"},
        {"prompt": "b", "chosen": "ja", "rejected": "", "margin": 0.5, "label": 1.0},
    ]
    pairs = preferences_from_records(load_columns(rows), byte_tokenizer)
    assert pairs.chosen.completion_texts(byte_tokenizer) == ["yes", "ja"]
    assert pairs.rejected.completion_texts(byte_tokenizer) == ["no", ""]
    assert (
        pairs.chosen.prompt_texts(byte_tokenizer) == pairs.rejected.prompt_texts(byte_tokenizer) == ["a", "b"]
    )
    assert pairs.margin is not None and pairs.margin.tolist() == [2.0, 0.5]
    assert pairs.label is not None and pairs.label.tolist() == [0.75, 1.0]
    assert pairs.chosen.extras == {"who": ["ann", None]}
    plain = preferences_from_records(
        load_columns([{"prompt": "a", "chosen": "b", "rejected": "c"}]), byte_tokenizer
    )
    assert plain.margin is None and plain.label is None


CONVERSATION = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": "Hey"},
    {"role": "assistant", "content": "Ha"},
]


def test_the_assistants_last_turn_is_the_completion(byte_tokenizer: Any) -> None:
    batch = episodes_from_records(load_columns([{"messages": CONVERSATION}]), byte_tokenizer)
    decode = byte_tokenizer.decode
    assert decode(batch.input_ids[0, : batch.prompt_lengths[0]]) == (
        "<user> Hi\n<assistant> Ho</s>\n<user> Hey\n<assistant> "
    )
    assert decode(batch.input_ids[0][batch.action_mask[0]]) == "Ha</s>"
    assert batch.input_ids[0, -1] == byte_tokenizer.eos_token_id


def test_all_turns_of_the_assistant_can_be_actions(byte_tokenizer: Any) -> None:
    rows = [{"messages": CONVERSATION, "reward": 1.0}]
    batch = episodes_from_records(load_columns(rows), byte_tokenizer, turns="all").validate()
    decode = byte_tokenizer.decode
    assert decode(batch.input_ids[0, : batch.prompt_lengths[0]]) == "<user> Hi\n<assistant> "
    assert decode(batch.input_ids[0][batch.action_mask[0]]) == "Ho</s>Ha</s>"
    assert decode(batch.input_ids[0]) == "<user> Hi\n<assistant> Ho</s>\n<user> Hey\n<assistant> Ha</s>"
    assert batch.rewards.nonzero().tolist() == [[0, int(batch.lengths[0]) - 1]]


def test_preferences_over_conversations_of_several_turns(byte_tokenizer: Any) -> None:
    other = [CONVERSATION[0], {"role": "assistant", "content": "No"}, CONVERSATION[2], CONVERSATION[3]]
    rows = [{"prompt": CONVERSATION[:1], "chosen": CONVERSATION[1:], "rejected": other[1:]}]
    pairs = preferences_from_records(load_columns(rows), byte_tokenizer, turns="all")
    sides = []
    for side, texts in ((pairs.chosen, "Ho</s>Ha</s>"), (pairs.rejected, "No</s>Ha</s>")):
        assert byte_tokenizer.decode(side.input_ids[0][side.action_mask[0]]) == texts
        assert byte_tokenizer.decode(side.input_ids[0, : side.prompt_lengths[0]]) == "<user> Hi\n<assistant> "
        sides.append(int(side.action_mask.sum()))
    # The default compares the last turn alone, with everything before it as the prompt.
    last = preferences_from_records(load_columns(rows), byte_tokenizer)
    assert int(last.chosen.action_mask.sum()) < sides[0]


def test_prompt_and_completion_may_be_messages(byte_tokenizer: Any) -> None:
    row = {"prompt": CONVERSATION[:3], "completion": CONVERSATION[3:]}
    by_messages = episodes_from_records(load_columns([{"messages": CONVERSATION}]), byte_tokenizer)
    assert torch.equal(
        episodes_from_records(load_columns([row]), byte_tokenizer).input_ids, by_messages.input_ids
    )
    pair = {"prompt": CONVERSATION[:3], "chosen": CONVERSATION[3:], "rejected": CONVERSATION[1:2]}
    pairs = preferences_from_records(load_columns([pair]), byte_tokenizer)
    assert torch.equal(pairs.chosen.input_ids, by_messages.input_ids)
    assert pairs.rejected.completion_texts(byte_tokenizer) == ["Ho"]


def test_texts_can_be_rendered_as_a_chat(byte_tokenizer: Any) -> None:
    records = load_columns([{"prompt": "Hi", "completion": "Ho"}])
    batch = episodes_from_records(records, byte_tokenizer, chat_template=True)
    assert byte_tokenizer.decode(batch.input_ids[0]) == "<user> Hi\n<assistant> Ho</s>"
    assert byte_tokenizer.decode(batch.input_ids[0][batch.action_mask[0]]) == "Ho</s>"


def test_texts_and_messages_do_not_mix(byte_tokenizer: Any) -> None:
    records = load_columns(
        [{"prompt": "Hi", "completion": "Ho"}, {"prompt": "Hi", "completion": CONVERSATION[3:]}]
    )
    with pytest.raises(TypeError, match="row 1: prompt and completion must both be texts or both messages"):
        episodes_from_records(records, byte_tokenizer)


def test_a_cut_conversation_is_marked(byte_tokenizer: Any) -> None:
    records = load_columns([{"messages": CONVERSATION[:2]}])
    whole = episodes_from_records(records, byte_tokenizer)
    cut = episodes_from_records(records, byte_tokenizer, max_length=int(whole.lengths[0]) - 1)
    assert cut.truncated.tolist() == [True] and cut.terminated.tolist() == [False]
    assert byte_tokenizer.decode(cut.input_ids[0][cut.action_mask[0]]) == "Ho"
    with pytest.raises(
        ValueError, match=r"row 0: the prompt has .* leaves no room for a completion in max_length=3"
    ):
        episodes_from_records(records, byte_tokenizer, max_length=3)


def test_chat_templates_that_cannot_be_split_are_refused(byte_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="turns must be one of"):
        encode_conversation(CONVERSATION, byte_tokenizer, turns="some")
    template = byte_tokenizer.chat_template
    try:
        byte_tokenizer.chat_template = "{{ messages | length }}" + template
        with pytest.raises(
            ValueError, match="renders the conversation up to message 3 differently once it goes on"
        ):
            encode_conversation(CONVERSATION, byte_tokenizer)
        byte_tokenizer.chat_template = None
        with pytest.raises(ValueError, match="messages need a tokenizer"):
            encode_conversation(CONVERSATION, byte_tokenizer)
    finally:
        byte_tokenizer.chat_template = template


def test_a_template_without_eos_gets_one(byte_tokenizer: Any) -> None:
    template = byte_tokenizer.chat_template
    try:
        byte_tokenizer.chat_template = template.replace("</s>", "")
        batch = episodes_from_records(load_columns([{"messages": CONVERSATION[:2]}]), byte_tokenizer)
    finally:
        byte_tokenizer.chat_template = template
    assert batch.input_ids[0, -1] == byte_tokenizer.eos_token_id and batch.action_mask[0, -1]
