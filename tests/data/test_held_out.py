"""Held-out data where no file of them is given: split off by prompt, in tasks and in pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import TOKENIZER, save_tiny
from textenv.agents.cli.main import main
from textenv.agents.pipeline.data import divided, task_of
from textenv.agents.pipeline.run import PipelineConfig, run_pipeline
from textenv.data.held_out import prompt_key, split_off
from textenv.data.records import load_columns
from textenv.tasks import make_task
from textenv.tasks.make import make_vec_env

WORDS = [x + y for x in "abcd" for y in "abcd"]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("held-out")
    save_tiny(root / "lm", heads=1, positions=16)
    written(root / "prompts.jsonl", [{"prompt": word, "n": i} for i, word in enumerate(WORDS)])
    written(root / "pairs.jsonl", [{"prompt": word, "chosen": "a", "rejected": "b"} for word in WORDS])
    written(root / "texts.jsonl", [{"text": word} for word in WORDS])
    return root


# -- records -------------------------------------------------------------------------------------------------


def test_a_prompt_falls_on_one_side_and_always_the_same() -> None:
    rows = [{"prompt": word, "n": n} for n in range(2) for word in WORDS]
    records = load_columns(rows)
    sides = {held: split_off(records, held_out=held, share=0.25) for held in (False, True)}
    found = {held: list(side) for held, side in sides.items()}
    assert [row for row in rows if row in found[True]] == found[True], "the order is kept"
    assert sorted(map(repr, found[True] + found[False])) == sorted(map(repr, rows))
    prompts = {held: {row["prompt"] for row in rows_} for held, rows_ in found.items()}
    assert not prompts[True] & prompts[False]
    assert prompts[True] == {word for word in WORDS if prompt_key({"prompt": word}) < 2**62}
    # The order of the rows and other columns do not matter; what is held out stays so with more rows.
    other = load_columns([{"prompt": word} for word in WORDS[::-1]])
    assert {row["prompt"] for row in split_off(other, held_out=True, share=0.25)} == prompts[True]
    place = next(sides[True].rows())[0]
    assert place == f"row {WORDS.index(found[True][0]['prompt'])}"


def test_about_the_share_is_held_out_and_at_least_one_prompt_on_each_side() -> None:
    records = load_columns([{"prompt": str(i)} for i in range(4000)])
    assert len(list(split_off(records, held_out=True))) == pytest.approx(400, abs=60)  # 3 standard errors
    two = load_columns([{"prompt": "a"}, {"prompt": "b"}])
    for share in (1e-9, 0.5, 1 - 1e-9):
        assert [len(list(split_off(two, held_out=side, share=share))) for side in (True, False)] == [1, 1]
    with pytest.raises(ValueError, match="all records have the same prompt"):
        split_off(load_columns([{"prompt": "a"}] * 3), held_out=True)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got 1"):
        split_off(two, held_out=True, share=1)


def test_a_conversation_goes_by_what_comes_before_the_answer() -> None:
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
    keys = {prompt_key(row) for row in ({"prompt": "hi"}, {"prompt": [user]}, {"messages": [user, answer]})}
    assert prompt_key({"messages": [user, answer, user]}) != prompt_key({"messages": [user]})
    # BLAKE2b of 8 bytes of "hi", by `b2sum -l 64`.
    assert keys == {0x106BCE4401410416}


# -- the task "prompts" --------------------------------------------------------------------------------------


def test_the_task_of_one_file_has_a_validation_split(root: Path) -> None:
    task, kwargs = make_task("prompts"), {"data": root / "prompts.jsonl", "tokenizer": TOKENIZER}
    train, held = (task.build(split, **kwargs) for split in ("train", "validation"))
    assert sorted([*train.prompts, *held.prompts]) == WORDS and held.prompts
    assert [WORDS[n] for n in held.columns["n"]] == list(held.prompts)
    assert held.place_of is not None
    assert held.place_of(0) == f"{root / 'prompts.jsonl'}:{WORDS.index(str(held.prompts[0])) + 1}"
    assert list(task.build("train", validation=0, **kwargs).prompts) == WORDS
    assert list(task.build(None, **kwargs).prompts) == WORDS
    half = task.build("validation", validation=0.5, **kwargs)
    assert set(held.prompts) <= set(half.prompts)
    with pytest.raises(ValueError, match="all records have the same prompt"):
        task.build("validation", data=["a", "a"], tokenizer=TOKENIZER)
    assert list(task.build("train", data=["a"], tokenizer=TOKENIZER).prompts) == ["a"]


@pytest.mark.parametrize("name", ["validation", "dev"])
def test_a_validation_split_that_is_there_is_taken(name: str, tmp_path: Path) -> None:
    written(tmp_path / "train.jsonl", [{"prompt": word} for word in WORDS])
    written(tmp_path / f"{name}.jsonl", [{"prompt": "d"}])
    kwargs = {"data": tmp_path, "tokenizer": TOKENIZER}
    assert list(make_task("prompts").build("validation", **kwargs).prompts) == ["d"]
    assert list(make_task("prompts").build("train", **kwargs).prompts) == WORDS


def test_prompts_beside_the_task_of_prompts_are_its_data(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(root / "prompts.jsonl")
    kwargs: dict[str, Any] = {"task": "prompts", "tokenizer": TOKENIZER, "max_new_tokens": 2}
    envs: Any = make_vec_env(1, prompts=file, split="validation", **kwargs)
    expected = make_task("prompts").build("validation", data=file, tokenizer=TOKENIZER)
    assert list(envs.unwrapped.task_data.prompts) == list(expected.prompts)
    with pytest.raises(ValueError, match="given twice, as prompts and as its data"):
        make_vec_env(1, prompts=file, task_kwargs={"data": file}, **kwargs)
    out = root / "texts-out.jsonl"
    command = ["generate", str(root / "lm"), "--task", "prompts", "--prompts", file, "--out", str(out)]
    assert main([*command, "--limit", "null", "--env.max_new_tokens", "1"]) == 0
    assert len(out.read_text().splitlines()) == len(WORDS), "prompts that were given are all of them"
    assert (
        main(["evaluate", str(root / "lm"), "--task", "prompts", "--prompts", file, "--episodes", "2"]) == 0
    )


# -- pipelines -----------------------------------------------------------------------------------------------


def config(root: Path, **changes: Any) -> PipelineConfig:
    pairs = str(root / "pairs.jsonl")
    values: dict[str, Any] = {
        "model": str(root / "lm"),
        "data": {"sft": pairs, "pairs": pairs},
        "sft": {"steps": 1, "report": False},
        "reward": {"epochs": 1, "report": False},
        "rl": {
            "iterations": 1,
            "episodes_per_iteration": 4,
            "minibatches": 1,
            "eval_episodes": 4,
            "report": False,
        },
        "final_episodes": 4,
        "num_envs": 2,
    }
    return PipelineConfig.from_dict({**values, **changes})


def test_the_prompts_of_a_pipeline_without_a_task(root: Path) -> None:
    files = {name: str(root / f"{name}.jsonl") for name in ("prompts", "pairs", "texts")}

    def data_of(**data: str) -> str:
        name, kwargs = task_of(config(root, data=data))
        assert (name, kwargs["validation"]) == ("prompts", 0.1)
        return str(kwargs["data"])

    assert data_of(sft=files["texts"], pairs=files["pairs"]) == files["pairs"]
    assert data_of(sft=files["pairs"], pairs=files["pairs"], prompts=files["prompts"]) == files["prompts"]
    assert data_of(sft=files["pairs"], ratings=files["texts"]) == files["pairs"]
    with pytest.raises(ValueError, match=r"data\.prompts must be given.*data\.sft has the columns text"):
        data_of(sft=files["texts"])
    with pytest.raises(ValueError, match=r"task must be given, or data\.prompts, data\.pairs"):
        task_of(config(root, data={}))
    with pytest.raises(ValueError, match="model must be given without a task"):
        task_of(config(root, model=None))
    with pytest.raises(ValueError, match=r"data\.prompts must not be given with a task that has prompts"):
        task_of(config(root, task="reviews", data={"prompts": files["prompts"]}))
    with pytest.raises(ValueError, match="given twice"):
        task_of(config(root, task="prompts", task_kwargs={"data": "x"}, data={"prompts": files["prompts"]}))


def test_held_out_data_of_a_scorer(root: Path) -> None:
    train, held_out = divided({"pairs": str(root / "pairs.jsonl")}, 0.1)
    assert held_out is not None
    own, other = ([row["prompt"] for row in part["pairs"]] for part in (train, held_out))
    assert sorted([*own, *other]) == WORDS and not set(own) & set(other)
    # The same prompts are held out of the policy's training.
    held = make_task("prompts").build("validation", data=root / "prompts.jsonl", tokenizer=TOKENIZER)
    assert other == list(held.prompts)
    assert divided({"pairs": "x"}, 0.0) == ({"pairs": "x"}, None)


def test_a_pipeline_of_pairs_alone(root: Path, tmp_path: Path) -> None:
    result = run_pipeline(config(root), tmp_path / "run", loggers=())
    assert list(result.stages) == ["sft", "reward-model", "rl"], "no judge without data for one"
    held = set(
        make_task("prompts").build("validation", data=root / "pairs.jsonl", tokenizer=TOKENIZER).prompts
    )
    assert result.stages["reward-model"]["metrics"]["pairs"] == len(held)
    rows = [json.loads(line) for line in (tmp_path / "run/tables/samples.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in rows} <= held
    assert all(len(row["after"]) <= 16 - 2 for row in rows), "the model has 16 positions"
    again = run_pipeline(config(root), tmp_path / "run", loggers=())
    assert all(figures["reused"] for figures in again.stages.values())


def test_prompts_for_evaluations(root: Path, tmp_path: Path) -> None:
    own = written(tmp_path / "eval.jsonl", [{"prompt": "d"}])
    data = {"sft": str(root / "pairs.jsonl"), "pairs": str(root / "pairs.jsonl"), "eval_prompts": own}
    changes = {"data": data, "max_new_tokens": 2}
    run_pipeline(config(root, **changes), tmp_path / "run", loggers=())
    rows = [json.loads(line) for line in (tmp_path / "run/tables/samples.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in rows} == {"d"}
    assert task_of(config(root, **changes))[1]["validation"] == 0, "no prompt is left out of the training"
