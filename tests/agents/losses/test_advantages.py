"""Advantage estimators: hand-worked numbers, turns of others, padding, and the registry."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from textenv.agents.losses.advantages import (
    ADVANTAGES,
    batch_mean,
    discounted_sums,
    gae,
    get_advantage,
    grpo,
    monte_carlo,
    next_action_values,
    register_advantage,
    rloo,
)


def plain_gae(
    rewards: Tensor, mask: Tensor, values: Tensor, final: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """The recursion as it is written in the paper, one token at a time."""
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for row in range(len(rewards)):
        next_value, next_advantage = final[row], torch.zeros((), dtype=rewards.dtype)
        for t in reversed(range(rewards.shape[1])):
            if not mask[row, t]:
                continue
            delta = rewards[row, t] + gamma * next_value - values[row, t]
            next_advantage = delta + gamma * lam * next_advantage
            next_value = values[row, t]
            advantages[row, t] = next_advantage
            returns[row, t] = next_advantage + values[row, t]
    return advantages, returns


def ragged(
    rows: int = 6, length: int = 23, *, density: float = 0.6, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, length, generator=generator) < density
    mask[:, 0] = False
    mask[-1] = False
    rewards = torch.randn(rows, length, generator=generator, dtype=torch.float64) * mask
    values = torch.randn(rows, length, generator=generator, dtype=torch.float64)
    final = torch.randn(rows, generator=generator, dtype=torch.float64)
    return rewards, mask, values, final


def test_gae_by_hand() -> None:
    # One prompt token, then r = (0, 0, 1), V = (0.5, 0.4, 0.2), gamma 0.9, lambda 0.5.
    # delta_3 = 1 - 0.2 = 0.8; delta_2 = 0.9 * 0.2 - 0.4 = -0.22; delta_1 = 0.9 * 0.4 - 0.5 = -0.14.
    # A_3 = 0.8; A_2 = -0.22 + 0.45 * 0.8 = 0.14; A_1 = -0.14 + 0.45 * 0.14 = -0.077.
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    values = torch.tensor([[7.0, 0.5, 0.4, 0.2, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[False, True, True, True, False]])
    advantages, returns = gae(rewards, mask, values=values, gamma=0.9, gae_lambda=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.0, -0.077, 0.14, 0.8, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(returns, torch.tensor([[0.0, 0.423, 0.54, 1.0, 0.0]], dtype=torch.float64))


def test_gae_bootstraps_from_final_values_by_hand() -> None:
    # As above, with V = 2 after the last token: delta_3 = 1 + 0.9 * 2 - 0.2 = 2.6; A_2 = -0.22 + 0.45 * 2.6 =
    # 0.95.
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.0, 0.4, 0.2]])
    mask = torch.tensor([[False, True, True]])
    advantages, _ = gae(
        rewards, mask, values=values, final_values=torch.tensor([2.0]), gamma=0.9, gae_lambda=0.5
    )
    torch.testing.assert_close(advantages, torch.tensor([[0.0, 0.95, 2.6]]))


def test_tokens_of_others_carry_value_and_advantage() -> None:
    # Action tokens at columns 1 and 4, two tokens of another speaker in between: the same as if they were
    # neighbours.
    mask = torch.tensor([[False, True, False, False, True]])
    rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])
    values = torch.tensor([[9.0, 0.5, 9.0, 9.0, 0.2]])
    advantages, returns = gae(rewards, mask, values=values, gamma=1.0, gae_lambda=0.5)
    # delta_2 = 0.8, delta_1 = 0.2 - 0.5 = -0.3, A_1 = -0.3 + 0.5 * 0.8 = 0.1
    torch.testing.assert_close(advantages, torch.tensor([[0.0, 0.1, 0.0, 0.0, 0.8]]))
    torch.testing.assert_close(returns, torch.tensor([[0.0, 0.6, 0.0, 0.0, 1.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.97, 0.9), (0.9, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("length", [2, 5, 23, 130])
def test_gae_equals_the_recursion(gamma: float, lam: float, length: int) -> None:
    rewards, mask, values, final = ragged(length=length)
    got = gae(rewards, mask, values=values, final_values=final, gamma=gamma, gae_lambda=lam)
    expected = plain_gae(rewards, mask, values, final, gamma, lam)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_gae_at_lambda_one_is_monte_carlo_minus_values() -> None:
    rewards, mask, values, final = ragged()
    advantages, returns = gae(rewards, mask, values=values, final_values=final, gamma=0.97, gae_lambda=1.0)
    other, other_returns = monte_carlo(rewards, mask, values=values, final_values=final, gamma=0.97)
    torch.testing.assert_close(advantages, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, other_returns, rtol=0, atol=1e-12)


def test_gae_at_lambda_zero_is_one_step() -> None:
    rewards, mask, values, _ = ragged()
    advantages, _ = gae(rewards, mask, values=values, gamma=0.9, gae_lambda=0.0)
    expected = (rewards + 0.9 * next_action_values(values, mask) - values) * mask
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-12)


def test_padding_and_row_order_change_nothing() -> None:
    rewards, mask, values, final = ragged()
    wide = [
        torch.nn.functional.pad(x, (0, 9), value=v) for x, v in ((rewards, 0.0), (mask, False), (values, 5.0))
    ]
    got = gae(wide[0], wide[1], values=wide[2], final_values=final)[0]
    plain = gae(rewards, mask, values=values, final_values=final)[0]
    torch.testing.assert_close(got[:, : mask.shape[1]], plain, rtol=0, atol=1e-12)
    assert not got[:, mask.shape[1] :].any()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = gae(rewards[order], mask[order], values=values[order], final_values=final[order])[0]
    torch.testing.assert_close(shuffled, plain[order], rtol=0, atol=1e-12)


def test_values_off_the_mask_do_not_matter_even_if_nan() -> None:
    rewards, mask, values, final = ragged()
    spoilt = torch.where(mask, values, torch.nan)
    a = gae(rewards, mask, values=values, final_values=final)
    b = gae(rewards, mask, values=spoilt, final_values=final)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_low_precision_inputs_are_summed_in_float32() -> None:
    mask = torch.ones(1, 400, dtype=torch.bool)
    rewards = torch.full((1, 400), 0.1, dtype=torch.bfloat16)
    returns = discounted_sums(rewards, mask, 1.0)
    assert returns.dtype == torch.float32
    torch.testing.assert_close(returns[0, 0], rewards.float().sum(), rtol=1e-6, atol=0)


def test_no_own_tokens_at_all() -> None:
    mask = torch.zeros(2, 4, dtype=torch.bool)
    advantages, returns = gae(torch.zeros(2, 4), mask, values=torch.ones(2, 4))
    assert not advantages.any() and not returns.any()


def test_advantages_carry_no_gradient() -> None:
    rewards, mask, values, _ = ragged()
    final = torch.ones(len(values), dtype=values.dtype, requires_grad=True)
    for estimator in (gae, monte_carlo):
        for found in estimator(rewards, mask, values=values.requires_grad_(), final_values=final):
            assert not found.requires_grad


def test_there_may_be_no_episodes_and_no_own_tokens() -> None:
    assert discounted_sums(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool), 0.5).shape == (0, 3)
    for found in batch_mean(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool)):
        assert found.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_advantages_are_float32_at_least(given: torch.dtype, expected: torch.dtype) -> None:
    rewards, mask = torch.ones(2, 3, dtype=given), torch.ones(2, 3, dtype=torch.bool)
    groups = torch.zeros(2, dtype=torch.int64)
    for estimator in (gae, monte_carlo, batch_mean, rloo, grpo):
        for found in estimator(rewards, mask, values=rewards, groups=groups):
            assert found.dtype == expected, estimator.__name__


def test_batch_mean_by_hand() -> None:
    mask = torch.tensor([[False, True, True], [False, True, False], [False, False, False]])
    rewards = torch.tensor([[0.0, 1.0, 2.0], [0.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
    advantages, returns = batch_mean(rewards, mask)
    assert returns.tolist() == [[0.0, 3.0, 2.0], [0.0, 5.0, 0.0], [0.0, 0.0, 0.0]]
    assert advantages.tolist() == [[0.0, -1.0, -2.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_rloo_by_hand() -> None:
    # Group 7 has returns 1, 3, 8: 1 - 5.5, 3 - 4.5, 8 - 2. Group 2 has 4 and 6: -2 and 2.
    mask = torch.tensor([[False, True, True]] * 5)
    scores = torch.tensor([1.0, 4.0, 3.0, 8.0, 6.0])
    rewards = torch.zeros(5, 3)
    rewards[:, 2] = scores
    advantages, returns = rloo(rewards, mask, groups=torch.tensor([7, 2, 7, 7, 2]))
    assert advantages[:, 1].tolist() == [-4.5, -2.0, -1.5, 6.0, 2.0]
    assert torch.equal(advantages[:, 1], advantages[:, 2]) and not advantages[:, 0].any()
    assert returns[:, 1].tolist() == scores.tolist()


def test_grpo_by_hand() -> None:
    # Returns 1, 3, 8: mean 4, sample std sqrt(13). A group without spread has advantage 0, not NaN.
    mask = torch.tensor([[False, True]] * 5)
    rewards = torch.tensor([1.0, 3.0, 8.0, 2.0, 2.0], dtype=torch.float64).unsqueeze(-1) * mask
    groups = torch.tensor([0, 0, 0, 1, 1])
    advantages, _ = grpo(rewards, mask, groups=groups)
    expected = torch.tensor([-3.0, -1.0, 4.0, 0.0, 0.0], dtype=torch.float64) / (13.0**0.5 + 1e-4)
    torch.testing.assert_close(advantages[:, 1], expected)
    assert grpo(rewards, mask, groups=groups, scale=False)[0][:, 1].tolist() == [-3.0, -1.0, 4.0, 0.0, 0.0]


@pytest.mark.parametrize("estimator", [rloo, grpo])
def test_group_estimators_refuse_a_lonely_episode(estimator: object) -> None:
    mask = torch.tensor([[False, True]] * 3)
    with pytest.raises(ValueError, match=r"at least 2 episodes, got 1 for group 5"):
        estimator(torch.zeros(3, 2), mask, groups=torch.tensor([3, 5, 3]))  # type: ignore[operator]


def test_every_registered_estimator_takes_the_same_call() -> None:
    rewards, mask, values, final = ragged()
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    for name in ("gae", "turn-gae", "monte-carlo", "batch-mean", "rloo", "grpo"):
        advantages, returns = get_advantage(name)(
            rewards,
            mask,
            values=values,
            final_values=final,
            groups=groups,
            gamma=1.0,
            gae_lambda=0.9,
            discount="turn",
        )
        assert advantages.shape == returns.shape == rewards.shape
        assert not advantages[~mask].any()


def test_registry_errors() -> None:
    with pytest.raises(ValueError, match="unknown advantage 'gea'; known: gae, "):
        get_advantage("gea")
    with pytest.raises(ValueError, match="already registered"):
        register_advantage("gae")(gae)
    assert ADVANTAGES["gae"] is gae
