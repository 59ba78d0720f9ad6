"""Episodes and preferences survive a trip to disk unchanged, and damaged files are named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.files import (
    episodes_from_dataset,
    episodes_to_dataset,
    load_episodes,
    preferences_from_dataset,
    preferences_to_dataset,
    save_episodes,
)
from textenv.episodes.preferences import PreferenceBatch
from textenv.utils.files import atomic_file, atomic_folder

FORMS = ["episodes", "episodes.jsonl"]


def full_batch(dtype: torch.dtype = torch.float32) -> EpisodeBatch:
    """Three episodes of different length with every field set, and padding that is not zero."""
    batch = EpisodeBatch.from_ids(
        [[5, 6], [7], [8, 9, 10]],
        [[1, 2, 3], [4], []],
        pad_token_id=99,
        extras={
            "answer": ["x", "ÿ\n", "z"],
            "mixed": [1, "two", None],
            "nested": [{"a": 1}, {"b": [2.5]}, {}],
            "label": [True, False, None],
        },
        sampling={"temperature": 0.7, "top_k": 0, "stop_token_ids": [1], "weights_version": 3},
        terminated=torch.tensor([True, False, True]),
        truncated=torch.tensor([False, True, False]),
        episode_id=torch.tensor([11, 2**40, 12]),
        prompt_index=torch.tensor([4, 5, 6]),
    )
    generator = torch.Generator().manual_seed(1)
    for name in ("log_probs", "values", "rewards"):
        noise = torch.rand(batch.input_ids.shape, generator=generator, dtype=torch.float64)
        setattr(batch, name, (noise * batch.action_mask).to(dtype))
    batch.final_values = torch.rand(3, generator=generator, dtype=torch.float64).to(dtype)
    batch.reward_terms = {"kl": batch.rewards * 0.5, "raw/model": batch.rewards * 3}
    return batch


def assert_same(left: EpisodeBatch, right: EpisodeBatch) -> None:
    tensors, others = dict(left.tensors()), dict(right.tensors())
    assert list(tensors) == list(others)
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name
    assert json.dumps(left.extras) == json.dumps(right.extras)
    assert left.sampling == right.sampling


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_field_and_dtype_comes_back(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    batch = full_batch(dtype)
    batch.save(tmp_path / form)
    assert_same(batch, EpisodeBatch.load(tmp_path / form))


@pytest.mark.parametrize("form", FORMS)
def test_optional_fields_stay_absent_and_spare_width_comes_back(tmp_path: Path, form: str) -> None:
    wide = EpisodeBatch.from_ids([[1, 2]], [[3]])
    wide = EpisodeBatch(
        input_ids=torch.nn.functional.pad(wide.input_ids, (0, 4), value=7),
        attention_mask=torch.nn.functional.pad(wide.attention_mask, (0, 4)),
        action_mask=torch.nn.functional.pad(wide.action_mask, (0, 4)),
        prompt_lengths=wide.prompt_lengths,
    )
    wide.save(tmp_path / form)
    loaded = EpisodeBatch.load(tmp_path / form)
    assert_same(wide, loaded)
    assert loaded.log_probs is None and loaded.values is None and loaded.final_values is None


def test_actions_with_gaps_come_back(tmp_path: Path) -> None:
    batch = EpisodeBatch.from_ids([[1]], [[2, 3, 4, 5]])
    batch.action_mask[0, 2] = False
    for form in FORMS:
        batch.save(tmp_path / form)
        assert EpisodeBatch.load(tmp_path / form).action_mask.tolist() == [[False, True, False, True, True]]


def test_an_empty_batch_fits_a_folder_but_not_json_lines(tmp_path: Path) -> None:
    empty = full_batch().select([])
    empty.save(tmp_path / "empty")
    assert_same(empty, EpisodeBatch.load(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"empty\.jsonl: JSON lines cannot hold an empty batch"):
        empty.save(tmp_path / "empty.jsonl")


@pytest.mark.parametrize("form", ["pairs", "pairs.jsonl"])
def test_preferences_come_back(tmp_path: Path, form: str) -> None:
    pairs = PreferenceBatch(
        chosen=full_batch(),
        rejected=full_batch(torch.float64),
        margin=torch.tensor([0.1, 1 / 3, 2.0]),
        label=torch.tensor([0.9, 0.8, 1 / 3], dtype=torch.float64),
    )
    pairs.save(tmp_path / form)
    loaded = PreferenceBatch.load(tmp_path / form)
    assert_same(pairs.chosen, loaded.chosen)
    assert_same(pairs.rejected, loaded.rejected)
    assert loaded.margin is not None and torch.equal(loaded.margin, pairs.margin)
    assert loaded.label is not None and torch.equal(loaded.label, pairs.label)
    assert loaded.label.dtype == torch.float64


@pytest.mark.parametrize("form", ["pairs", "pairs.jsonl"])
def test_preferences_without_margin_and_label(tmp_path: Path, form: str) -> None:
    PreferenceBatch(chosen=full_batch(), rejected=full_batch()).save(tmp_path / form)
    loaded = PreferenceBatch.load(tmp_path / form)
    assert loaded.margin is None and loaded.label is None


float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(float32s, min_size=1, max_size=5), min_size=1, max_size=4))
def test_json_lines_keep_every_float32_exactly(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    batch = EpisodeBatch.from_ids([[1]] * len(rows), [[2] * len(row) for row in rows])
    batch.rewards[batch.action_mask] = torch.tensor([x for row in rows for x in row])
    path = tmp_path_factory.mktemp("floats") / "e.jsonl"
    batch.save(path)
    assert torch.equal(EpisodeBatch.load(path).rewards, batch.rewards)


def test_json_lines_are_readable_and_can_be_appended(tmp_path: Path) -> None:
    batch = full_batch()
    batch.rewards = batch.at_last_action(torch.tensor([0.1, 0.2, 0.0]))
    batch.save(tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and '"rewards": [0.0, 0.0, 0.0, 0.0, 0.1]' in lines[0] and "ÿ" in lines[1]
    (tmp_path / "two.jsonl").write_text("\n".join([*lines, "", *lines[:1]]) + "\n", encoding="utf-8")
    both = EpisodeBatch.load(tmp_path / "two.jsonl")
    assert both.episode_id.tolist() == [11, 2**40, 12, 11]


class _Tokenizer:
    """Decodes ids to their decimal digits."""

    def batch_decode(self, ids: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in ids]


@pytest.mark.parametrize("form", FORMS)
def test_texts_are_written_for_the_reader(tmp_path: Path, form: str) -> None:
    batch = full_batch()
    save_episodes(batch, tmp_path / form, tokenizer=_Tokenizer())  # type: ignore[arg-type]
    if form == "episodes":
        row = datasets.load_from_disk(tmp_path / form)[0]
    else:
        row = json.loads((tmp_path / form).read_text(encoding="utf-8").splitlines()[0])
    assert (row["prompt"], row["completion"]) == ("5 6", " 1 2 3")
    assert_same(batch, load_episodes(tmp_path / form))


def test_datasets_can_be_selected_and_shuffled_in_between() -> None:
    batch = full_batch(torch.float64)
    dataset = episodes_to_dataset(batch)
    assert dataset["extras/answer"][:2] == ["x", "ÿ\n"] and dataset[1]["input_ids"] == [7, 4]
    assert_same(batch, episodes_from_dataset(dataset))
    turned = episodes_from_dataset(dataset.select([2, 0]))
    assert turned.episode_id.tolist() == [12, 11] and turned.sampling == batch.sampling
    assert turned.extras["mixed"] == [None, 1] and turned.rewards.dtype == torch.float64
    pairs = preferences_to_dataset(PreferenceBatch(chosen=batch, rejected=batch)).select([1])
    assert preferences_from_dataset(pairs).chosen.episode_id.tolist() == [2**40]


def test_a_dataset_made_by_hand_is_read() -> None:
    rows = {"input_ids": [[1, 2, 3]], "prompt_lengths": [1], "action_mask": [[False, True, True]]}
    batch = episodes_from_dataset(datasets.Dataset.from_dict(rows))
    assert batch.input_ids.tolist() == [[1, 2, 3]] and batch.terminated.tolist() == [True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_mask": None}, "has no column 'action_mask'; its columns: "),
        ({"rewards": [[0.0]]}, "row 0: rewards has 1 values, expected 3 like input_ids"),
        ({"colour": ["red"]}, "unknown column 'colour'; extra columns are named 'extras/NAME'"),
        ({"input_ids": [None]}, "input_ids must be a column of lists, got null"),
        ({"rewards": ["abc"]}, "rewards must be a column of lists, got string"),
        ({"rewards": [["a", "b", "c"]]}, "rewards must hold numbers"),
        ({"prompt_lengths": [None]}, "row 0: prompt_lengths is null"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(change: dict, message: str) -> None:
    rows: dict = {"input_ids": [[1, 2, 3]], "prompt_lengths": [1], "action_mask": [[False, True, True]]}
    rows = {name: value for name, value in (rows | change).items() if value is not None}
    with pytest.raises(ValueError, match="the dataset") as caught:
        episodes_from_dataset(datasets.Dataset.from_dict(rows))
    assert message in str(caught.value)


GOOD = {"input_ids": [1, 2], "prompt_lengths": 1, "action_mask": [0, 1]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[1]", "expected a JSON object, got list"),
        (
            json.dumps({"input_ids": [1]}),
            r"\['action_mask', 'prompt_lengths'\] must be in every line or in none",
        ),
        (json.dumps(GOOD | {"action_mask": [0]}), "action_mask has 1 values, expected 2 like input_ids"),
        (json.dumps(GOOD | {"action_mask": [0, 2]}), "action_mask must be 0 or 1"),
        (json.dumps(GOOD | {"action_mask": [1, 1]}), "action_mask must be 0 at the first token"),
        (json.dumps(GOOD | {"input_ids": [1, 2.5]}), "input_ids must be a list, each integer"),
        (json.dumps(GOOD | {"input_ids": "ab"}), "input_ids must be a list, each integer"),
        (json.dumps(GOOD | {"input_ids": [[1], [2, 3]]}), "input_ids must be a list, each integer"),
        (json.dumps(GOOD | {"prompt_lengths": [1]}), "prompt_lengths must be one integer"),
        (json.dumps(GOOD | {"prompt_lengths": None}), "prompt_lengths must be one integer"),
        (json.dumps(GOOD | {"extras": [1]}), "extras must be an object, got list"),
        (json.dumps(GOOD | {"colour": 1}), r"unknown fields \['colour'\]"),
        (json.dumps(GOOD | {"sampling": {"temperature": 2}}), "sampling differs from the first line's"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        EpisodeBatch.load(path)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"a": "\xff"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: not UTF-8 at byte 7 of the line"):
        EpisodeBatch.load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({"chosen": GOOD}), "a pair must have the objects 'chosen' and 'rejected'"),
        (
            json.dumps({"chosen": GOOD, "rejected": {"input_ids": [1]}}),
            "1: rejected: an episode must have prompt_lengths",
        ),
        (json.dumps({"chosen": GOOD, "rejected": GOOD, "margin": "big"}), "margin must be one number"),
    ],
)
def test_a_bad_pair_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        PreferenceBatch.load(path)


def test_missing_and_foreign_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        EpisodeBatch.load(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="none: no such file or folder"):
        EpisodeBatch.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"there is no dataset_info\.json in it"):
        EpisodeBatch.load(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl: the file holds no episodes"):
        EpisodeBatch.load(tmp_path / "empty.jsonl")
    (tmp_path / "e.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"e\.txt is a file, expected a folder"):
        EpisodeBatch.load(tmp_path / "e.txt")
    PreferenceBatch(chosen=full_batch(), rejected=full_batch()).save(tmp_path / "pairs")
    with pytest.raises(ValueError, match="pairs holds preferences, expected episodes"):
        EpisodeBatch.load(tmp_path / "pairs")


@pytest.mark.parametrize("keep", [0, 100, -9])
def test_a_truncated_arrow_file_is_named(tmp_path: Path, keep: int) -> None:
    full_batch().save(tmp_path / "e")
    (file,) = (tmp_path / "e").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"e/data-00000-of-00001\.arrow: damaged"):
        EpisodeBatch.load(tmp_path / "e")


def test_damaged_metadata_is_named(tmp_path: Path) -> None:
    full_batch().save(tmp_path / "e")
    (tmp_path / "e" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"e/state\.json: damaged"):
        EpisodeBatch.load(tmp_path / "e")
    full_batch().save(tmp_path / "f")
    next((tmp_path / "f").glob("*.arrow")).unlink()
    with pytest.raises(FileNotFoundError, match=r"arrow: missing, though .*state\.json names it"):
        EpisodeBatch.load(tmp_path / "f")


@pytest.mark.parametrize("form", FORMS)
def test_values_that_json_does_not_know_are_refused_and_the_older_file_stays(
    tmp_path: Path, form: str
) -> None:
    full_batch().save(tmp_path / form)
    broken = full_batch()
    broken.extras["answer"] = ["x", {1, 2}, "z"]
    with pytest.raises(TypeError, match=r"extras\['answer'\]\[1\] must be a JSON value"):
        broken.save(tmp_path / form)
    assert_same(full_batch(), EpisodeBatch.load(tmp_path / form))
    assert [path.name for path in tmp_path.iterdir()] == [form]


def test_an_invalid_batch_is_not_saved(tmp_path: Path) -> None:
    batch = full_batch()
    batch.action_mask[1, -1] = True
    with pytest.raises(ValueError, match="action_mask must be False on padding"):
        batch.save(tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


def test_saving_replaces_saved_folders_but_no_others(tmp_path: Path) -> None:
    full_batch().save(tmp_path / "e")
    full_batch().select([1]).save(tmp_path / "e")
    assert len(EpisodeBatch.load(tmp_path / "e")) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="mine holds other files"):
        full_batch().save(tmp_path / "mine")
    with pytest.raises(FileExistsError, match="is a file"):
        full_batch().save(tmp_path / "mine" / "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_crash_while_writing_leaves_the_older_content(tmp_path: Path) -> None:
    file, folder = tmp_path / "f.txt", tmp_path / "d"
    file.write_text("old")
    folder.mkdir()
    (folder / "marker").write_text("old")
    with pytest.raises(RuntimeError), atomic_file(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_folder(folder, marker="marker") as temporary:
        (temporary / "marker").write_text("half")
        raise RuntimeError
    assert file.read_text() == "old" and (folder / "marker").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f.txt"]


def test_progress_bars_stay_as_the_user_had_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    datasets.enable_progress_bars()
    full_batch().save(tmp_path / "e")
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", ["folder", "lines"])
def test_a_file_with_a_reward_for_a_token_of_others_is_refused(form: str, tmp_path: Path) -> None:
    batch = EpisodeBatch.from_ids([[1], [1, 2]], [[2, 3], [3, 4]], rewards=[1.0, 2.0])
    path = tmp_path / ("episodes.jsonl" if form == "lines" else "episodes")
    if form == "lines":
        batch.save(path)
        lines = path.read_text().splitlines()
        row = json.loads(lines[1])
        row["rewards"][1] = 0.25
        path.write_text("\n".join([lines[0], json.dumps(row)]) + "\n")
        message = rf"{re.escape(str(path))}:2: rewards must be 0 where action_mask is 0 .*got 0.25 at token 1"
    else:
        dataset = episodes_to_dataset(batch)
        rewards = dataset["rewards"][:]
        rewards[1] = [0.0, 0.25, 0.0, 2.0]
        column = pyarrow.array(rewards, type=dataset.data.column("rewards").type)
        dataset.remove_columns("rewards").add_column("rewards", column).save_to_disk(path)
        message = "rewards must be 0 where action_mask is False .*got 0.25 in row 1, column 1"
    with pytest.raises(ValueError, match=message):
        EpisodeBatch.load(path)
