"""Runs with a partner: from `train` to a resumed run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config

import textenv
from tests.helpers.agents import equal, weights
from tests.helpers.partners import TALKER, Guess
from textenv.agents.settings.env_options import EnvOptions
from textenv.partners.registry import PARTNERS, register_partner

PARTNER = ["guess-run", {"top": 3}]
TURNS: dict[str, Any] = {"partner": PARTNER, "max_turns": 3, "max_turn_tokens": 2}


@pytest.fixture(autouse=True)
def registered() -> Any:
    register_partner("guess-run")(Guess)
    yield
    del PARTNERS["guess-run"]


def run(folder: Path, iterations: int, agent: str = "ppo", **changes: Any) -> Any:
    special = {"bos_token_id": TALKER.bos_token_id, "eos_token_id": TALKER.eos_token_id}
    model = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=len(TALKER), n_positions=64, **special)
    settings = {"iterations": iterations, "episodes_per_iteration": 8, "eval_episodes": 4, **changes}
    return textenv.train(
        agent,
        model,
        reward=[],
        tokenizer=TALKER,
        num_envs=4,
        env_kwargs=TURNS,
        run_dir=folder,
        loggers=["jsonl"],
        learning_rate=1e-2,
        **settings,
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("time", "throughput/"))}
        for line in lines
    ]


@pytest.mark.parametrize("agent", ["ppo", "rloo"])
def test_a_run_with_a_partner_resumes_exactly(agent: str, tmp_path: Path) -> None:
    more = {"samples_per_prompt": 2} if agent == "rloo" else {}
    whole = run(tmp_path / "whole", 4, agent, **more)
    run(tmp_path / "parts", 2, agent, **more)
    again = run(tmp_path / "parts", 4, agent, resume=True, **more)
    assert equal(weights(whole.agent), weights(again.agent))
    assert rows(tmp_path / "parts")[-1] == rows(tmp_path / "whole")[-1]


def test_the_settings_of_files_hold_a_partner() -> None:
    options = EnvOptions.from_dict(json.loads(json.dumps(TURNS)))
    assert options.kwargs() == TURNS
    with pytest.raises(ValueError, match="max_turns must be >= 1, got 0"):
        EnvOptions(max_turns=0)
