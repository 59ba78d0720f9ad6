"""The Monte Carlo critic: its loss by loops, gradients of any split, and a probe that it solves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import agents
from textenv.agents.data.batch import TrainingBatch
from textenv.agents.monte_carlo import MonteCarloConfig
from textenv.tasks.registry import make_task

DATA = make_task("probe-end").build(per_token=True).demonstrations.select(slice(0, 32))


def make(**settings: Any) -> Any:
    agent: Any = agents.make("monte-carlo", dataset=DATA, policy_kwargs={"dtype": torch.float64}, **settings)
    generator = torch.Generator().manual_seed(3)
    for parameter in agent.policy.heads.parameters():
        parameter.data.normal_(0.0, 0.5, generator=generator)
    agent.policy.invalidate()
    return agent


def test_the_loss_by_loops() -> None:
    agent = make(gamma=0.9, awac_coef=0.7, awac_beta=0.5, cql_coef=0.3)
    batch = TrainingBatch(DATA.select(slice(0, 6)))
    loss, stats = agent.loss(batch, agent.totals(batch))
    episodes, heads, policy = batch.episodes, agent.policy.heads, agent.policy
    with torch.no_grad():
        out = policy(episodes, hidden=True)
    q_loss = value_loss = awac = cql = 0.0
    for row in range(6):
        columns = episodes.action_mask[row].nonzero().flatten().tolist()
        for place, column in enumerate(columns):
            later = enumerate(columns[place:])
            target = sum(0.9**k * float(episodes.rewards[row, other]) for k, other in later)
            state, action = out.hidden[row, column - 1], int(episodes.input_ids[row, column])
            value = heads.v_head(state).item()
            least = min(q(state)[action].item() for q in heads.target_q_heads)
            q_loss += sum((q(state)[action].item() - target) ** 2 for q in heads.q_heads)
            cql -= sum(q(state).log_softmax(-1)[action].item() for q in heads.q_heads)
            value_loss += (value - target) ** 2
            weight = float(torch.tensor(0.5 * (least - value)).exp())
            awac -= weight * float(out.log_probs[row, column])
    assert not any(value.requires_grad for value in stats.values())
    tokens = int(episodes.action_mask.sum())
    expected = {"q_loss": q_loss, "value_loss": value_loss, "awac_loss": awac, "cql_loss": cql}
    for name, value in expected.items():
        assert float(stats[f"monte_carlo/{name}"]) == pytest.approx(value / tokens, rel=1e-5)
    total = q_loss + value_loss + 0.7 * awac + 0.3 * cql
    assert loss.item() == pytest.approx(total / tokens, rel=1e-5)


def test_the_expectile_is_the_mean() -> None:
    with pytest.raises(ValueError, match=r"expectile must be 0.5 for Monte Carlo returns, got 0.7"):
        MonteCarloConfig(expectile=0.7)
