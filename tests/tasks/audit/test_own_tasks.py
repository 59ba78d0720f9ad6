"""Every task of the library passes the audit."""

from __future__ import annotations

import pytest

from textenv.tasks import letter_tokenizer, make_task, task_names
from textenv.tasks.audit import CHECKS, audit

PROMPTS = {"prompts": ["ab", "ba", "b"], "tokenizer": letter_tokenizer("ab"), "rewards": ["length"]}
ARGUMENTS = {"prompts": PROMPTS | {"max_new_tokens": 4}}
"""Task -> further arguments of the environment."""
OWN = [n for n in task_names() if make_task(n).builder.__module__.startswith("textenv.tasks.")]
ELSEWHERE = {"reviews"}
"""Tasks that need files; their own tests audit them."""


@pytest.mark.parametrize("name", sorted({*OWN} - ELSEWHERE))
def test_own_tasks_have_no_errors_and_no_warnings(name: str) -> None:
    report = audit(name, episodes=4, num_envs=2, **ARGUMENTS.get(name, {}))
    assert report.ok and not report.of("warning"), str(report)
    assert {finding.check for finding in report.findings} == set(CHECKS)


@pytest.mark.parametrize("name", ["guess-number", "maze", "random-walks", "twenty-questions", "wordle"])
def test_players_of_games_are_checked(name: str) -> None:
    report = audit(name, episodes=4, num_envs=4, skip=[check for check in CHECKS if check != "player"])
    (found,) = [finding for finding in report.findings if finding.check == "player"]
    assert found.severity == "ok" and "optimum" in found.text, found
    assert report.figures["returns"]["player"] > report.figures["returns"]["random"]
