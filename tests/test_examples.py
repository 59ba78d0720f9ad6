"""Every example runs as a newcomer would run it: a script of its own, from another folder.

The interpreter is forked from one that has imported the large libraries; it imports textenv itself.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.doc_blocks import registries_kept
from tests.helpers.forked_python import PYTHON
from tests.helpers.notebooks import code_cells, read_notebook, run_cells

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
EXPECTED = {
    "quickstart": r"\[0\] . \| .*\n    return 0\.000 after \d+ tokens",
    "custom_reward": r"64 episodes, mean return .*, of which\n  vowels +\+.*\n  brevity +-.*\n  repetition",
    "generate": r"'once upon a time' -> '[a-z ]*' \((ended|cut), log-prob -\d+\.\d\)\n'once upon a time' ->",
}
SHORT = {
    "custom_agent": ["--seeds", "1", "--iterations", "2"],
    "ppo_random_walks": ["--episodes", "140", "--pretraining", "3"],
    "ilql_random_walks": ["--steps", "3", "--beta", "0", "16"],
}
SHORT |= {"sb3_ppo": ["--steps", "1024"], "dpo_preferences": ["--steps", "20"]}
SHORT |= {"calculator_tool": ["--iterations", "1", "--pretraining", "2"]}
SHORT |= {"guess_number": ["--iterations", "1"]}
EXPECTED |= {
    "calculator_tool": r"before: \d\.\d+ calls per episode, 0\.\d+ right, .*\nafter: \d\.\d+ calls",
    "guess_number": r"turns \d.* -> \d.*, return -\d\.\d+ -> -?\d\.\d+ \(optimum 0\.84\)\npolicy \(",
    "simulated_user": r"\[\w+\] .policy \(0\): .* / user: ",
    "sb3_ppo": r"SB3's PPO on probe-end .*: return -?\d\.\d+ -> -?\d\.\d+",
    "dpo_preferences": r"dpo: the chosen side is likelier in \d+% -> \d+% of 56 pairs",
    "custom_agent": r"\[3/3\] ppo on probe-end, seed 0: reward 0\.\d+, .*\nNo winner can be called: 1 seed",
    "ppo_random_walks": r"optimality 0\.\d+ -> 0\.\d+ \(optimum 1\) after 140 episodes\n   \w -> ",
    "ilql_random_walks": r"random walks 0\.\d+, optimum 1\nbeta 0: optimality 0\.\d+\nbeta 16: optimality",
    "swap_agents": r"ppo \(online\) on probe-end: return [01]\.\d+\n1920 episodes, \d+ optimizer steps",
}


def run(script: Path, folder: Path, *arguments: str) -> str:
    done = PYTHON.run([str(script), *arguments], cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example(script: Path, tmp_path: Path) -> None:
    if script.stem not in EXPECTED:
        pytest.skip("has a test of its own")
    assert re.search(EXPECTED[script.stem], run(script, tmp_path, *SHORT.get(script.stem, [])))
    assert not list(tmp_path.iterdir()), "an example leaves no files behind"


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_help(script: Path, tmp_path: Path) -> None:
    assert "usage:" in run(script, tmp_path, "--help")


def test_generate_takes_a_folder(tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from textenv.tasks.letters import letter_tokenizer

    tokenizer = letter_tokenizer("abc ")
    torch.manual_seed(0)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_layer=1, n_embd=8, n_head=1, **special)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    script = next(script for script in EXAMPLES if script.stem == "generate")
    arguments = ("--model", str(tmp_path), "--prompt", "a b", "--prompt", "c", "--samples", "1")
    lines = run(script, tmp_path, *arguments).splitlines()
    assert [line.split(" -> ")[0] for line in lines] == ["'a b'", "'c'"]


def test_an_agent_written_for_version_0_1_0(tmp_path: Path) -> None:
    """``fixtures/custom_agent_0_1_0.py`` is the example as it was then: what users' files look like."""
    script = ROOT / "tests" / "fixtures" / "custom_agent_0_1_0.py"
    assert re.search(EXPECTED["custom_agent"], run(script, tmp_path, "--seeds", "1", "--iterations", "1"))
    assert not list(tmp_path.iterdir())


NOTEBOOKS = {
    "quickstart": [
        ("iterations=15, eval_episodes=128", "iterations=2, episodes_per_iteration=8, eval_episodes=8")
    ],
    "comparison_study": [
        ("seeds=6", "seeds=1"),
        ('{"iterations": 8}', '{"iterations": 1, "episodes_per_iteration": 8}'),
        ("eval_episodes=128", "eval_episodes=8"),
        ("best_of_prompts=32", "best_of_prompts=2"),
    ],
}
"""Notebook -> (text of a cell, what runs in its place)."""


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs, and what is stored under its cells comes from the cells that print."""
    path = ROOT / "examples" / f"{name}.ipynb"
    monkeypatch.chdir(tmp_path)
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    with registries_kept():
        printed = run_cells(path, module, NOTEBOOKS[name])
    cells = code_cells(read_notebook(path))
    stored = ["".join("".join(output["text"]) for output in cell["outputs"]) for cell in cells]
    assert [bool(text) for text in printed] == [bool(text) for text in stored]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
