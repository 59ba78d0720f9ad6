"""The task "countdown": what counts as an answer, problems, the solver and the data."""

from __future__ import annotations

from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest

from textenv.rewards.registry import make_reward
from textenv.tasks.countdown import (
    any_expression,
    build_countdown,
    countdown_episodes,
    expression_value,
    solve,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2*3+7", 13),
        ("7+(3*2)", 13),
        ("7/(2*3)", Fraction(7, 6)),
        ("-2+3*7", 19),
        ("2*3", None),  # not all numbers
        ("2*3+7+2", None),  # one twice
        ("23+7", None),
        ("2.3+7", None),
        ("2**3+7", None),
        ("2//3+7", None),
        ("2*3+7=13", None),
        ("7/(2-2)*3", None),
        ("2 3 7", None),
        ("", None),
        ("(" * 50 + "2*3+7", None),
    ],
)
def test_an_expression_uses_every_number_once(text: str, expected: Fraction | None) -> None:
    assert expression_value(text, [2, 3, 7]) == expected


def test_division_by_zero_has_no_value() -> None:
    assert expression_value("7/(3-3)", [3, 3, 7]) is None


@pytest.mark.parametrize("count", [2, 3])
def test_every_problem_is_solved(count: int) -> None:
    for split in ("train", "validation"):
        data = build_countdown(split, count=count)
        for numbers, target in zip(data.columns["numbers"], data.columns["target"], strict=True):
            text = solve(numbers, target)
            assert expression_value(text, numbers) == target and len(text) < data.max_new_tokens
        assert data.player is not None
        assert (
            data.player([data.prompts[0]], np.random.default_rng(0)) == data.texts[0][len(data.prompts[0]) :]
        )
    assert not {*build_countdown("train").prompts} & {*build_countdown("validation").prompts}


def test_shortest_solutions_have_only_the_parentheses_that_they_need() -> None:
    assert solve([1, 2, 3], 9) == "(1+2)*3"
    assert solve([2, 3, 9], 4) == "9-2-3"
    assert solve([1, 5, 5, 5], 24) == "(5-1/5)*5"
    with pytest.raises(ValueError, match="50 cannot be reached from"):
        solve([1, 1], 50)


def test_the_reward_of_an_episode() -> None:
    env = gym.make("TextRLHF-v0", task="countdown")
    for wrong in (False, True, None):
        obs, _ = env.reset()
        base = env.unwrapped
        tokenizer = base.rows.tokenizer
        numbers, _, target = tokenizer.decode(obs["input_ids"][: int(obs["prompt_length"])])[:-1].partition(
            ":"
        )
        given = [int(text) for text in numbers.split(",")]
        text = solve(given, int(target)) if not wrong else "+".join(map(str, given))
        if wrong is None:
            text = text[:-1]
        rewards = [env.step(token)[1] for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
        value = expression_value(text, given)
        expected = 0.0 if value is None else 1.0 if value == int(target) else 0.1
        assert rewards[:-1] == [0.0] * (len(rewards) - 1) and rewards[-1] == pytest.approx(expected)
        assert wrong is not False or expected == 1.0


def test_the_data_are_of_mixed_quality() -> None:
    batch = countdown_episodes(200, seed=3)
    values, counts = np.unique(batch.returns.numpy().round(3), return_counts=True)
    assert values.tolist() == pytest.approx([0.1, 1.0]) and 0.3 < counts[1] / 200 < 0.5
    scored = make_reward("countdown")
    scored.tokenizer = build_countdown().tokenizer
    np.testing.assert_allclose(scored.score(batch).numpy(), batch.returns.numpy())
    again = countdown_episodes(200, seed=3)
    assert again.input_ids.tolist() == batch.input_ids.tolist()
    rng = np.random.default_rng(0)
    assert all(expression_value(any_expression([2, 3, 7], rng), [2, 3, 7]) is not None for _ in range(20))


@pytest.mark.parametrize(
    "arguments", [{"count": 1}, {"count": 5}, {"top": 13}, {"most": 1}, {"split": "test"}]
)
def test_bad_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        build_countdown(**arguments)
