"""The task "calculator": the tool, the problems, scripted players and the episodes that they play."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import textenv
from textenv.partners.calculator import calc
from textenv.partners.tools import tool_counts
from textenv.tasks.calculator import SCRIPTED, build_calculator, calculator_episodes, players
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.players import ScriptedPolicy, play


@pytest.mark.parametrize(
    ("expression", "expected"),
    [("12*7", "84"), (" -3*(4 - 6) ", "6"), ("7/2", "3.5"), ("0.1+0.2", "0.3"), ("1/3*3", "1")],
)
def test_the_calculator_is_exact(expression: str, expected: str) -> None:
    assert calc(expression) == expected


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "",
            "a",
            "2**9",
            "1e999999999",
            "__import__('os')",
            "1,2",
            "f(1)",
            "3>2",
            "'a'*9",
            "True+1",
            "0x10",
        ),
        *("9" * 201, "(" * 150, "1/0", "1/(2-2)", "~1", "1_0", "1 if 1 else 2", "[1]*9"),
    ],
)
def test_the_calculator_refuses_all_else(expression: str) -> None:
    with pytest.raises(ValueError, match=r"expression must|division by zero"):
        calc(expression)


def test_words_are_tokens_of_a_letter_tokenizer() -> None:
    tokenizer = letter_tokenizer("aclx", ["calc"])
    assert tokenizer("calcxcal")["input_ids"] == [4, 3, 1, 0, 2]
    assert tokenizer.decode([4, 3, 1]) == "calcxc"
    for words in (["a"], ["ab", "ab"], ["a<"]):
        with pytest.raises(ValueError, match="words must be distinct"):
            letter_tokenizer("ab", words)


def test_the_splits_share_no_problem() -> None:
    train, held_out = (set(build_calculator(split).prompts) for split in ("train", "validation"))
    assert not train & held_out and len(train | held_out) == 90 * 90
    assert 700 < len(held_out) < 900
    data = build_calculator(digits=1)
    assert all(calc(str(p)[:-1]) == a for p, a in zip(data.prompts, data.columns["answer"], strict=True))
    for arguments in ({"digits": 4}, {"digits": 0}, {"tool_share": 1.5}, {"split": "test"}):
        with pytest.raises(ValueError, match="must be"):
            build_calculator(**arguments)


def scores(name: str, **changes: Any) -> tuple[list[float], list[tuple[int, int]], Any]:
    data = build_calculator(**changes)
    envs = gym.make_vec("TextRLHF-v0", 7, task="calculator", task_kwargs=changes)
    policy = ScriptedPolicy([SCRIPTED[name]], data.tokenizer, data.max_turn_tokens or 0)
    batch = textenv.collect(envs, policy, 40, seed=0)
    return batch.returns.tolist(), [tool_counts(replies) for replies in batch.extras["replies"]], batch


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_the_tool_user_is_optimal(digits: int) -> None:
    returns, counts, batch = scores("tool-user", digits=digits)
    assert returns == [1.0] * 40 and counts == [(1, 0)] * 40
    assert batch.extras["stop_reason"] == ["done"] * 40
    # The reward stands at the last token of the answer.
    assert (batch.rewards.nonzero()[:, 1] == batch.last_action).all()


@pytest.mark.parametrize(("name", "calls"), [("guesser", 0), ("careless-user", 1), ("doubter", 1)])
def test_without_the_tool_or_its_result_no_answer_is_right(name: str, calls: int) -> None:
    returns, counts, _ = scores(name)
    assert returns == [0.0] * 40 and counts == [(calls, 0)] * 40


def test_an_episode_by_hand() -> None:
    data = build_calculator()
    env = gym.make("TextRLHF-v0", task="calculator")
    obs, _ = env.reset(seed=0)
    tokenizer, eos = data.tokenizer, data.tokenizer.eos_token_id
    prompt = tokenizer.decode(obs["input_ids"][: int(obs["prompt_length"])])
    answer = calc(prompt[:-1])
    rewards = []
    for turn in (f"calc({prompt[:-1]}", f"calc({prompt[:-1]})", answer):
        for token in [*tokenizer(turn)["input_ids"], eos]:
            obs, reward, terminated, truncated, _ = env.step(token)
            rewards.append(reward)
    assert terminated and not truncated and rewards == [0.0] * (len(rewards) - 1) + [1.0]
    text = tokenizer.decode(env.unwrapped.finished.input_ids[0])
    problem = prompt[:-1]
    assert text == f"{problem}=calc({problem}<eos>?=calc({problem})<eos>{answer}={answer}<eos>"


def test_the_data_are_of_mixed_quality() -> None:
    batch = calculator_episodes(300, tool_share=0.2, seed=1)
    counts = np.array([tool_counts(replies)[0] for replies in batch.extras["replies"]])
    right = batch.returns.numpy()
    assert 0.1 < counts.mean() < 0.3 and right[counts == 0].max() == 0
    assert 0.3 < right[counts == 1].mean() < 0.8
    assert {player.__name__ for player in players(0.2)} == {
        "tool_user",
        "guesser",
        "careless_user",
        "doubter",
    }
    again = play(build_calculator(), players(0.2), 300, seed=1, num_envs=5)
    assert again.input_ids.tolist() == batch.input_ids.tolist()
