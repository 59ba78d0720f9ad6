"""Stored episodes of a run get other rewards, beside the old ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import textenv
from textenv.agents.cli.main import main
from textenv.agents.evaluation.rescore import rescore, rescore_run, stored_episodes
from textenv.agents.reports import recorder
from textenv.episodes.batch import EpisodeBatch
from textenv.tasks import letter_tokenizer

TOKENIZER = letter_tokenizer("ab")


def batch(**fields: object) -> EpisodeBatch:
    return EpisodeBatch.from_ids([[0], [1]], [[0, 1], [1]], rewards=[1.0, 3.0], **fields)  # type: ignore[arg-type]


def with_partner() -> EpisodeBatch:
    made = batch()
    made.reward_terms = {"partner": made.rewards / 2, "old": made.rewards / 2}
    return made


def count_a(completions: list[str], **columns: object) -> list[float]:
    return [float(text.count("a")) for text in completions]


def test_rewards_are_replaced_and_the_partners_stay() -> None:
    old = with_partner()
    new = rescore(old, [count_a], TOKENIZER)
    assert set(new.reward_terms) == {"partner", "count_a"}
    assert new.returns.tolist() == [0.5 + 1.0, 1.5 + 0.0]
    assert old.returns.tolist() == [1.0, 3.0] and set(old.reward_terms) == {"partner", "old"}


def test_files_are_written_beside_and_never_overwritten(tmp_path: Path) -> None:
    with_partner().save(tmp_path / "episodes.jsonl")
    batch().save(tmp_path / "arrow")
    before = (tmp_path / "episodes.jsonl").read_bytes()
    first = {found.source.name: found for found in rescore_run(tmp_path, ["length"], TOKENIZER)}
    assert first["episodes.jsonl"].path == tmp_path / "episodes.rescored.jsonl"
    assert first["arrow"].path == tmp_path / "arrow.rescored"
    assert first["episodes.jsonl"].old == {"return": 2.0, "partner": 1.0, "old": 1.0}
    assert first["episodes.jsonl"].new["partner"] == 1.0
    again = rescore_run(tmp_path, ["length"], TOKENIZER)
    assert sorted(found.path.name for found in again) == ["arrow.rescored-2", "episodes.rescored-2.jsonl"]
    assert (tmp_path / "episodes.jsonl").read_bytes() == before
    made = EpisodeBatch.load(tmp_path / "episodes.rescored.jsonl")
    assert torch.equal(made.input_ids, EpisodeBatch.load(tmp_path / "episodes.jsonl").input_ids)
    assert stored_episodes(tmp_path) == [tmp_path / "arrow", tmp_path / "episodes.jsonl"]


def test_what_cannot_be_rescored_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        stored_episodes(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no episodes"):
        stored_episodes(tmp_path)
    batch().save(tmp_path / "one.jsonl")
    with pytest.raises(ValueError, match="reward 'kl' needs the policy"):
        rescore_run(tmp_path, ["kl"], TOKENIZER)
    (tmp_path / "two.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(ValueError, match=r"two\.jsonl"):
        rescore_run(tmp_path, ["length"], TOKENIZER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]
    assert main(["rescore"]) == 2 and "name the run" in capsys.readouterr().err
    assert main(["rescore", str(tmp_path)]) == 2 and "name the rewards" in capsys.readouterr().err


def test_a_run_of_training_can_be_rescored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "enabled", True)
    run = tmp_path / "run"
    textenv.train(
        "reinforce",
        task="probe-copy",
        iterations=1,
        episodes_per_iteration=8,
        eval_episodes=2,
        run_dir=run,
        loggers=(),
        start=False,
    )
    kept = EpisodeBatch.load(run / "episodes" / "last.jsonl")
    assert len(kept) == 8 and kept.reward_terms
    assert stored_episodes(run) == [run / "episodes" / "first.jsonl", run / "episodes" / "last.jsonl"]
    code = main(["rescore", str(run), "--rewards", "length"])
    out = capsys.readouterr().out
    assert code == 0 and "last.rescored.jsonl" in out and "probe-copy" in out and "length" in out
    new = EpisodeBatch.load(run / "episodes" / "last.rescored.jsonl")
    assert set(new.reward_terms) == {"length"}
