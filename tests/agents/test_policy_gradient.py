"""What must hold for every online policy-gradient agent, whatever its advantages and its loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.agents import CASES, family, make, rollout
from textenv.agents.base.registry import get_agent

every_case = pytest.mark.parametrize("case", sorted(CASES))


def test_the_cases_are_all_agents_of_the_family() -> None:
    assert {name for name, _ in CASES.values()} == family()


@every_case
def test_the_ratio_of_the_first_step_is_exactly_one(case: str) -> None:
    agent = make(case, epochs=2, minibatches=1)
    stats = agent.optimizer_step(rollout(agent))
    assert stats["ratio"] == 1.0
    assert stats["policy/approx_kl"] == 0.0
    assert stats.get("policy/clip_fraction", 0.0) == 0.0
    assert stats["grad_norm"] > 0.0


@every_case
@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_kl_is_exactly_zero_at_step_0(case: str, placement: Any) -> None:
    if (case, placement) == ("nlpo", "loss"):
        pytest.skip("NLPO refuses it: its loss sees the masked distributions")
    rows = make(case, kl_placement=placement, kl_coef=0.05).learn().history
    assert rows[0]["objective/kl"] == 0.0
    assert rows[1]["objective/kl"] != 0.0
    assert ("terms/kl" in rows[1]) == (placement == "reward")
    assert ("policy/kl_loss" in rows[1]) == (placement == "loss")


@every_case
def test_the_gradient_is_that_of_finite_differences(case: str) -> None:
    agent = make(case, policy_kwargs={"dtype": torch.float64}, entropy_coef=0.01)
    batch = rollout(agent)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # a little away from the policy that played, where the ratio is not 1
        for p in agent.policy.parameters():
            p += 1e-5 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
    parameters = list(agent.policy.parameters())
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in parameters]

    def loss() -> Tensor:
        return agent.loss(batch, agent.totals(batch))[0]

    loss().backward()
    slope = sum(
        float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True) if p.grad is not None
    )
    step, values = 1e-6, []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += sign * step * d
            values.append(float(loss()))
            for p, d in zip(parameters, direction, strict=True):
                p -= sign * step * d
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-8)


@every_case
def test_metric_names(case: str) -> None:
    row = make(case, kl_coef=0.05).learn().history[0]
    expected = {
        "objective/kl",
        "objective/score",
        "objective/reward",
        "objective/entropy",
        "policy/approx_kl",
        "policy/loss",
        "ratio",
        "loss",
        "grad_norm",
    }
    assert expected <= row.keys()
    clipped = make(case).config.clip_range is not None
    assert ("policy/clip_fraction" in row) == clipped
    assert ("value/loss" in row) == (case in ("a2c", "nlpo", "ppo"))


@pytest.mark.parametrize("name", sorted(family()))
def test_settings_of_the_ratio_need_a_clip(name: str) -> None:
    config = get_agent(name).config_class
    if config.__dataclass_fields__["clip_range"].type == "float":
        with pytest.raises(TypeError, match="clip_range must be float, got None"):
            config(clip_range=None)  # type: ignore[call-arg]
        return
    for setting, value in (("clip_range_high", 0.3), ("dual_clip", 3.0), ("ratio_level", "sequence")):
        with pytest.raises(
            ValueError, match=f"{setting} has no effect without clip_range; got {setting}={value!r}"
        ):
            config(clip_range=None, **{setting: value})


def test_names_that_are_none() -> None:
    with pytest.raises(ValueError, match="unknown aggregation 'mean'; known: "):
        make("grpo", aggregation="mean")
    with pytest.raises(ValueError, match="unknown advantage 'rlo'; known: rloo, "):
        make("rloo", advantage="rlo")
    with pytest.raises(ValueError, match="baseline must be one of 'none', 'batch', 'greedy', got 'mean'"):
        make("reinforce", baseline="mean")


def test_both_ends_of_a_new_idea_are_functions_with_names() -> None:
    """An estimator and an aggregation of one's own, used by name."""
    from textenv.agents import register_advantage, register_aggregation
    from textenv.agents.losses.advantages import ADVANTAGES
    from textenv.agents.losses.aggregation import AGGREGATIONS

    @register_advantage("sign")
    def sign(rewards: Tensor, mask: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        returns = rewards.sum(-1, keepdim=True) * mask
        return returns.sign(), returns

    @register_aggregation("half")
    def half(values: Tensor, mask: Tensor, totals: Any) -> Tensor:
        return (values * mask).sum() / (2 * totals.tokens)

    try:
        found = {}
        for aggregation in ("half", "token-mean"):
            agent = make(
                "reinforce++", advantage="sign", whiten_advantages=False, aggregation=aggregation, kl_coef=0.0
            )
            batch = rollout(agent)
            assert torch.equal(batch["advantages"], batch.episodes.returns.sign().unsqueeze(-1) * batch.mask)
            found[aggregation] = float(agent.loss(batch, agent.totals(batch))[0].detach())
        assert found["half"] == pytest.approx(found["token-mean"] / 2)
    finally:
        del ADVANTAGES["sign"], AGGREGATIONS["half"]
