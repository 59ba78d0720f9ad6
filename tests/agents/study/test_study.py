"""Studies for real, small: pairing, budgets, failures, going on after a kill, the command, and its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.agents.study.study_helpers import OFFLINE, ONLINE, tiny
from textenv.agents.base.registry import AGENTS
from textenv.agents.cli import main as cli
from textenv.agents.loggers.jsonl import read_metrics
from textenv.agents.study.config import AgentSetup, Budget, StudyConfig
from textenv.agents.study.outputs import write_outputs
from textenv.agents.study.plan import RunSpec, plan
from textenv.agents.study.runner import StudyError, run_study

ROOT = Path(__file__).parents[3]


def numbers(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results without what differs between two runs that are alike: times."""
    kept = [{k: v for k, v in one.items() if k != "figures"} for one in results]
    figures = [{k: v for k, v in one["figures"].items() if k != "seconds"} for one in results]
    return [{**one, "figures": found} for one, found in zip(kept, figures, strict=True)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The tiny study, run to its end."""
    folder = tmp_path_factory.mktemp("study")
    return folder, run_study(tiny(), folder)


def test_every_run_has_its_folder_and_its_numbers_come_from_its_metrics(done: Any) -> None:
    folder, results = done
    assert [(one["label"], one["seed"], one["status"]) for one in results] == [
        (label, seed, "done")
        for label, seed in [("start", 0), ("start", 1), ("ppo", 0), ("clone", 0), ("ppo", 1), ("clone", 1)]
    ]
    for spec, result in zip(plan(tiny()), results, strict=True):
        last = read_metrics(spec.folder(folder))[-1]
        found = result["figures"]
        assert found["reward"] == last["eval/return/mean"] and found["kl"] == last["eval/start_kl"]
        assert found["judge"] == pytest.approx(found["reward"])  # the judge is the task's own reward
        assert not (spec.folder(folder) / "checkpoints").exists()
    evaluations = [
        row for row in read_metrics(folder / "runs/probe-end/ppo/seed-0") if "eval/return/mean" in row
    ]
    assert [row["step"] for row in evaluations] == [2, 3]


def test_costs_are_counted(done: Any) -> None:
    folder, results = done
    ppo, clone = results[2]["figures"], results[3]["figures"]
    assert ppo["reward_calls"] == ppo["episodes"] == 48 and clone["reward_calls"] == clone["env_tokens"] == 0
    assert ppo["optimizer_steps"] == 3 and clone["optimizer_steps"] == 4
    # Each of the 48 episodes is one token of prompt and its response, trained on once.
    assert ppo["gradient_tokens"] == ppo["env_tokens"] + 48
    assert clone["gradient_tokens"] > clone["episodes"] and ppo["seconds"] > 0
    rows = read_metrics(folder / "runs/probe-end/ppo/seed-0")
    assert [row["reward_calls"] for row in rows] == [16, 32, 48]


def test_the_start_is_made_once_for_a_seed_and_differs_between_seeds(done: Any) -> None:
    folder, results = done
    starts = sorted(path.name for path in (folder / "starts/probe-end").glob("seed-*"))
    assert starts == ["seed-0", "seed-1"]
    first, second = (folder / "starts/probe-end" / name / "model.safetensors" for name in starts)
    assert first.read_bytes() != second.read_bytes()
    assert results[0]["figures"]["kl"] == 0.0
    best = results[0]["best_of"]
    assert list(best) == ["2", "4"] and best["4"]["reward"] >= best["2"]["reward"]
    assert best["4"]["judge"] == pytest.approx(best["4"]["reward"])


def test_a_finished_study_is_left_alone_and_grows(done: Any, tmp_path: Path) -> None:
    folder, results = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*") if "runs" in path.parts}
    lines: list[str] = []
    assert run_study(tiny(), folder, log=lines.append) == results
    assert lines == ["6 of 6 runs are done already and kept"]
    with pytest.warns(
        DeprecationWarning, match="tell is deprecated and will be removed in version 0.3: use log"
    ):
        run_study(tiny(), folder, tell=lines.append)
    assert lines[1:] == lines[:1]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(
        StudyError, match=r"other settings \(agent.settings.iterations: 3, now 4\).*overwrite"
    ):
        run_study(tiny(agents={"ppo": {"settings": {**ONLINE, "iterations": 4}}}), folder)
    with pytest.raises(ValueError, match="jobs must be >= 1, got 0"):
        run_study(tiny(), folder, jobs=0)


def test_runs_of_a_seed_play_the_same_episodes(tmp_path: Path) -> None:
    still = {**ONLINE, "learning_rate": 0.0, "iterations": 2}
    agents = {"one": {"agent": "ppo", "settings": still}, "other": {"agent": "reinforce", "settings": still}}
    results = run_study(tiny(agents=agents, best_of=(), evaluations=1), tmp_path)
    assert all(one["status"] == "done" for one in results), results
    rows = {
        (label, seed): [
            (row["objective/reward"], row["env_tokens"], row.get("eval/return/mean"))
            for row in read_metrics(tmp_path / f"runs/probe-end/{label}/seed-{seed}")
        ]
        for label in agents
        for seed in (0, 1)
    }
    assert rows["one", 0] == rows["other", 0] and rows["one", 1] == rows["other", 1]
    assert rows["one", 0] != rows["one", 1]
    assert all(one["figures"]["kl"] == 0.0 for one in results)
    # What has not moved is as good as its start, on the same prompts with the same noise.
    assert results[2]["figures"]["reward"] == results[0]["figures"]["reward"]


def test_a_budget_ends_a_run_with_an_evaluation(tmp_path: Path) -> None:
    config = tiny(budget=Budget(reward_calls=30), seeds=(7,), best_of=())
    ppo, clone = run_study(config, tmp_path)[1:]
    # Two iterations of 16 episodes reach 30; an offline agent asks no reward and goes to its own end.
    assert ppo["figures"]["reward_calls"] == 32 and ppo["figures"]["step"] == 2
    assert clone["figures"]["optimizer_steps"] == 4
    steps = [row["step"] for row in read_metrics(tmp_path / "runs/probe-end/ppo/seed-7")]
    assert steps == [1, 2]


def test_a_run_that_fails_stops_no_other_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from textenv.agents.study import run as module

    agents = {"clone": {"agent": "sft", "settings": OFFLINE}, "other": {"agent": "sft", "settings": OFFLINE}}
    config, train = tiny(agents=agents, seeds=1, best_of=()), module.train

    def fails(*args: Any, **kwargs: Any) -> Any:
        if "clone" in str(kwargs["run_dir"]):
            raise RuntimeError("no space left")
        return train(*args, **kwargs)

    monkeypatch.setattr(module, "train", fails)
    failed, other = run_study(config, tmp_path / "study")[1:]
    assert (failed["status"], failed["error"]) == ("failed", "RuntimeError: no space left")
    assert other["status"] == "done" and "Traceback" in failed["traceback"]
    found = write_outputs(config, tmp_path / "study")
    assert any(line.startswith("1 run failed") for line in found.verdict)
    monkeypatch.setattr(module, "train", train)
    lines: list[str] = []
    again = run_study(config, tmp_path / "study", log=lines.append)
    assert [one["status"] for one in again] == ["done"] * 3
    assert lines[:2] == [
        "2 of 3 runs are done already and kept",
        "1 of 3 runs failed before and are run again",
    ]
    assert [line.split(":")[0] for line in lines[2:]] == ["[3/3] clone on probe-end, seed 0"]


PAIRS = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
TASK = {"num_envs": 4}


@pytest.mark.parametrize(
    ("agents", "task", "error", "message", "cell"),
    [
        ({}, {"task": "probe-endd"}, ValueError, "probe-endd", "tasks.t"),
        ({}, {"env": {"task_kwargs": {"sed": 1}}}, TypeError, "sed", "tasks.t"),
        ({}, {"reward": "lenght"}, ValueError, "unknown reward 'lenght'", "tasks.t"),
        ({}, {"reward": ["length", {"coeff": 1}]}, ValueError, "coeff", "tasks.t"),
        ({}, {"judge": "lenght"}, ValueError, "unknown reward 'lenght'", "tasks.t"),
        ({}, {"judge": ["exact-match", {"column": "answer"}]}, ValueError, "answer", "tasks.t"),
        ({}, {"model": "./nowhere"}, OSError, r"model './nowhere' can't be loaded", "tasks.t"),
        ({}, {"policy": {"device": "gpu"}}, ValueError, r"policy\.device must be a device", "tasks.t"),
        ({}, {"start": {"steps": 1}, "dataset": "no.jsonl"}, OSError, r"no\.jsonl", "tasks.t"),
        ({"model": "./nowhere"}, {}, OSError, r"model './nowhere' can't be loaded", "agents.a on tasks.t"),
        ({"agent": "sft", "dataset": "no.jsonl"}, {}, OSError, r"no\.jsonl", "agents.a on tasks.t"),
        ({"agent": "sft", "dataset": "bad.jsonl"}, {}, ValueError, r"bad\.jsonl", "agents.a on tasks.t"),
        ({"agent": "dpo", "dataset": "bad.jsonl"}, {}, ValueError, r"bad\.jsonl", "agents.a on tasks.t"),
        (
            {"agent": "dpo", "dataset": "rows.jsonl"},
            {},
            (ValueError, TypeError),
            "chosen",
            "agents.a on tasks.t",
        ),
        ({"agent": "reward-model", "dataset": "pairs.jsonl"}, {}, ValueError, "writes no texts", "agents.a"),
    ],
)
def test_every_cell_is_checked_before_the_first_run(
    agents: dict[str, Any],
    task: dict[str, Any],
    error: Any,
    message: str,
    cell: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"word": "a"}\n')
    Path("pairs.jsonl").write_text(PAIRS)
    Path("rows.jsonl").write_text(PAIRS + '{"prompt": "a", "chosen": 5, "rejected": "c"}\n')
    config = StudyConfig(
        agents={"ok": {"agent": "ppo", "settings": ONLINE}, "a": {"agent": "ppo", **agents}},
        tasks={"t": {"task": "probe-end", **TASK, **task}},
        seeds=1,
    )
    with pytest.raises(error, match=message) as found:
        run_study(config, "study")
    assert f"needed by {cell}" in " ".join(found.value.__notes__)
    assert not Path("study").exists()


@pytest.mark.timeout(900)
def test_a_study_that_is_killed_goes_on_and_ends_as_one_that_was_not(done: Any, tmp_path: Path) -> None:
    file, folder = tmp_path / "study.yaml", tmp_path / "study"
    file.write_text(yaml.safe_dump(tiny().to_dict()))
    command = [sys.executable, "-m", "textenv.agents", "compare", str(file), "--run_dir", str(folder)]
    process = subprocess.Popen([*command, "--jobs", "2"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    try:
        # Path.rglob fails if a folder is moved meanwhile; os.walk does not.
        while not any("result.json" in files for _, _, files in os.walk(folder)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    assert 0 < len(finished) < 6
    for _ in range(20):  # its children end as soon as they notice; until then they hold their folders
        results = run_study(tiny(), folder)
        if all(one["status"] == "done" for one in results):
            break
        time.sleep(1.0)
    assert numbers(results) == numbers(done[1])
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_the_command_prints_and_writes_everything(done: Any, tmp_path: Path, capsys: Any) -> None:
    folder, _ = done
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny().to_dict()))
    assert cli.main(["compare", str(file), "--run_dir", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "No winner can be called: 2 seeds are too few to compare agents" in out
    assert "6 of 6 runs are done already" in out and "report: " in out
    page = (folder / "report.html").read_text()
    assert "Content-Security-Policy" in page and "<script" not in page and "data:image/png" in page
    assert "http" not in page.replace("http-equiv", "")
    table = (folder / "report.md").read_text()
    assert "| ppo " in table and "best of 4" in table and "gradient tokens" in table
    assert "](plots/scores.png)" in table and "| versions " in table and "torch 2." in table
    assert r"\toprule" in (folder / "table.tex").read_text()
    assert (folder / "results.csv").read_text().count("\n") == 7
    summary = json.loads((folder / "results.json").read_text())
    assert summary["metric"] == "judge" and len(summary["runs"]) == 6 and len(summary["comparisons"]) == 1
    assert {"scores.png", "profile.png", "frontier-probe-end.png"} <= {
        p.name for p in (folder / "plots").iterdir()
    }


def test_the_command_shows_the_settings_and_refuses_mistakes(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({"agents": {"low-rate": {"agent": "ppo"}}, "tasks": {"probe-end": None}}))
    changes = ["--agents.low-rate.settings.learning-rate", "1e-4", "--seeds", "[3, 4]", "--print-config"]
    assert cli.main(["compare", str(file), *changes]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["agents"] == {"low-rate": {"agent": "ppo", "settings": {"learning_rate": 1e-4}}}
    assert shown["seeds"] == [3, 4] and shown["eval_episodes"] == 256
    for arguments, message in (
        (["--agents.lo.settings.epochs", "1"], "--agents.lo.settings.epochs: no such label; known: low-rate"),
        (
            ["--agents.low-rate.settings.epoch", "1"],
            "agents.low-rate.settings: PPOConfig has no setting 'epoch'",
        ),
        (["--seedz", "1"], "unknown option --seedz; did you mean --seeds?"),
        (["--jobs", "0"], "jobs must be >= 1, got 0"),
    ):
        assert cli.main(["compare", str(file), *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("study_*.yaml")), ids=lambda path: path.stem)
def test_the_studies_in_configs_are_valid(path: Path) -> None:
    config = StudyConfig.from_dict(yaml.safe_load(path.read_text()))
    assert len(list(plan(config))) >= 3 * len(config.seed_list)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agents": {}}, r"agents must hold at least one \(such as ppo: \{\}\), got none"),
        ({"agents": {"start": {"agent": "ppo"}}}, "agents can't have the label 'start'"),
        ({"agents": {"a/b": {"agent": "ppo"}}}, "a label in agents must be of letters.*got 'a/b'"),
        ({"agents": {"ppoo": None}}, "agents.ppoo.settings: unknown agent 'ppoo'; known: ppo"),
        ({"agents": {"ppo": {"settings": {"seed": 1}}}}, "agents.ppo: settings must leave the seed"),
        ({"agents": {"ppo": {"start": False, "model": "x"}}}, "agents.ppo: start must be true"),
        ({"agents": {"ppo": {"setings": {}}}}, "AgentSetup has no setting 'setings'; known: settings"),
        ({"tasks": {"probe-end": {"judge": len}}}, "tasks.probe-end: judge must be plain values"),
        ({"seeds": (1, 1)}, r"seeds must differ from each other, got \(1, 1\)"),
        ({"budget": {"seconds": 0.0}}, "seconds must be > 0, got 0.0"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        tiny(**changes)


def test_settings_survive_json_and_coefficients_go_where_they_belong() -> None:
    agents = {"ppo": None, "dpo": {"kl_setting": "beta"}, "sft": None}
    config = tiny(agents=agents, kl_coefs=(0.1, 0.2), seeds=1)
    assert StudyConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.agents["ppo"].config(3, 0.2).to_dict()["kl_coef"] == 0.2
    assert config.agents["dpo"].config(3, 0.2).to_dict()["beta"] == 0.2
    assert config.agents["sft"].config(3).seed == 3
    arms = [spec.arm for spec in plan(config)]
    assert arms == ["start", "ppo, KL 0.1", "ppo, KL 0.2", "dpo, KL 0.1", "dpo, KL 0.2", "sft"]
    places = {spec.folder(Path()) for spec in plan(config)}
    assert len(places) == 6 and Path("runs/probe-end/ppo/kl-0.1/seed-0") in places
    assert AgentSetup(agent="ppo").kl_field() == "kl_coef" and AgentSetup(agent="sft").kl_field() is None
    assert RunSpec(label="ppo", task="t", seed=0).result(Path("nowhere")) is None


def test_an_agent_of_ones_own_takes_part(tmp_path: Path) -> None:
    file, folder = tmp_path / "study.yaml", tmp_path / "study"
    own = {"best-half": {"settings": {**ONLINE, "share": 0.25}}, "sft": {"settings": OFFLINE}}
    study = {"agents": own, "tasks": {"probe-end": {"num_envs": 16}}, "seeds": 1, "eval_episodes": 16}
    file.write_text(yaml.safe_dump({**study, "best_of": []}))
    example = str(ROOT / "examples" / "custom_agent.py")
    try:
        assert cli.main(["compare", str(file), "--run_dir", str(folder), "--import", example]) == 0
    finally:
        AGENTS.pop("best-half", None)
        sys.modules.pop("custom_agent", None)
    table = (folder / "report.md").read_text()
    assert "| best-half " in table and "| sft " in table
