"""The pipeline: stages in order, reused, resumed, refused; before and after; the reviews' feedback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import textenv.agents.pipeline.run as pipeline_module
from tests.helpers.reward_helpers import TOKENIZER, config
from textenv.agents.pipeline.run import PipelineConfig, PipelineResult, StageError, run_pipeline
from textenv.agents.sft import SFT
from textenv.episodes.batch import EpisodeBatch
from textenv.tasks.feedback import Feedback
from textenv.tasks.registry import _TASKS, register_task
from textenv.tasks.task import TaskData

WORDS = ["bad", "cab", "fed", "bag", "dad", "face", "cafe", "bead"]


def feedback() -> Feedback:
    def rated(words: list[str]) -> dict[str, Any]:
        return {"ratings": [{"text": word, "reward": float(word.count("a"))} for word in words]}

    pairs = [{"prompt": "d", "chosen": "a" * n, "rejected": "b" * n, "label": 0.9} for n in range(1, 6)]
    return Feedback(
        train={"pairs": pairs, **rated(WORDS)},
        held_out={"pairs": pairs[:2], **rated(["abba", "cc", "aaa"])},
        judge=rated(WORDS[::-1]),
        judge_held_out=rated(["abba", "cc"]),
    )


@pytest.fixture(scope="module", autouse=True)
def _tiny_task() -> Any:
    @register_task("tiny-feedback")
    def build(split: str = "train") -> TaskData:
        """Words of seven letters."""
        prompts = ["a", "b", "da", "fe"]
        return TaskData(
            prompts=prompts,
            tokenizer=TOKENIZER,
            rewards=[],
            max_new_tokens=5,
            model_config=config,
            texts=WORDS * 4,
            make_demonstrations=lambda: EpisodeBatch.from_texts(prompts, ["b", "ad", "d", "d"], TOKENIZER),
            make_feedback=feedback,
        )

    yield
    _TASKS.pop("tiny-feedback")


def settings(**changes: Any) -> PipelineConfig:
    values: dict[str, Any] = {
        "task": "tiny-feedback",
        "num_envs": 4,
        "sft": {"steps": 6, "learning_rate": 1e-2, "checkpoint_every": 2},
        "reward": {"epochs": 4, "learning_rate": 1e-2},
        "judge": {"epochs": 4, "learning_rate": 1e-2, "seed": 1},
        "rl": {
            "iterations": 3,
            "episodes_per_iteration": 8,
            "epochs": 1,
            "minibatches": 1,
            "eval_every": 1,
            "eval_episodes": 8,
            "learning_rate": 1e-3,
        },
        "final_episodes": 16,
        "repetition_limit": 1.0,
        "rewards": [["length", {"coef": -0.01}]],
        **changes,
    }
    return PipelineConfig.from_dict(values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, _tiny_task: Any) -> PipelineResult:
    return run_pipeline(settings(), tmp_path_factory.mktemp("pipeline") / "run", loggers=())


def test_every_stage_leaves_a_model_that_plain_transformers_loads(finished: PipelineResult) -> None:
    for stage, loader in (
        ("sft", AutoModelForCausalLM),
        ("reward-model", AutoModelForSequenceClassification),
        ("judge", AutoModelForSequenceClassification),
        ("rl", AutoModelForCausalLM),
    ):
        folder = finished.run_dir / stage
        loader.from_pretrained(folder / "model")
        assert (folder / "metrics.jsonl").stat().st_size > 0
        assert json.loads((folder / "stage.json").read_text())["finished"]
    assert list(finished.stages) == ["sft", "reward-model", "judge", "rl"]
    assert finished.stages["reward-model"]["metrics"]["pairs"] == 2
    assert json.loads((finished.run_dir / "pipeline.json").read_text())["task"] == "tiny-feedback"


def test_before_and_after_are_measured_on_the_same_prompts(finished: PipelineResult) -> None:
    found = finished.comparison
    assert found is not None
    assert found.before["kl"] == pytest.approx(0.0, abs=1e-5) and len(found.samples) == 16
    gains = [sample["judge_after"] - sample["judge_before"] for sample in found.samples]
    assert found.judge_gain == pytest.approx(sum(gains) / 16, abs=1e-5)
    assert found.judge_gain == pytest.approx(found.after["judge"] - found.before["judge"], abs=1e-5)
    with pytest.warns(
        DeprecationWarning,
        match="people is deprecated and will be removed in version 0.3: use human_reference",
    ):
        assert found.people is found.human_reference
    assert set(found.human_reference) == {"reward", "judge", "repetition", "distinct_2", "length", "eos_rate"}
    written = json.loads((finished.run_dir / "results.json").read_text())
    assert written["after"] == pytest.approx(found.after) and "reward-model" in written["stages"]
    assert found.table().row_count == 7 and found.sample_table(3).row_count == 3


def test_the_watch_saw_the_judge_from_the_start(finished: PipelineResult) -> None:
    rows = [json.loads(line) for line in (finished.run_dir / "rl" / "watch.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    logged = [
        json.loads(line) for line in (finished.run_dir / "rl" / "metrics.jsonl").read_text().splitlines()
    ]
    assert logged[-1]["eval/judge/mean"] == pytest.approx(rows[-1]["judge/mean"])


def test_finished_stages_are_reused(finished: PipelineResult, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained again")

    for name in ("SFT", "RewardModelAgent", "PPO"):
        monkeypatch.setattr(pipeline_module, name, never)
    again = run_pipeline(settings(), finished.run_dir, loggers=())
    assert all(figures["reused"] for figures in again.stages.values())
    assert again.comparison is not None and finished.comparison is not None
    assert again.comparison.after == finished.comparison.after


def test_other_settings_are_refused_or_overwrite_what_they_concern(finished: PipelineResult) -> None:
    rl = {**settings().rl.to_dict(), "iterations": 1}
    changed = settings(rl=rl)
    with pytest.raises(StageError, match=r"rl was made from other settings \(iterations: 3, now 1\)"):
        run_pipeline(changed, finished.run_dir, loggers=())
    result = run_pipeline(changed, finished.run_dir, loggers=(), overwrite=True)
    assert [name for name, figures in result.stages.items() if not figures["reused"]] == ["rl"]


def test_an_interrupted_stage_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    step, count = SFT.step, []

    def dies(self: Any, batch: Any) -> Any:
        count.append(1)
        if len(count) == 4:
            raise Killed
        return step(self, batch)

    only = settings(stages=["sft"])
    monkeypatch.setattr(SFT, "optimizer_step", dies)
    with pytest.raises(Killed):
        run_pipeline(only, tmp_path / "run", loggers=())
    # Three steps were made, two are in the checkpoint, so four of six are left.
    result = run_pipeline(only, tmp_path / "run", loggers=())
    assert len(count) == 4 + 4
    assert list(result.stages) == ["sft"] and result.comparison is None
    run_pipeline(only, tmp_path / "whole", loggers=())
    models = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "sft/model") for name in ("run", "whole")
    ]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_stages_can_be_skipped_by_their_models(finished: PipelineResult, tmp_path: Path) -> None:
    given = {
        "policy": str(finished.run_dir / "sft/model"),
        "reward_model": str(finished.run_dir / "reward-model/model"),
        "judge_model": str(finished.run_dir / "judge/model"),
    }
    result = run_pipeline(settings(**given), tmp_path, loggers=())
    assert list(result.stages) == ["rl"] and not (tmp_path / "sft").exists()


def test_data_of_ones_own(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "d", "chosen": "a", "rejected": "b"}\n' * 2)
    config_ = settings(data={"pairs": str(pairs), "held_out": str(pairs)}, stages=["sft", "reward-model"])
    run_pipeline(config_, tmp_path / "run", loggers=())
    stage = json.loads((tmp_path / "run/reward-model/stage.json").read_text())
    assert stage["figures"]["metrics"]["pairs"] == 2


def test_earlier_stages_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"'sft' is not among the stages to run, and .* is not finished"):
        run_pipeline(settings(stages=["rl"]), tmp_path / "run", loggers=())


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="PPOConfig has no setting 'iteration'; known: iterations"):
        settings(rl={"iteration": 3})
    with pytest.raises(ValueError, match="stages must be among sft, reward-model, judge, rl, got 'ppo'"):
        settings(stages=["ppo"])
    with pytest.raises(ValueError, match="num_envs must be >= 1, got 0"):
        settings(num_envs=0)
    assert PipelineConfig.from_dict(settings().to_dict()) == settings()


@pytest.mark.parametrize("file", ["configs/reviews.yaml", "examples/smollm_reviews.yaml"])
def test_the_demos_settings_are_valid(file: str) -> None:
    import yaml

    path = Path(__file__).parents[3] / file
    assert PipelineConfig.from_dict(yaml.safe_load(path.read_text())).task == "reviews"


def test_adapters_in_both_stages_that_train_the_policy(
    finished: PipelineResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    data = []

    def noted(*args: Any, **kwargs: Any) -> SFT:
        data.append(kwargs["dataset"])
        return SFT(*args, **kwargs)

    monkeypatch.setattr(pipeline_module, "SFT", noted)
    start = str(finished.run_dir / "sft/model")
    changes = {
        "model": start,
        "sft_policy": {"lora": {"r": 2}},
        "rl_policy": {"lora": {"r": 3}, "temperature": 0.9},
        "device": "cpu",
        "reward_model": str(finished.run_dir / "reward-model/model"),
        "judge_model": str(finished.run_dir / "judge/model"),
    }
    run_pipeline(settings(**changes), tmp_path / "run", loggers=())
    # A model that is given can write: it learns from the demonstrations, not from the plain texts.
    assert len(data[0]) == 4
    for stage, rank in (("sft", 2), ("rl", 3)):
        folder = tmp_path / "run" / stage / "model"
        assert json.loads((folder / "adapter/adapter_config.json").read_text())["r"] == rank
    names = ("start", "sft", "rl")
    # What is kept of the last stage is the best by the judge, which may be the policy that it began with.
    folders = [Path(start), tmp_path / "run/sft/model", tmp_path / "run/rl/checkpoints/step-00000003"]
    models = {
        name: AutoModelForCausalLM.from_pretrained(path) for name, path in zip(names, folders, strict=True)
    }
    for before, after in (("start", "sft"), ("sft", "rl")):
        old, new = (dict(models[name].named_parameters()) for name in (before, after))
        moved = {name for name in old if not torch.equal(old[name], new[name])}
        assert moved and all("c_attn" in name for name in moved), "adapters sit on the attention alone"
    with pytest.raises(StageError, match=r"rl was made from other settings \(inputs\)"):
        run_pipeline(settings(**changes | {"rl_policy": {}}), tmp_path / "run", loggers=())
