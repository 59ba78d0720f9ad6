"""Reading tables and prompts: every source gives the same columns, every error says where."""

import json

import datasets
import pytest

from textenv.tasks import Table, letter_tokenizer, make_task, read_table

ROWS = [{"prompt": "ab", "answer": 1}, {"prompt": "c", "answer": 2}]
COLUMNS = {"prompt": ["ab", "c"], "answer": [1, 2]}


def write(path, kind):
    """The rows as a file or folder of some kind."""
    if kind in (".jsonl", ".json"):
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n")
    elif kind == ".csv":
        path.write_text("prompt,answer\nab,1\nc,2\n")
    elif kind == ".tsv":
        path.write_text("prompt\tanswer\nab\t1\nc\t2\n")
    elif kind == ".parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ""])
@pytest.mark.parametrize("as_text", [False, True])
def test_files(tmp_path, kind, as_text):
    path = write(tmp_path / f"data{kind}", kind)
    table = read_table(str(path) if as_text else path)
    assert table["prompt"] == COLUMNS["prompt"]
    assert [int(value) for value in table["answer"]] == COLUMNS["answer"]  # CSV knows texts alone
    assert len(table) == 2 and "answer" in table and "other" not in table


@pytest.mark.parametrize("source", [ROWS, COLUMNS, datasets.Dataset.from_list(ROWS)])
def test_objects(source):
    assert read_table(source).columns == COLUMNS


def test_lists_of_texts_and_of_conversations():
    assert read_table(["x", "y"]).columns == {"prompt": ["x", "y"]}
    turn = [{"role": "user", "content": "x"}]
    assert read_table([turn, turn]).columns == {"messages": [turn, turn]}


def test_splits_of_a_dataset_dict(tmp_path):
    parts = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS),
        test=datasets.Dataset.from_list([{"prompt": "q", "answer": 9}]),
    )
    assert read_table(parts, split="test").columns == {"prompt": ["q"], "answer": [9]}
    parts.save_to_disk(str(tmp_path / "parts"))
    assert read_table(tmp_path / "parts", split="test")["prompt"] == ["q"]
    for source in (parts, tmp_path / "parts"):
        with pytest.raises(ValueError, match="split must be one of 'train', 'test', got 'dev'"):
            read_table(source, split="dev")


def test_json_rows_may_lack_columns(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b", "n": 1}\n')
    table = read_table(path)
    assert table.columns == {"prompt": ["a", "b"], "n": [None, 1]}
    assert [table.where(row) for row in range(2)] == [f"{path}:1", f"{path}:3"]


def test_csv_lines_are_counted_in_the_file(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('prompt,n\n"a\nb",1\nc,2\n')
    table = read_table(path)
    assert table["prompt"] == ["a\nb", "c"]
    assert [table.where(row) for row in range(2)] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            '{"prompt": "a"}\n{"prompt": \n',
            r"x.jsonl:2 is not a JSON value on one line: .* column \d+",
        ),
        ("x.jsonl", '{"prompt": "a"}\n[1]\n', "x.jsonl:2 must be a JSON object, got list"),
        ("x.jsonl", "\n", "x.jsonl has no rows"),
        ("x.csv", "prompt,n\na,1\nb\n", "x.csv:3 must have 2 fields like the header, got 1"),
        ("x.csv", "prompt,n\na,1,2\n", "x.csv:2 must have 2 fields like the header, got 3"),
        ("x.csv", 'prompt,n\na,"1\n', "x.csv:2 is not valid CSV"),
        ("x.parquet", "no", "x.parquet is not a readable Parquet file"),
        ("x.txt", "a\n", r"x.txt must end in one of .jsonl, .json, .csv, .tsv, .parquet, got '.txt'"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["./no-such", "no-such.jsonl", "/no/such", "~/no-such.csv"])
def test_missing_files(name):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        read_table(name)


def test_hub_ids_that_cannot_be_loaded():
    with pytest.raises(ValueError, match="'nobody/no-such' is no file or folder here, and as a hub id"):
        read_table("nobody/no-such")


def test_a_folder_that_is_no_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"must be a folder written by Dataset.save_to_disk"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (3, TypeError, "expected a path, hub id, data set, list of rows or mapping of columns, got int"),
        (["a", {"prompt": "b"}], TypeError, "mappings only or lists of messages only, got dict, str"),
        ([], ValueError, "the list has no rows"),
        ({"a": [1], "b": [1, 2]}, ValueError, "columns of the columns must have equal lengths"),
    ],
)
def test_bad_objects(source, error, message):
    with pytest.raises(error, match=message):
        read_table(source)


def test_unknown_column():
    with pytest.raises(ValueError, match="here has no column 'b'; it has a"):
        Table(columns={"a": [1]}, source="here")["b"]


# -- the task "prompts" --------------------------------------------------------------------------------------


def build(data, **kwargs):
    kwargs.setdefault("tokenizer", letter_tokenizer("abc"))
    return make_task("prompts").build(data=data, **kwargs)


def test_other_columns_reach_rewards(tmp_path):
    data = build(
        write(tmp_path / "x.jsonl", ".jsonl"), rewards=["length"], max_new_tokens=3, max_prompt_tokens=1
    )
    assert data.prompts == ["ab", "c"] and data.columns == {"answer": [1, 2]}
    assert (data.rewards, data.max_new_tokens) == (["length"], 3)
    assert data.prompt_set().lengths.tolist() == [1, 1]


def test_limit_and_another_prompt_column():
    data = build({"question": ["a", "b"], "n": [1, 2]}, prompt_column="question", limit=1)
    assert data.prompts == ["a"] and data.columns == {"n": [1]}
    assert build(["a"], limit=5).prompts == ["a"]


def test_messages(byte_tokenizer):
    turns = [{"role": "user", "content": "Hi"}]
    data = build([{"messages": turns, "n": 1}], tokenizer=byte_tokenizer)
    assert data.prompts == [turns] and data.columns == {"n": [1]}
    assert data.prompt_set(chat_template=True).texts == ["<user> Hi\n<assistant> "]


def test_tokenizer_from_a_folder(tmp_path):
    letter_tokenizer("abc").save_pretrained(tmp_path)
    data = build(["cab"], tokenizer=str(tmp_path))
    assert data.prompt_set().lengths.tolist() == [3]
    assert data.tokenizer.eos_token_id == 4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"data": None}, "task 'prompts' needs data"),
        ({"data": ["a"], "tokenizer": None}, "task 'prompts' needs a tokenizer"),
        ({"data": ["a"], "tokenizer": "./no-such"}, "tokenizer './no-such' can't be loaded"),
        ({"data": {"text": ["a"]}}, "the columns must have a column 'prompt' or 'messages', got text"),
        ({"data": ["a"], "prompt_column": "question"}, "the list has no column 'question'; it has prompt"),
        ({"data": ["a", " "]}, "row 1 of the list: 'prompt' is empty"),
        ({"data": [{"prompt": 3}]}, "row 0 of the list: 'prompt' must be a text or a list of messages"),
        (
            {"data": [{"prompt": [{"text": "a"}]}]},
            "row 0 of the list: 'prompt' must be a text or a list of messages",
        ),
        ({"data": ["a"], "limit": 0}, "limit must be >= 1, got 0"),
    ],
)
def test_bad_prompts(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_errors_name_file_and_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": null}\n')
    with pytest.raises(ValueError, match=r"x.jsonl:2: 'prompt' must be a text .* got None"):
        build(path)
    with pytest.raises(TypeError, match="tokenizer must be a name, a folder or a tokenizer, got int"):
        build(["a"], tokenizer=3)
