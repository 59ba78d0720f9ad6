"""Model cards and what is uploaded to the hub, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

import textenv
from tests.helpers.models import tiny
from textenv.agents.cli.main import main
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.ppo import PPO
from textenv.agents.reports.model_card import TRAINING_STATE, export_model, model_card, push_to_hub


class Hub:
    """Takes what the hub's API would be given."""

    def __init__(self) -> None:
        self.repositories: list[tuple[str, Any]] = []
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        assert exist_ok
        self.repositories.append((repo_id, private))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str) -> Any:
        assert repo_id == "me/tiny"
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Any) -> Path:
    path = tmp_path_factory.mktemp("card") / "run"
    config = tiny(byte_tokenizer, width=16)
    textenv.train(
        "ppo",
        config,
        prompts=["a", "b"],
        eval_prompts=["a", "b"],
        tokenizer=byte_tokenizer,
        reward=lambda prompts, completions: [float(len(text)) for text in completions],
        env_kwargs={"max_new_tokens": 4},
        run_dir=path,
        loggers=(),
        num_envs=2,
        iterations=2,
        episodes_per_iteration=4,
        epochs=1,
        minibatches=1,
        eval_episodes=4,
    )
    return path


def test_the_exported_folder_loads_with_plain_transformers(run_dir: Path, tmp_path: Path) -> None:
    folder = export_model(run_dir, tmp_path / "out", "me/tiny", base_model="gpt2", license="mit")
    names = {file.name for file in folder.rglob("*")}
    assert not names & {*TRAINING_STATE, "trainer.json", "files.json"}
    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    LanguagePolicy.load(folder)
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "gpt2"
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "text-generation"
    assert {"textenv", "ppo"} <= set(card.data.tags or [])
    settings = json.loads((run_dir / "run.json").read_text())["config"]
    for said in (
        'AutoModelForCausalLM.from_pretrained("me/tiny")',
        "| reward (without KL penalty), training |",
        f"| kl\\_coef | {settings['kl_coef']} |",
        "## Limitations",
        "No held-out judge",
    ):
        assert said in card.text
    with pytest.raises(FileExistsError):
        export_model(run_dir, run_dir, "me/tiny")


def test_a_push_is_one_commit_without_training_state(run_dir: Path) -> None:
    hub = Hub()
    assert push_to_hub(run_dir, "tiny", private=True, api=hub) == "https://hub/me/tiny/commit/1"
    assert hub.repositories == [("tiny", True)]
    assert {"README.md", "config.json", "model.safetensors", "policy.json"} <= set(hub.files)
    assert not set(hub.files) & set(TRAINING_STATE)
    assert hub.files["model.safetensors"] == (run_dir / "best" / "model.safetensors").read_bytes()
    push_to_hub(run_dir, "tiny", training_state=True, api=hub)
    assert "optimizer.safetensors" in hub.files


def test_an_agent_is_pushed_as_it_is(run_dir: Path, byte_tokenizer: Any) -> None:
    from textenv.tasks.make import make_vec_env

    envs = make_vec_env(2, prompts=["a"], tokenizer=byte_tokenizer, rewards=[], max_new_tokens=2)
    agent = PPO(str(run_dir / "best"), envs=envs)
    hub = Hub()
    push_to_hub(agent, "tiny", api=hub)
    assert hub.files["model.safetensors"] == (run_dir / "best" / "model.safetensors").read_bytes()
    assert "No figures were kept" in hub.files["README.md"].decode()


def test_texts_of_a_run_stay_texts_in_the_card(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "best").symlink_to(run_dir / "best")
    info = {"agent": "ppo", "task": "a|b<script>\n# x\x1b", "model": "/home/me/secret", "config": {}}
    (folder / "run.json").write_text(json.dumps(info))
    card = model_card(folder, "me/tiny")
    assert card.data.base_model is None
    assert r"a\|b&lt;script&gt;\n# x\x1b" in card.text.replace("\\\\", "\\")
    assert "<script>" not in card.text


def test_the_command_writes_the_folder_or_says_what_is_wrong(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run_dir), "me/tiny", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "README.md").is_file()
    assert main(["push", str(run_dir)]) == 2
    assert main(["push", str(tmp_path / "none"), "me/tiny"]) == 2
    with pytest.raises(ValueError, match="repo_id must be the name of a repository"):
        push_to_hub(run_dir, "a/b/c", api=Hub())
    with pytest.raises(ValueError, match="holds no model"):
        push_to_hub(tmp_path, "me/tiny", api=Hub())
