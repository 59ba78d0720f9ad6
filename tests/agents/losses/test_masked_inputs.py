"""What stands off the mask changes neither values nor gradients; log-ratios of any size leave both finite."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from textenv.agents.data.batch import Totals
from textenv.agents.losses import advantages, ilql, importance, masked, policy_gradient, turns
from textenv.agents.losses import aggregation as aggregations
from textenv.agents.losses import preference as preferences
from textenv.agents.losses import reward_model as reward_models
from textenv.episodes import turns as runs
from textenv.modeling.bounded_exp import MAX_LOG_RATIO, bounded_exp, bounded_expm1
from textenv.modeling.kl import kl_estimate

MASK = torch.tensor([[0, 1, 0, 1], [0, 1, 1, 0]], dtype=torch.bool)
GROUPS = torch.tensor([3, 3])
TOTALS = Totals(tokens=4, episodes=2, longest=3)
TAIL = torch.tensor([0.5, -0.25], dtype=torch.float64)

Table = dict[str, tuple[int, Callable[..., Any]]]
BY_TOKEN: Table = {
    "zero_unmasked": (1, masked.zero_unmasked),
    "masked_sum": (1, masked.masked_sum),
    "masked_mean": (1, masked.masked_mean),
    "masked_squared_error": (2, masked.masked_squared_error),
    "masked_whiten": (1, masked.masked_whiten),
    "masked_center": (1, lambda x, mask: masked.masked_center(x, mask, GROUPS)),
    "divide_by_std": (1, masked.divide_by_std),
    "first_action_value": (1, masked.first_action_value),
    "explained_variance": (2, masked.explained_variance),
    "log_ratio": (
        2,
        lambda *x: [policy_gradient.log_ratio(*x), policy_gradient.log_ratio(*x, level="sequence")],
    ),
    "ratio_stats": (1, policy_gradient.ratio_stats),
    "ppo_policy_loss": (
        3,
        lambda *x: [
            policy_gradient.ppo_policy_loss(*x),
            policy_gradient.ppo_policy_loss(*x, level="sequence", dual_clip=1.5),
            policy_gradient.ppo_policy_loss(*x, reduce=lambda values, mask: (values * mask).sum()),
        ],
    ),
    "reinforce_loss": (
        2,
        lambda *x: [
            policy_gradient.reinforce_loss(*x),
            policy_gradient.reinforce_loss(*x, reduce=lambda values, mask: (values * mask).sum()),
        ],
    ),
    "policy_gradient_loss": (
        3,
        lambda *x: [
            policy_gradient.policy_gradient_loss(*x, clip_range=None),
            policy_gradient.policy_gradient_loss(*x, clip_range=0.2, dual_clip=1.5),
        ],
    ),
    "ppo_value_loss": (
        3,
        lambda *x: [policy_gradient.ppo_value_loss(*x), policy_gradient.ppo_value_loss(*x, clip_range=None)],
    ),
    "entropy_loss": (1, policy_gradient.entropy_loss),
    "kl_loss": (2, lambda *x: [policy_gradient.kl_loss(*x, kind=kind) for kind in ("k1", "k2", "k3")]),
    "sft_loss": (1, policy_gradient.sft_loss),
    "ilql_targets": (2, ilql.ilql_targets),
    "ilql_q_loss": (3, lambda a, b, y, mask: ilql.ilql_q_loss([a, b], y, mask)),
    "ilql_value_loss": (2, ilql.ilql_value_loss),
    "ilql_cql_loss": (2, lambda a, b, mask: ilql.ilql_cql_loss([a, b], mask)),
    "ilql_awac_loss": (3, lambda *x: ilql.ilql_awac_loss(*x, beta=0.5)),
    "truncated_importance_weights": (
        2,
        lambda *x: [
            importance.truncated_importance_weights(*x, level=level) for level in ("token", "sequence")
        ],
    ),
    "aggregate": (1, lambda x, mask: aggregations.aggregate(x, mask, "dapo", TOTALS)),
    "token_mean": (1, lambda *x: aggregations.token_mean(*x, TOTALS)),
    "sequence_mean": (1, lambda *x: aggregations.sequence_mean(*x, TOTALS)),
    "constant": (1, lambda *x: aggregations.constant(*x, TOTALS)),
    "discounted_sums": (1, lambda x, mask: advantages.discounted_sums(x, mask, 0.9, TAIL)),
    "next_action_values": (1, lambda x, mask: advantages.next_action_values(x, mask, TAIL)),
    "gae": (2, lambda r, v, mask: advantages.gae(r, mask, values=v, final_values=TAIL)),
    "turn_gae": (2, lambda r, v, mask: advantages.turn_gae(r, mask, values=v, final_values=TAIL)),
    "value_mask": (1, lambda x, mask: x[advantages.value_mask("turn-gae", mask)]),
    "turn_starts": (1, lambda x, mask: x[runs.turn_starts(mask)]),
    "turn_ends": (1, lambda x, mask: x[runs.turn_ends(mask)]),
    "turn_numbers": (1, lambda x, mask: x[turns.turn_numbers(mask) == 1]),
    "step_discounts": (1, lambda x, mask: x[turns.step_discounts(mask, 0.5, "turn") == 0.5]),
    "turn_sums": (1, turns.turn_sums),
    "at_turns": (1, lambda x, mask: turns.at_turns(turns.turn_sums(x, mask), mask)),
    "monte_carlo": (2, lambda r, v, mask: advantages.monte_carlo(r, mask, values=v, gamma=0.9)),
    "batch_mean": (1, advantages.batch_mean),
    "rloo": (1, lambda x, mask: advantages.rloo(x, mask, groups=GROUPS)),
    "grpo": (1, lambda x, mask: advantages.grpo(x, mask, groups=GROUPS)),
    "dr_grpo": (1, lambda x, mask: advantages.dr_grpo(x, mask, groups=GROUPS)),
    "response_log_probs": (1, preferences.response_log_probs),
}
"""Function -> how many (B, L) tensors it takes, and a call with those and the mask."""
WEIGHTS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]], dtype=torch.float64)
BY_WEIGHT: Table = {
    "bradley_terry_loss": (
        2,
        lambda a, b, weights: [
            reward_models.bradley_terry_loss(a, b, weights=weights),
            reward_models.bradley_terry_loss(
                a, b, weights=weights, margin=torch.ones(3), label=torch.tensor([1.0, 0.5, 0.2])
            ),
        ],
    ),
    "rating_loss": (1, lambda x, weights: reward_models.rating_loss(x, torch.ones(3), weights=weights)),
}
"""The same for losses of scores (P, K) with weights."""


def public(module: Any, parameter: str) -> set[str]:
    """Names of the functions that a module defines and that have such a parameter."""
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and parameter in inspect.signature(value).parameters
    }


def test_the_tables_hold_every_function() -> None:
    losses = (masked, policy_gradient, ilql, importance, aggregations, advantages, preferences)
    modules = (*losses, turns, runs)
    assert set(BY_TOKEN) == set().union(*(public(module, "mask") for module in modules))
    assert set(BY_WEIGHT) == public(reward_models, "weights")


def flat(found: Any) -> list[Tensor]:
    """All tensors of a result, in order."""
    if isinstance(found, Tensor):
        return [found]
    parts = found.values() if isinstance(found, dict) else found
    return [tensor for part in parts for tensor in flat(part)]


def values_and_gradients(
    call: Callable[..., Any], inputs: list[Tensor], mask: Tensor
) -> tuple[list[Tensor], list[Tensor | None]]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    found = flat(call(*leaves, mask))
    differentiable = [x for x in found if x.requires_grad]
    if differentiable:
        sum((i + 1) * x.sum() for i, x in enumerate(differentiable)).backward()  # type: ignore[union-attr]
    return [x.detach() for x in found], [x.grad for x in leaves]


@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", [*BY_TOKEN, *BY_WEIGHT])
def test_what_is_off_the_mask_changes_neither_values_nor_gradients(name: str, filler: float) -> None:
    count, call = (BY_TOKEN | BY_WEIGHT)[name]
    given = MASK if name in BY_TOKEN else WEIGHTS
    mask = given != 0
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(mask.shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    clean = values_and_gradients(call, [torch.where(mask, x, 0.0) for x in inputs], given)
    dirty = values_and_gradients(call, [torch.where(mask, x, filler) for x in inputs], given)
    for one, other in zip(clean[0], dirty[0], strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()
    for first, second in zip(clean[1], dirty[1], strict=True):
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert torch.equal(first, second)
            assert not second[~mask].any()


# -- log-ratios of any size ----------------------------------------------------------------------------------


def test_the_bounded_exponential_is_the_exponential_up_to_its_bound_bit_for_bit() -> None:
    x = torch.linspace(-100.0, MAX_LOG_RATIO, 4001)
    for ours, theirs in ((bounded_exp, torch.exp), (bounded_expm1, torch.expm1)):
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        found, expected = ours(one), theirs(other)
        assert torch.equal(found, expected)
        found.sum().backward()
        expected.sum().backward()
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


def test_beyond_its_bound_it_is_the_tangent() -> None:
    x = torch.tensor([22.0, 1e4], dtype=torch.float64, requires_grad=True)
    slope = math.exp(20)
    torch.testing.assert_close(bounded_exp(x), slope * torch.tensor([3.0, 9981.0], dtype=torch.float64))
    torch.testing.assert_close(bounded_expm1(x), bounded_exp(x) - 1)
    bounded_exp(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, slope))
    assert bounded_exp(torch.tensor(-math.inf)) == 0


FAR = torch.tensor([[0.0, 1e4, -1e4, 89.0, -89.0, 25.0, 0.1]])
ALL = FAR != 0
"""Log-ratios: the first column is no action."""


def ratio_losses() -> dict[str, Callable[[Tensor], Tensor]]:
    """Scalars of log-probs that stand ``FAR`` from those of another policy."""
    none = torch.zeros_like(FAR)
    up, down = torch.ones_like(FAR), -torch.ones_like(FAR)

    def ppo(advantages: Tensor, **options: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: policy_gradient.ppo_policy_loss(x, none.to(x), advantages.to(x), ALL, **options)[0]

    return {
        "ppo, better": ppo(up),
        "ppo, worse": ppo(down),
        "ppo, dual clip": ppo(down, dual_clip=3.0),
        "gspo": ppo(down, level="sequence"),
        "k1": lambda x: policy_gradient.kl_loss(x, none.to(x), ALL, kind="k1"),
        "k2": lambda x: policy_gradient.kl_loss(x, none.to(x), ALL, kind="k2"),
        "k3": lambda x: policy_gradient.kl_loss(x, none.to(x), ALL),
        "awac": lambda x: ilql.ilql_awac_loss(x, x.detach(), none.to(x), ALL, beta=1.0)[0],
        "value": lambda x: policy_gradient.ppo_value_loss(x, none.to(x), none.to(x), ALL)[0],
        "expectile": lambda x: ilql.ilql_value_loss(x, none.to(x), ALL),
        "kto": lambda x: preferences.kto_loss(x[0], x[0] > 0, kl_estimate(x, -x).mean(), beta=1.0),
        "dpo": lambda x: preferences.dpo_loss(x[0], beta=1.0),
        "ipo": lambda x: preferences.dpo_loss(x[0], kind="ipo"),
        "robust": lambda x: preferences.dpo_loss(x[0], kind="robust", label_smoothing=0.1),
        "orpo": lambda x: preferences.orpo_loss(-x[0].abs(), -x[0].flip(0).abs())[0],
        "simpo": lambda x: preferences.simpo_loss(x[0], -x[0]),
        "cpo": lambda x: preferences.cpo_loss(x[0], -x[0], chosen_tokens=7)[0],
        "bradley-terry": lambda x: reward_models.bradley_terry_loss(x[0], -x[0]),
        "centering": lambda x: reward_models.centering_loss(x[0], x[0]),
        "rating": lambda x: reward_models.rating_loss(x[0], torch.zeros(7)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(ratio_losses()))
def test_losses_and_gradients_stay_finite(name: str, dtype: torch.dtype) -> None:
    x = FAR.clone().to(dtype).requires_grad_()
    value = ratio_losses()[name](x)
    value.backward()
    assert value.isfinite() and x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ratios_weights_and_statistics_stay_finite(dtype: torch.dtype) -> None:
    x = FAR.to(dtype)
    stats = policy_gradient.ratio_stats(x, ALL)
    assert all(value.isfinite() for value in stats.values())
    for level in ("token", "sequence"):
        weights = importance.truncated_importance_weights(x, torch.zeros_like(x), ALL, level=level, clip=1e6)
        assert weights.isfinite().all()
    token = importance.truncated_importance_weights(x, torch.zeros_like(x), ALL)
    torch.testing.assert_close(
        token, torch.tensor([[0, 2, 0, 2, 0, 2, math.exp(0.1)]]).to(dtype), atol=1e-30, rtol=1e-2
    )


def test_the_clipped_surrogate_pushes_far_tokens_in_the_right_direction() -> None:
    # Ratios of e^25, e^-25, e^25 and e^-25 under advantages 1, 1, -1 and -1. The first and the last are
    # clipped: no gradient. The second is pulled up by its ratio, the third is pushed down by the slope e^20.
    x = torch.tensor([[25.0, -25.0, 25.0, -25.0]], dtype=torch.float64, requires_grad=True)
    advantages_ = torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    policy_gradient.ppo_policy_loss(x, torch.zeros_like(x), advantages_, mask, denominator=1.0)[0].backward()
    torch.testing.assert_close(
        x.grad, torch.tensor([[0.0, -math.exp(-25), math.exp(20), 0.0]], dtype=torch.float64)
    )


def test_k3_of_a_token_that_the_policy_gave_up_is_finite_and_pulls_it_back() -> None:
    # d = -30: exp(30) - 1 - 30 with the tangent e^20 (1 + 10) for exp(30); its slope in d is 1 - e^20.
    x = torch.tensor([[-30.0]], dtype=torch.float64, requires_grad=True)
    loss = policy_gradient.kl_loss(x, torch.zeros_like(x), torch.ones(1, 1, dtype=torch.bool))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(11 * math.exp(20) - 31, dtype=torch.float64))
    torch.testing.assert_close(x.grad, torch.tensor([[1 - math.exp(20)]], dtype=torch.float64))
