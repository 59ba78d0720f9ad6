"""What a reader follows: from ``learn`` to a loss, and the classes above an algorithm."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest

import textenv.agents.ppo as ppo
from tests.helpers.agents import make
from textenv.agents.base.agent import Agent
from textenv.agents.base.registry import BUILTIN, get_agent


def test_seven_calls_in_five_files_from_learn_to_the_clipped_surrogate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    surrogate, found = ppo.ppo_policy_loss, []

    def spy(*args: Any, **options: Any) -> Any:
        found.append(traceback.extract_stack())
        return surrogate(*args, **options)

    monkeypatch.setattr(ppo, "ppo_policy_loss", spy)
    make("ppo", iterations=1).learn()
    frames = [(Path(frame.filename).name, frame.name) for frame in found[0][:-1]]
    chain = [*frames[frames.index(("agent.py", "learn")) :], ("policy_gradient.py", "ppo_policy_loss")]
    assert chain == [
        ("agent.py", "learn"),
        ("online.py", "train_loop"),
        ("online.py", "update"),
        ("agent.py", "optimizer_step"),
        ("step.py", "optimizer_step"),
        ("ppo.py", "loss"),
        ("policy_gradient.py", "ppo_policy_loss"),
    ]
    assert len({file for file, _ in chain}) == 5


@pytest.mark.parametrize("name", sorted(set(BUILTIN) - {"sb3"}))
def test_at_most_four_classes_with_agent_and_a_loss_on_the_own_page(name: str) -> None:
    agent = get_agent(name)
    assert len([cls for cls in agent.__mro__ if issubclass(cls, Agent)]) <= 4
    page = next(cls for cls in agent.__mro__ if "loss" in vars(cls)).__module__
    assert page.startswith("textenv.agents.") and (page.count(".") == 2 or name == "best-of-n")


@pytest.mark.parametrize("name", ["ppo", "a2c", "nlpo", "grpo", "rloo", "reinforce", "reinforce++"])
def test_policy_gradient_agents_define_advantages_and_loss(name: str) -> None:
    agent = get_agent(name)
    assert {"advantages", "loss"} <= vars(agent).keys()
    assert [cls.__name__ for cls in agent.__mro__[1:4]] == ["PolicyGradientAgent", "OnlineAgent", "Agent"]
