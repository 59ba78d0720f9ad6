"""What holds for every registered agent: each test runs on all of them, and on variants of their settings.

What an agent cannot promise is named by its class attribute ``cannot``, and skipped with the reason there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.agents import ALL_CASES, demonstrations, equal, first_batch, make_any, sources, weights
from tests.helpers.numeric_helpers import relative_error
from textenv.agents.base.agent import Agent
from textenv.agents.base.policy_gradient import PolicyGradientAgent
from textenv.agents.base.registry import BUILTIN, agent_names, get_agent
from textenv.agents.checkpointing.failure import NonFiniteError

every_case = pytest.mark.parametrize("case", sorted(ALL_CASES))
TIMED = ("time/", "throughput/")
ADAPTIVE: dict[str, Any] = {
    "score_scale": True,
    "ema_decay": 0.9,
    "kl_controller": "adaptive",
    "kl_target": 0.01,
    "kl_horizon": 40,
}
"""What keeps a state in a policy-gradient agent, beside weights and moments."""
WITHOUT_KL = ("dapo",)
"""Cases without a KL penalty that could adapt."""


def agent_class(case: str) -> type[Agent]:
    return get_agent(ALL_CASES[case][0])


def need_own_step(case: str) -> None:
    """Skip agents that make no optimizer step of their own: another library does, or nothing is trained."""
    cls = agent_class(case)
    if cls.loss is Agent.loss:
        pytest.skip(f"{cls.__name__} has no loss of its own")


def lasting(case: str) -> dict[str, Any]:
    """Settings whose state a resumed run needs."""
    cls = agent_class(case)
    if ALL_CASES[case][0] == "best-of-n":
        return {}
    if not issubclass(cls, PolicyGradientAgent):
        return {"lr_schedule": "linear"}
    adaptive = dict(ADAPTIVE)
    if case in WITHOUT_KL:
        adaptive = {"score_scale": True, "ema_decay": 0.9}
    return {"lr_schedule": "linear", **adaptive}


def rows_of(agent: Agent) -> list[dict[str, str]]:
    """The history without times; numbers as text, for NaN is not equal to itself."""
    return [
        {name: repr(value) for name, value in row.items() if not name.startswith(TIMED)}
        for row in agent.history
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Agent]:
    """A run of three iterations of a case, with checkpoints after the second and at the end."""
    made: dict[str, Agent] = {}

    def of(case: str) -> Agent:
        if case not in made:
            checkpoints = {} if ALL_CASES[case][0] == "best-of-n" else {"checkpoint_every": 2}
            folder = tmp_path_factory.mktemp("runs") / case
            made[case] = make_any(case, 3, run_dir=folder, **checkpoints, **lasting(case))
            made[case].learn()
        return made[case]

    return of


def load(agent: Agent, case: str, step: int) -> Agent:
    assert agent.run_dir is not None
    return Agent.load(agent.run_dir / "checkpoints" / f"step-{step:08}", **sources(case))


def test_the_cases_are_all_agents() -> None:
    assert {name for name, _ in ALL_CASES.values()} == set(BUILTIN) <= set(agent_names())


@every_case
def test_a_resumed_run_equals_the_uninterrupted_one(case: str, whole: Callable[[str], Agent]) -> None:
    cls = agent_class(case)
    if "exact resume" in cls.cannot:
        pytest.skip(cls.cannot["exact resume"])
    expected = whole(case)
    if len(expected.history) < 3:
        pytest.skip(f"{cls.__name__} has one iteration, which trains nothing")
    resumed = load(expected, case, 2)
    assert resumed.iteration == 2
    resumed.learn()
    assert resumed.counters() == expected.counters()
    assert equal(weights(resumed), weights(expected))
    assert rows_of(resumed)[-1] == rows_of(expected)[-1]
    state, same = resumed.training_state(), expected.training_state()
    assert json.dumps(state.values, default=repr) == json.dumps(same.values, default=repr)
    assert state.tensors.keys() == same.tensors.keys()
    assert all(torch.equal(value, same.tensors[name]) for name, value in state.tensors.items())


@every_case
def test_a_saved_agent_loads_as_it_was(case: str, whole: Callable[[str], Agent]) -> None:
    expected = whole(case)
    again = load(expected, case, expected.iteration)
    assert type(again) is type(expected)
    assert again.config == expected.config
    assert again.counters() == expected.counters()
    assert equal(weights(again), weights(expected))
    moments = [agent.optimizer.state_dict()["state"] for agent in (again, expected)]
    assert moments[0].keys() == moments[1].keys()
    for place, state in moments[1].items():
        assert all(torch.equal(moments[0][place][name], value) for name, value in state.items())
    if expected.reference is not None:
        episodes = demonstrations()
        assert torch.equal(again.reference.log_prob(episodes), expected.reference.log_prob(episodes))


@every_case
def test_the_same_seed_gives_the_same_weights_bit_by_bit(case: str, whole: Callable[[str], Agent]) -> None:
    expected = whole(case)
    torch.manual_seed(17)  # the global state plays no part
    again = make_any(case, 3, **lasting(case))
    again.learn()
    assert equal(weights(again), weights(expected))
    assert rows_of(again) == rows_of(expected)
    if expected.optimizer_steps:
        other = make_any(case, 1, seed=1)
        other.learn()
        assert rows_of(other)[0] != rows_of(expected)[0]


@every_case
def test_the_kl_is_exactly_zero_at_step_0(case: str, whole: Callable[[str], Agent]) -> None:
    rows = whole(case).history
    if "objective/kl" not in rows[0]:
        pytest.skip(f"{agent_class(case).__name__} measures no KL on what it samples")
    assert rows[0]["objective/kl"] == 0.0
    assert rows[1]["objective/kl"] != 0.0


@every_case
def test_at_learning_rate_zero_no_weight_moves(case: str) -> None:
    if ALL_CASES[case][0] == "best-of-n":
        pytest.skip("BestOfN trains nothing")
    agent = make_any(case, 2, learning_rate=0.0)
    before = weights(agent)
    rows = agent.learn().history
    assert equal(before, weights(agent))
    for row in rows:
        # Minibatches pad differently than the whole batch, so equal up to float32's rounding.
        assert row.get("ratio", 1.0) == pytest.approx(1.0, abs=1e-5)
        assert row.get("policy/approx_kl", 0.0) == pytest.approx(0.0, abs=1e-6)
        assert row.get("objective/kl", 0.0) == 0.0


def moved(case: str, **options: Any) -> tuple[Agent, Any]:
    """An agent in float64 that is a little away from where it sampled, and a batch of its data."""
    double = {} if case.startswith("reward-model") else {"policy_kwargs": {"dtype": torch.float64}}
    if issubclass(agent_class(case), PolicyGradientAgent) and "entropy_coef" not in ALL_CASES[case][1]:
        options["entropy_coef"] = 0.01
    agent = make_any(case, max_grad_norm=None, **double, **options)
    agent.policy.double()
    batch = first_batch(agent)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in agent.trainable().parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise, alpha=0.05)
    return agent, batch


@every_case
def test_gradient_and_statistics_do_not_depend_on_the_micro_batches(case: str) -> None:
    need_own_step(case)
    if ALL_CASES[case][1].get("dropout"):
        pytest.skip("dropout draws anew in each micro-batch")
    found: list[tuple[dict[str, float], list[Tensor]]] = []
    for budget in (10**6, 40) if agent_class(case).online else (10**6, 40, 1):
        agent, batch = moved(case, max_tokens_per_microbatch=budget)
        assert (len(list(batch.microbatches(budget))) > 1) == (budget <= 40)
        gradients: list[Tensor] = []

        def keep(*_: Any, agent: Agent = agent, kept: list[Tensor] = gradients) -> None:
            kept.extend(p.grad.clone() for p in agent.parameters if p.grad is not None)

        agent.optimizer.register_step_pre_hook(keep)
        found.append((agent.optimizer_step(batch), gradients))
    (expected, gradient), *others = found
    assert any(bool(part.any()) for part in gradient)
    for row, split in others:
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert relative_error(split, gradient) < 1e-9


@every_case
@pytest.mark.parametrize("term", ["loss", "gradient"])
def test_a_nan_loss_or_gradient_stops_before_the_weights_change(
    case: str, term: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_own_step(case)
    agent = make_any(case, run_dir=tmp_path)
    batch = first_batch(agent)
    if term == "gradient":
        agent.parameters[0].register_hook(lambda gradient: gradient * math.nan)
    else:
        loss = agent.loss

        def spoilt(*arguments: Any) -> Any:
            value, stats = loss(*arguments)
            return value * math.nan, stats

        monkeypatch.setattr(agent, "loss", spoilt)
    before, iteration = weights(agent), agent.iteration
    with pytest.raises(NonFiniteError) as caught:
        agent.optimizer_step(batch)
    assert (caught.value.term, caught.value.iteration) == (term, iteration)
    facts = json.loads((caught.value.where / "failure.json").read_text())
    assert facts["term"] == term and "loss" in facts["values"]
    assert (caught.value.where / "episodes.jsonl").exists()
    assert equal(before, weights(agent))
    assert agent.optimizer_steps == 0
    assert all(parameter.grad is None for parameter in agent.parameters)
