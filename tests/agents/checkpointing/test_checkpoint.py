"""Agents on disk: whole or not at all, verified, without pickle; a full disk loses nothing."""

from __future__ import annotations

import ast
import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

import textenv
import textenv.agents.checkpointing.checkpoint as checkpoint
from tests.helpers.models import TOKENIZER, tiny
from textenv.agents.base.callbacks import EarlyStop
from textenv.agents.checkpointing.random_state import random_state, set_random_state
from textenv.agents.checkpointing.run_folder import RunFolder, RunFolderError
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.policies.reward_scorer import Scorer
from textenv.agents.ppo import PPO, PPOConfig
from textenv.agents.sft import SFT
from textenv.modeling.saved_runs import CorruptCheckpointError, latest_whole, manifest

ROOT = Path(__file__).parents[3]
ROWS = [{"prompt": "ab", "completion": text} for text in ("a", "b", "cd", "d")]


def train(run_dir: Path | None = None, **changes: Any) -> Any:
    """Four steps of SFT; with a folder for the run, a checkpoint after each."""
    given = {"steps": 4, "batch_size": 2, "learning_rate": 1e-2, "eval_episodes": 2, "loggers": ()}
    given |= {} if run_dir is None else {"checkpoint_every": 1}
    settings = {**given, "dataset": ROWS, "tokenizer": TOKENIZER, **changes}
    return textenv.train("sft", tiny(positions=16), run_dir=run_dir, **settings).agent


def steps(run_dir: Path) -> list[int]:
    return [step for step, _ in RunFolder(run_dir).checkpoints()]


def left_overs(run_dir: Path) -> list[str]:
    return [path.name for path in run_dir.rglob(".*") if path.name != ".lock"]


# -- what is in a checkpoint ---------------------------------------------------------------------------------


def test_the_folder_loads_with_plain_transformers(tmp_path: Path) -> None:
    agent = train(tmp_path)
    folder = RunFolder(tmp_path).latest()
    assert folder is not None
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for name, parameter in agent.policy.model.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], parameter)
    kinds = {path.suffix for path in folder.iterdir()}
    assert kinds == {".json", ".safetensors"}


def test_the_latest_are_kept(tmp_path: Path) -> None:
    train(tmp_path, keep_checkpoints=3)
    assert steps(tmp_path) == [2, 3, 4]
    assert left_overs(tmp_path) == []


def test_an_agent_loads_where_it_was_saved(tmp_path: Path) -> None:
    agent = train()
    agent.save(tmp_path / "agent")
    agent.save(tmp_path / "agent")  # in its own place again
    for cls in (SFT, textenv.agents.Agent):
        loaded = cls.load(tmp_path / "agent", dataset=ROWS, tokenizer=TOKENIZER)
        assert type(loaded) is SFT
        assert loaded.counters() == agent.counters()
        assert loaded.config == agent.config
    with pytest.raises(ValueError, match="holds a SFT, expected a PPO"):
        PPO.load(tmp_path / "agent")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="holds other files"):
        agent.save(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_the_scale_of_float16_losses_goes_on(tmp_path: Path) -> None:
    agent = train(autocast="float16")
    state = agent.backend.scaler.state_dict()
    assert state != torch.amp.GradScaler("cpu").state_dict()
    agent.save(tmp_path / "saved")
    loaded = SFT.load(tmp_path / "saved", dataset=ROWS, tokenizer=TOKENIZER)
    assert loaded.backend.scaler.state_dict() == state


@pytest.mark.parametrize("autocast", ["float32", "float16"])
def test_a_checkpoint_of_before_scales_were_saved_is_read(autocast: str, tmp_path: Path) -> None:
    agent = train(autocast=autocast)
    agent.save(tmp_path / "saved")
    file = tmp_path / "saved" / checkpoint.TRAINER
    trainer = json.loads(file.read_text())
    del trainer["scaler"]
    file.write_text(json.dumps(trainer))
    other = train(autocast=autocast, seed=1, steps=1)
    scale = other.backend.scaler.state_dict()
    other.load_training_state(checkpoint.read_state(tmp_path / "saved"))
    assert other.optimizer_steps == agent.optimizer_steps
    assert other.backend.scaler.state_dict() == scale


def test_global_random_states_go_on() -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, ...]:
        return random.gauss(0, 1), float(np.random.randn()), float(torch.randn(1))

    draw()  # an odd number of Gaussians: one is kept for the next call
    tensors, values = random_state()
    drawn = draw()
    set_random_state(tensors, json.loads(json.dumps(values)))
    assert draw() == drawn


# -- damage --------------------------------------------------------------------------------------------------


