"""How per-token losses become one number: hand-worked, by name, and split into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from textenv.agents import PPOConfig
from textenv.agents.data.batch import Totals
from textenv.agents.losses.aggregation import (
    AGGREGATIONS,
    aggregate,
    get_aggregation,
    register_aggregation,
    token_mean,
)
from textenv.agents.losses.masked import masked_sum
from textenv.agents.losses.policy_gradient import ppo_policy_loss

# Rows of 3, 1 and 0 action tokens: sums 6, 10 and 0, means 2, 10 and none.
VALUES = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0], [5.0, 5.0, 5.0]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)


@pytest.fixture(autouse=True)
def _nothing_stays_registered() -> Iterator[None]:
    known = dict(AGGREGATIONS)
    yield
    AGGREGATIONS.clear()
    AGGREGATIONS.update(known)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("token-mean", "dapo"), 16 / 4),
        (("sequence-mean", "grpo"), (2 + 10) / 2),
        (("constant", "dr_grpo"), 16 / (2 * 5)),
    ],
)
def test_by_hand(names: tuple[str, str], expected: float) -> None:
    for name in names:
        assert float(aggregate(VALUES, MASK, name, Totals(tokens=4, episodes=2, longest=5))) == expected


def test_without_totals_the_episodes_at_hand_are_the_whole_step() -> None:
    assert float(aggregate(VALUES, MASK)) == 4.0
    assert float(aggregate(VALUES, MASK, "sequence-mean")) == 6.0
    assert float(aggregate(VALUES, torch.zeros_like(MASK), "sequence-mean")) == 0.0


def test_the_constant_has_to_be_known() -> None:
    with pytest.raises(ValueError, match=r"aggregation 'constant' needs totals\.longest, .* got None"):
        aggregate(VALUES, MASK, "constant")


def test_what_is_off_the_mask_has_no_part_even_if_nan() -> None:
    spoilt = torch.where(MASK, VALUES, torch.nan).requires_grad_()
    for name in AGGREGATIONS:
        totals = Totals(tokens=4, episodes=2, longest=5)
        value = aggregate(spoilt, MASK, name, totals)
        assert value == aggregate(VALUES, MASK, name, totals)
        (gradient,) = torch.autograd.grad(value, spoilt)
        assert not gradient[~MASK].any()


@pytest.mark.parametrize("name", ["token-mean", "sequence-mean", "constant"])
def test_micro_batches_add_up(name: str) -> None:
    totals = Totals(tokens=4, episodes=2, longest=5)
    whole = aggregate(VALUES, MASK, name, totals)
    parts = [aggregate(VALUES[i : i + 1], MASK[i : i + 1], name, totals) for i in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_weights_of_a_token_by_hand() -> None:
    # A token's share: 1/4 in any row; 1/(2 * 3) or 1/2 by its row's length; 1/(2 * 5) in any row.
    for name, long, short in (("token-mean", 1 / 4, 1 / 4), ("grpo", 1 / 6, 1 / 2), ("dr_grpo", 0.1, 0.1)):
        values = VALUES.clone().requires_grad_()
        aggregate(values, MASK, name, Totals(tokens=4, episodes=2, longest=5)).backward()
        expected = torch.tensor([[long] * 3, [short, 0, 0], [0, 0, 0]], dtype=torch.float64)
        assert values.grad is not None
        torch.testing.assert_close(values.grad, expected)


def test_a_new_one_is_a_function_and_usable_by_name() -> None:
    @register_aggregation("sum")
    def total(values: Tensor, mask: Tensor, totals: Totals) -> Tensor:
        return masked_sum(values, mask)

    assert PPOConfig.from_dict({"aggregation": "sum"}).aggregation == "sum"
    log_probs = torch.zeros(1, 3)
    mask = torch.ones(1, 3, dtype=torch.bool)
    reduce = partial(get_aggregation("sum"), totals=Totals(tokens=3, episodes=1))
    loss, _ = ppo_policy_loss(log_probs, log_probs, torch.full((1, 3), 2.0), mask, reduce=reduce)
    assert float(loss) == -6.0


def test_registry_errors() -> None:
    with pytest.raises(ValueError, match="unknown aggregation 'tokenmean'; known: token-mean, "):
        PPOConfig(aggregation="tokenmean")
    with pytest.raises(ValueError, match="aggregation 'token-mean' is already registered"):
        register_aggregation("token-mean")(token_mean)
