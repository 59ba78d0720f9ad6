"""Heads of an ensemble differ, at the start or by their data, after training, and in what they say."""

from __future__ import annotations

from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.helpers.models import TOKENIZER, tiny
from textenv.agents.base.registry import get_agent
from textenv.agents.ilql import ILQL, ILQLPolicy
from textenv.agents.monte_carlo import MonteCarloCritic
from textenv.agents.policies.heads import LINEAR_SPREAD, ILQLHeads
from textenv.tasks.registry import make_task

DATA = make_task("probe-end").build().demonstrations.select(slice(0, 48))


def trained(name: str, **settings: Any) -> ILQL:
    cls = get_agent(name)
    assert issubclass(cls, ILQL)
    options = {"steps": 12, "batch_size": 16, "learning_rate": 1e-2, **settings}
    model = tiny()
    agent = cls(model, dataset=DATA, tokenizer=TOKENIZER, config=cls.config_class(**options))
    agent.learn()
    return agent


def gaps(found: list[Tensor]) -> list[float]:
    """Root mean square difference of every two of K tensors."""
    return [float((a - b).square().mean().sqrt()) for a, b in combinations(found, 2)]


def said(heads: Any, states: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [head(states) for head in heads]


@pytest.mark.parametrize("num_q", [2, 3])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("name", ["ilql", "monte-carlo"])
def test_q_heads_and_their_targets_differ_after_training(name: str, head: str, num_q: int) -> None:
    agent = trained(name, head=head, num_q=num_q)
    with torch.no_grad():
        states = agent.policy(DATA, hidden=True).hidden[:, :-1][DATA.action_mask[:, 1:]]
    online = said(agent.policy.heads.q_heads, states)
    assert min(gaps(online)) > 0.2 * LINEAR_SPREAD
    assert min(gaps(said(agent.policy.heads.target_q_heads, states))) > 0.0
    # The least of them is the least, and not any one of them everywhere.
    least = torch.stack(online).amin(0)
    assert all(bool((least != q).any()) and bool((least == q).any()) for q in online)


def test_every_agent_with_q_heads_is_in_the_test_above() -> None:
    from textenv.agents.base.registry import BUILTIN

    assert {name for name in BUILTIN if issubclass(get_agent(name), ILQL)} == {"ilql", "monte-carlo"}
    assert issubclass(MonteCarloCritic, ILQL)


def test_fresh_linear_heads_say_something_small_of_their_own() -> None:
    torch.manual_seed(0)
    heads = ILQLHeads(64, 500, num_q=2, kind="linear")
    states = torch.randn(200, 64)
    one, other = said(heads.q_heads, states)
    for q in (one, other):
        assert float(q.std()) == pytest.approx(LINEAR_SPREAD, rel=0.05)
    assert float((one * other).mean()) / LINEAR_SPREAD**2 == pytest.approx(0.0, abs=0.05)
    # What decoding reads starts at 0: the first distribution is the language model's, bit for bit.
    assert not heads.advantage(states).any()


@pytest.mark.parametrize(("kind", "num_q"), [("linear", 1), ("mlp", 1), ("mlp", 2)])
def test_heads_that_need_no_such_start_begin_at_zero(kind: Any, num_q: int) -> None:
    for q in said(ILQLHeads(8, 5, num_q=num_q, kind=kind).q_heads, torch.randn(3, 8)):
        assert not q.any()


def test_the_start_is_a_function_of_the_seed() -> None:
    def weights(seed: int) -> list[Tensor]:
        model = tiny()
        return list(ILQLPolicy(model, tokenizer=TOKENIZER, q_head="linear", seed=seed).heads.parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(3), weights(3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(3), weights(4), strict=True))


def test_a_checkpoint_with_equal_heads_loads_as_it_is(tmp_path: Path) -> None:
    agent = trained("ilql", head="linear", steps=2)
    with torch.no_grad():
        agent.policy.heads.q_heads[1].load_state_dict(agent.policy.heads.q_heads[0].state_dict())
    agent.save(tmp_path / "saved")
    loaded = ILQL.load(tmp_path / "saved", dataset=DATA, tokenizer=TOKENIZER)
    saved = dict(agent.policy.heads.named_parameters())
    for name, parameter in loaded.policy.heads.named_parameters():
        assert torch.equal(parameter, saved[name])


def test_the_heads_of_a_reward_model_differ_after_training() -> None:
    # The hardest case: copies of a trained head, which only the resampled data of each tell apart.
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    cls = get_agent("reward-model")
    words = ["a", "b", "ab", "ba", "cd", "dc", "abc", "bcd"]
    rows = [{"prompt": "a", "chosen": one, "rejected": two} for one, two in permutations(words, 2)][:24]
    agent = cls(
        LlamaForSequenceClassification(config),
        dataset=rows,
        tokenizer=TOKENIZER,
        config=cls.config_class(steps=6, batch_size=8, learning_rate=1e-2, heads=3),
    )
    agent.learn()
    scores = agent.policy.score(agent.dataset.episodes)
    assert scores.shape[1] == 3
    assert min(gaps(list(scores.unbind(1)))) > 1e-3
