"""The task "prompts": every source gives prompts and columns, every error says where."""

import json

import datasets
import pytest

from textenv.tasks import letter_tokenizer, make_task

ROWS = [{"prompt": "ab", "answer": 1}, {"prompt": "c", "answer": 2}]


def build(data, split="train", **kwargs):
    kwargs.setdefault("tokenizer", letter_tokenizer("abc"))
    return make_task("prompts").build(split, data=data, **kwargs)


def sources(folder):
    """The same rows in every form."""
    (folder / "x.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n")
    (folder / "x.csv").write_text("prompt,answer\nab,1\nc,2\n")
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "x.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    files = [folder / name for name in ("x.jsonl", "x.csv", "x.parquet", "saved")]
    columns = {"prompt": ["ab", "c"], "answer": [1, 2]}
    return [*files, *map(str, files), ROWS, columns, datasets.Dataset.from_list(ROWS)]


def test_every_source_gives_prompts_and_columns(tmp_path):
    for source in sources(tmp_path):
        data = build(source, rewards=["length"], max_new_tokens=3, max_prompt_tokens=1, validation=0)
        assert data.prompts == ["ab", "c"], source
        assert [int(value) for value in data.columns["answer"]] == [1, 2]  # CSV knows texts alone
        assert list(data.columns) == ["answer"]
        assert (data.rewards, data.max_new_tokens) == (["length"], 3)
        assert data.prompt_set().lengths.tolist() == [1, 1]


def test_lists_of_texts():
    data = build(["a", "b"], None)
    assert data.prompts == ["a", "b"] and data.columns == {}
    assert data.max_new_tokens == 64 and list(data.rewards) == []


def test_splits():
    parts = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[1:])
    )
    assert build(parts, "test").prompts == ["c"]
    with pytest.raises(ValueError, match=r"no split 'dev'; its splits: test, train"):
        build(parts, "dev")
    with pytest.raises(ValueError, match="a list has no splits"):
        build(["a"], "dev")


def test_limit_and_another_prompt_column():
    data = build({"question": ["a", "b"], "n": [1, 2]}, prompt_column="question", limit=1)
    assert data.prompts == ["a"] and data.columns == {"n": [1]}
    assert build(["a"], limit=5).prompts == ["a"]


def test_messages(byte_tokenizer):
    question = [{"role": "user", "content": "Hi"}]
    answered = [*question, {"role": "assistant", "content": "Ho"}]
    for form in ([{"messages": answered, "n": 1}], [{"prompt": question, "n": 1}]):
        data = build(form, tokenizer=byte_tokenizer)
        assert data.prompts == [question] and data.columns == {"n": [1]}
        assert data.prompt_set().texts == ["<user> Hi\n<assistant> "]
    assert build([question, answered], tokenizer=byte_tokenizer).prompts == [question] * 2


def test_texts_as_a_users_message(byte_tokenizer):
    prompts = build(["Hi"], tokenizer=byte_tokenizer).prompt_set(chat_template=True)
    assert prompts.texts == ["<user> Hi\n<assistant> "]


def test_tokenizer_from_a_folder(tmp_path):
    letter_tokenizer("abc").save_pretrained(tmp_path)
    data = build(["cab"], tokenizer=str(tmp_path))
    assert data.prompt_set().lengths.tolist() == [3]
    assert data.tokenizer.eos_token_id == 4


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"data": None}, ValueError, "task 'prompts' needs data"),
        ({"data": ["a"], "tokenizer": None}, ValueError, "task 'prompts' needs a tokenizer"),
        ({"data": ["a"], "tokenizer": "./no-such"}, ValueError, "tokenizer './no-such' can't be loaded"),
        (
            {"data": ["a"], "tokenizer": 3},
            TypeError,
            "tokenizer must be a name, a folder or a tokenizer, got int",
        ),
        ({"data": {"promt": ["a"]}}, ValueError, r"no column 'prompt'; its columns: promt"),
        ({"data": ["a"], "prompt_column": "question"}, ValueError, "no column 'question'"),
        ({"data": ["a", ""]}, ValueError, "row 1: prompt is empty"),
        (
            {"data": [{"prompt": 3}]},
            TypeError,
            "row 0: prompt must be a string or a list of messages, got int",
        ),
        (
            {"data": [[{"role": "assistant", "content": "x"}]]},
            ValueError,
            "row 0: messages hold the assistant's turn alone",
        ),
        ({"data": ["a"], "limit": 0}, ValueError, "limit must be >= 1, got 0"),
        ({"data": []}, ValueError, "the list holds no records"),
        ({"data": "./no-such.jsonl"}, FileNotFoundError, "no-such.jsonl"),
    ],
)
def test_bad_prompts(kwargs, error, message):
    with pytest.raises(error, match=message):
        build(**kwargs)


def test_errors_name_file_and_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": null}\n')
    with pytest.raises(ValueError, match=r"x.jsonl:3: prompt is null"):
        build(path)


def test_repeated_prompts_are_kept_and_counted():
    with pytest.warns(UserWarning, match="1 of 3 records repeat an earlier one's prompt"):
        data = build(["ab", "c", "ab"], None)
    assert data.prompts == ["ab", "c", "ab"]
