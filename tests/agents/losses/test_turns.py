"""Discounts per turn and advantages per turn, worked by hand and against the plain recursion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from textenv.agents.losses.advantages import (
    PER_TURN,
    batch_mean,
    discounted_sums,
    gae,
    monte_carlo,
    register_advantage,
    turn_gae,
    value_mask,
)
from textenv.agents.losses.ilql import ilql_targets
from textenv.agents.losses.turns import step_discounts, turn_numbers, turn_sums
from textenv.episodes.turns import turn_ends, turn_starts

# Three turns of 2, 1 and 2 action tokens, with replies of 1 and 2 tokens between them.
MASK = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1, 1]], dtype=torch.bool)
REWARDS = torch.tensor([[0, 0, 1, 0, 2, 0, 0, 0, 4]], dtype=torch.float64)
VALUES = torch.tensor([[9, 1, 2, 9, 3, 9, 9, 4, 5]], dtype=torch.float64)


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def ragged(rows: int = 5, length: int = 29) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(rows, length, generator=generator) < 0.6
    mask[:, 0] = mask[-1] = False
    rewards = torch.randn(rows, length, generator=generator, dtype=torch.float64)
    values = torch.randn(rows, length, generator=generator, dtype=torch.float64)
    return rewards, mask, values, torch.randn(rows, generator=generator, dtype=torch.float64)


def test_turns_by_hand() -> None:
    assert turn_starts(MASK).long().tolist() == [[0, 1, 0, 0, 1, 0, 0, 1, 0]]
    assert turn_ends(MASK).long().tolist() == [[0, 0, 1, 0, 1, 0, 0, 0, 1]]
    assert turn_numbers(MASK).tolist() == [[0, 0, 0, 0, 1, 0, 0, 2, 2]]
    assert turn_sums(REWARDS, MASK).tolist() == [[1.0, 2.0, 4.0]]
    with pytest.raises(ValueError, match="discount must be 'token' or 'turn', got 'step'"):
        step_discounts(MASK, 0.5, "step")


def test_gae_with_discounts_per_token_and_per_turn_by_hand() -> None:
    # gamma 0.5, lambda 1: the advantage is the discounted return minus V.
    # Per token: G_5 = 4; G_4 = 2; G_3 = 2 + 1 = 3; G_2 = 1 + 1.5 = 2.5; G_1 = 1.25.
    # Per turn: G_5 = G_4 = 4; G_3 = 2 + 0.5 * 4 = 4; G_2 = G_1 = 1 + 0.5 * 4 = 3.
    token, returns = gae(REWARDS, MASK, values=VALUES, gamma=0.5, gae_lambda=1.0)
    torch.testing.assert_close(returns, row(0, 1.25, 2.5, 0, 3, 0, 0, 2, 4))
    torch.testing.assert_close(token, row(0, 0.25, 0.5, 0, 0, 0, 0, -2, -1))
    turn, returns = gae(REWARDS, MASK, values=VALUES, gamma=0.5, gae_lambda=1.0, discount="turn")
    torch.testing.assert_close(returns, row(0, 3, 3, 0, 4, 0, 0, 4, 4))
    torch.testing.assert_close(turn, row(0, 2, 1, 0, 1, 0, 0, 0, -1))
    # Lambda 0 is delta = r + factor V_next - V: V_2 - V_1; 1 + V_3 / 2 - V_2; 2 + V_4 / 2 - V_3; V_5 - V_4;
    # 4 - V_5.
    one_step, _ = gae(REWARDS, MASK, values=VALUES, gamma=0.5, gae_lambda=0.0, discount="turn")
    torch.testing.assert_close(one_step, row(0, 1, 0.5, 0, 1, 0, 0, 1, -1))
    # Bootstrapped: gamma counts once after the last action, 4 + 0.5 * 6 = 7.
    _, returns = monte_carlo(REWARDS, MASK, final_values=torch.tensor([6.0]), gamma=0.5, discount="turn")
    torch.testing.assert_close(returns, row(0, 3.75, 3.75, 0, 5.5, 0, 0, 7, 7))


def test_turn_gae_by_hand() -> None:
    # gamma 0.5, lambda 0.5; R = (1, 2, 4), V at the starts = (1, 3, 4).
    # delta = (1 + 1.5 - 1, 2 + 2 - 3, 4 - 4) = (1.5, 1, 0); A_3 = 0; A_2 = 1; A_1 = 1.5 + 0.25 * 1 = 1.75.
    advantages, returns = turn_gae(REWARDS, MASK, values=VALUES, gamma=0.5, gae_lambda=0.5)
    torch.testing.assert_close(advantages, row(0, 1.75, 1.75, 0, 1, 0, 0, 0, 0))
    torch.testing.assert_close(returns, row(0, 2.75, 0, 0, 4, 0, 0, 4, 0))
    # With V = 2 after the last turn, delta_3 = 4 + 1 - 4 = 1, A_2 = 1.25, A_1 = 1.8125.
    advantages, _ = turn_gae(
        REWARDS, MASK, values=VALUES, final_values=torch.tensor([2.0]), gamma=0.5, gae_lambda=0.5
    )
    torch.testing.assert_close(advantages, row(0, 1.8125, 1.8125, 0, 1.25, 0, 0, 1, 1))


def test_turns_of_one_token_are_tokens() -> None:
    rewards, mask, values, final = ragged()
    mask[:, 1::2] = False
    options = {"values": values, "final_values": final, "gamma": 0.9, "gae_lambda": 0.7}
    expected = gae(rewards, mask, **options)
    for found in (turn_gae(rewards, mask, **options), gae(rewards, mask, discount="turn", **options)):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_discount_per_turn_equals_the_recursion(lam: float) -> None:
    rewards, mask, values, final = ragged()
    found, _ = gae(
        rewards, mask, values=values, final_values=final, gamma=0.8, gae_lambda=lam, discount="turn"
    )
    expected = torch.zeros_like(rewards)
    for i in range(len(mask)):
        value, advantage, following = final[i], torch.zeros(()).double(), -1
        for t in reversed(range(mask.shape[1])):
            if not mask[i, t]:
                continue
            factor = 1.0 if following == t + 1 else 0.8
            advantage = rewards[i, t] + factor * value - values[i, t] + factor * lam * advantage
            value, following = values[i, t], t
            expected[i, t] = advantage
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_constant_factor_per_step_is_the_plain_discount() -> None:
    rewards, mask, _, final = ragged()
    factor = torch.full_like(rewards, 0.9)
    torch.testing.assert_close(
        discounted_sums(rewards, mask, factor, final), discounted_sums(rewards, mask, 0.9, final)
    )


def test_one_turn_with_discount_per_turn_is_undiscounted() -> None:
    rewards, mask = REWARDS, torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    for estimator in (monte_carlo, batch_mean):
        per_turn = estimator(rewards, mask, gamma=0.5, discount="turn")
        for a, b in zip(per_turn, estimator(rewards, mask, gamma=1.0), strict=True):
            torch.testing.assert_close(a, b)


def test_ilql_targets_by_hand() -> None:
    torch.testing.assert_close(
        ilql_targets(REWARDS, VALUES, MASK, gamma=0.5), row(0, 1, 2.5, 0, 4, 0, 0, 2.5, 4)
    )
    per_turn = ilql_targets(REWARDS, VALUES, MASK, gamma=0.5, discount="turn")
    torch.testing.assert_close(per_turn, row(0, 2, 2.5, 0, 4, 0, 0, 5, 4))


def test_estimators_say_where_values_are_trained() -> None:
    assert value_mask("gae", MASK) is MASK
    assert torch.equal(value_mask("turn-gae", MASK), turn_starts(MASK))
    with pytest.raises(ValueError, match="already registered"):
        register_advantage("gae", per_turn=True)(gae)
    assert sorted(PER_TURN) == ["turn-gae"]