def _cut(folder: Path) -> None:
    file = folder / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _flip(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "optimizer.safetensors differs from what was written"),
        (_flip, "model.safetensors differs from what was written"),
        (lambda folder: (folder / "trainer.json").unlink(), "trainer.json is missing"),
        (lambda folder: (folder / "files.json").write_text("{"), "files.json is damaged, it is not JSON"),
        (lambda folder: (folder / "files.json").unlink(), "holds no files.json"),
    ],
)
def test_damage_is_noticed_and_the_one_before_is_used(damage: Any, message: str, tmp_path: Path) -> None:
    whole = train(tmp_path)
    damage(RunFolder(tmp_path).checkpoint_dir(4))
    with pytest.raises((CorruptCheckpointError, FileNotFoundError), match=message):
        SFT.load(RunFolder(tmp_path).checkpoint_dir(4))
    found, problems = latest_whole(tmp_path)
    assert (found, len(problems)) == (RunFolder(tmp_path).checkpoint_dir(3), 1)
    with pytest.warns(UserWarning, match=f"{message}.*going on from .*step-00000003"):
        resumed = train(tmp_path, resume=True)
    assert steps(tmp_path) == [3, 4]
    assert latest_whole(tmp_path) == (RunFolder(tmp_path).checkpoint_dir(4), [])
    for one, other in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_nothing_whole_is_an_error_or_a_new_start(tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    _cut(RunFolder(tmp_path).checkpoint_dir(1))
    with pytest.raises(FileNotFoundError, match=r"can't be resumed: .*optimizer.safetensors differs"):
        train(tmp_path, resume=True)
    assert steps(tmp_path) == [1]
    with pytest.warns(UserWarning, match="the run begins anew"):
        train(tmp_path, resume="auto")
    assert steps(tmp_path) == [3, 4]
    with pytest.raises(FileNotFoundError, match="is not there, expected the folder of a run"):
        train(tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_left_overs_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    folder = tmp_path / "checkpoints"
    (folder / ".step-00000002.writing-0123abcd").mkdir()
    (folder / ".step-00000002.writing-0123abcd" / "model.safetensors").write_bytes(b"half")
    (folder / ".step-00000000.pruned-0123abcd").mkdir()
    (tmp_path / ".metrics.jsonl.writing-0123abcd").write_text("{")
    (tmp_path / ".best.older-0123abcd").mkdir()
    (tmp_path / ".mine.txt").write_text("kept")
    train(tmp_path, resume=True)
    assert left_overs(tmp_path) == [".mine.txt"]
    assert (tmp_path / "best").is_dir()  # what was being replaced is put back


# -- the wrong run -------------------------------------------------------------------------------------------


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    train(tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"was written with learning_rate=0.01 \(got 0.5\)"):
        train(tmp_path, resume=True, learning_rate=0.5)
    with pytest.raises(ValueError, match="saw 4 rows of data, got 3"):
        train(tmp_path, resume=True, dataset=ROWS[:3])
    with pytest.raises(ValueError, match="is of the agent 'sft', expected 'filtered-bc'"):
        rows = [{**row, "reward": 1.0} for row in ROWS]
        textenv.train(
            "filtered-bc",
            tiny(positions=16),
            dataset=rows,
            tokenizer=TOKENIZER,
            run_dir=tmp_path,
            resume=True,
            loggers=(),
        )
    with pytest.raises(ValueError, match="the policy must be made as the saved one"):
        wider = tiny(positions=16)
        wider.n_embd = 16
        textenv.train(
            "sft",
            wider,
            dataset=ROWS,
            tokenizer=TOKENIZER,
            run_dir=tmp_path,
            resume=True,
            loggers=(),
            steps=3,
            batch_size=2,
            learning_rate=1e-2,
        )
    with pytest.raises(FileExistsError, match="say resume=True, or choose another run_dir"):
        train(tmp_path)
    with pytest.raises(ValueError, match="needs run_dir=, got None"):
        train(resume=True)
    with pytest.raises(ValueError, match="resume must be True, False or 'auto', got 'yes'"):
        train(tmp_path, resume="yes")
    assert steps(tmp_path) == [1, 2]
    assert train(tmp_path, resume=True, steps=3, log_every=2).iteration == 3


def test_a_run_that_a_callback_ended_stays_ended(tmp_path: Path) -> None:
    def stop() -> EarlyStop:
        return EarlyStop("sft/nll", mode="min", threshold=1e9)

    assert train(tmp_path, callbacks=[stop()]).iteration == 1
    with pytest.warns(UserWarning, match="a callback ended this run in iteration 1") as warned:
        assert train(tmp_path, callbacks=[stop()], resume=True).iteration == 1
    assert len(warned) == 1


def test_the_history_of_a_resumed_run_is_whole(tmp_path: Path) -> None:
    first = train(tmp_path, steps=2).history
    resumed = train(tmp_path, steps=4, resume=True).history
    assert len(resumed) == 4
    assert resumed[:2] == first


def test_one_process_at_a_time(tmp_path: Path) -> None:
    held = (
        "import sys; from textenv.agents.checkpointing.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).running():\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", held, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match="is in use: another process is training in it"):
            train(tmp_path)
        other.kill()
    train(tmp_path, steps=1)


# -- disks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_the_earlier_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train()
    written = []
    save_file = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        written.append(path)
        if len(written) > 4:  # two files each
            Path(path).write_bytes(b"half")
            raise error
        save_file(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        message = (
            r"step-00000003 could not be written: the disk is full \(.* MiB free\); .*step-00000002 is whole"
        )
        with pytest.raises(RunFolderError, match=message):
            train(tmp_path)
    assert steps(tmp_path) == [1, 2]
    assert left_overs(tmp_path) == []
    resumed = train(tmp_path, resume=True)
    for one, other in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 200 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root and the right to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(tiny_disk: Path) -> None:
    with pytest.raises(RunFolderError, match="could not be written: the disk is full"):
        train(tiny_disk / "run", keep_checkpoints=100, steps=40)
    found, problems = latest_whole(tiny_disk / "run")
    assert found is not None
    assert problems == []
    with pytest.raises(RunFolderError):
        train(tiny_disk / "run", keep_checkpoints=100, steps=40, resume=True)
    assert latest_whole(tiny_disk / "run") == (found, [])


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match="can't be written to: Not a directory; choose another run_dir"):
        train(tmp_path / "file" / "run")
    with pytest.raises(RunFolderError, match="can't be written to"):
        train(Path("/proc/run") if sys.platform == "linux" else tmp_path / "file" / "run")


# -- nothing is run that the user did not ask for ------------------------------------------------------------


def test_no_pickle_anywhere() -> None:
    banned = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    files = [
        path for folder in ("textenv", "agents", "rewards", "tasks") for path in (ROOT / folder).glob("*.py")
    ]
    assert len(files) > 50
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not banned & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in banned, path
            elif isinstance(node, ast.Attribute):
                called = ast.unparse(node)
                assert called not in ("torch.load", "torch.save", "torch.hub.load"), f"{path}:{node.lineno}"
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                raise AssertionError(f"{path}:{node.value.lineno}")


class _Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, (str(Path.cwd() / "exploded"),))


def test_weights_that_are_pickles_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", steps=1)
    folder = RunFolder("run").checkpoint_dir(1)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(CorruptCheckpointError):
        SFT.load(folder)
    with pytest.raises(Exception, match=r"weights_only|Weights only|safetensors|pickle"):
        LanguagePolicy.load(folder)
    assert not Path("exploded").exists()


def test_files_can_not_ask_for_their_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trust_remote_code in a saved file counts for nothing; the user has to say it."""
    monkeypatch.chdir(tmp_path)
    policy = LanguagePolicy(tiny(positions=16), tokenizer=TOKENIZER)
    policy.save("policy")
    Scorer(tiny(positions=16), tokenizer=TOKENIZER).save("scorer")
    for folder, settings in (("policy", "policy.json"), ("scorer", "reward_model.json")):
        file = Path(folder) / settings
        saved = json.loads(file.read_text())
        saved.get("settings", saved)["trust_remote_code"] = True
        file.write_text(json.dumps(saved))
        model = json.loads((Path(folder) / "config.json").read_text())
        auto = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
        model |= {"model_type": "evil", "auto_map": dict.fromkeys(auto, "evil.Evil")}
        (Path(folder) / "config.json").write_text(json.dumps(model))
        (Path(folder) / "evil.py").write_text("open('exploded', 'w').close()\nclass Evil: ...\n")
        with pytest.raises(ValueError, match="trust_remote_code"):
            (LanguagePolicy if folder == "policy" else Scorer).load(folder)
        assert not Path("exploded").exists()


def test_a_checkpoint_can_not_name_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil.py").write_text("open('exploded', 'w').close()\nclass Evil: ...\n")
    train(Path("run"), steps=1)
    folder = RunFolder("run").checkpoint_dir(1)
    trainer = json.loads((folder / "trainer.json").read_text())
    (folder / "trainer.json").write_text(json.dumps({**trainer, "agent": "evil:Evil"}))
    (folder / "files.json").write_text(json.dumps(manifest(folder)))
    with pytest.raises(ValueError, match="unknown agent 'evil:Evil'"):
        textenv.agents.Agent.load(folder, dataset=ROWS)
    with pytest.raises(ValueError, match="names a function to import"):
        textenv.make_reward("evil:Evil")
    rows = [{"prompt": "ab", "reward": "evil:Evil", "rewards": ["evil:Evil"]}]
    envs = textenv.tasks.make.make_vec_env(prompts=rows, tokenizer=TOKENIZER, max_new_tokens=2)
    envs.reset(seed=0)
    assert not Path("exploded").exists()


def test_the_settings_of_every_agent_survive_a_checkpoint() -> None:
    assert PPOConfig.from_dict(json.loads(json.dumps(PPOConfig().to_dict()))) == PPOConfig()
