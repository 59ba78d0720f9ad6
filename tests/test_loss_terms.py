"""Optional terms of losses, and the settings inside them, against plain forward passes in float64.

Tests of whole losses compare two ways through the same agent. They do not see a term that both ways forget or
scale wrongly.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from online_helpers import make, rollout
from torch import Tensor

from textenv.agents.batch import TrainingBatch
from textenv.agents.online_dpo import OnlineDPO
from textenv.agents.registry import make_agent
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.models import small_gpt2

DOUBLE = {"dtype": torch.float64}


def move(agent: Any, scale: float = 0.2) -> None:
    """Change the weights, so that new, old and reference policy differ."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in agent.policy.model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    agent.policy.invalidate()


def log_softmax(agent: Any, batch: TrainingBatch, temperature: float = 1.0) -> Tensor:
    """(B, L, V) log-probabilities of the token in each column; column 0 is NaN."""
    episodes = batch.episodes
    logits = agent.policy.model(episodes.input_ids, attention_mask=episodes.attention_mask).logits
    found = (logits[..., : agent.policy.vocab_size] / temperature).log_softmax(-1)
    return torch.cat([torch.full_like(found[:, :1], torch.nan), found[:, :-1]], dim=1).detach()


def chosen(log_probs: Tensor, batch: TrainingBatch) -> Tensor:
    """(B, L) log-probabilities of the batch's tokens."""
    return log_probs.gather(-1, batch.episodes.input_ids.unsqueeze(-1)).squeeze(-1)


def loss_without_and_with(case: str, term: dict[str, Any], **settings: Any) -> tuple[float, Any, Any]:
    """(what a term adds to the loss, the agent with it, its batch)."""
    found = []
    for options in ({}, term):
        agent: Any = make(case, policy_kwargs=DOUBLE, **settings, **options)
        batch = rollout(agent)
        move(agent)
        found.append(float(agent.loss(batch, agent.totals(batch))[0].detach()))
    return found[1] - found[0], agent, batch


@pytest.mark.parametrize("case", ["ppo", "a2c", "reinforce", "rloo"])
def test_the_entropy_bonus_lowers_the_loss_by_its_coefficient_times_the_mean_entropy(case: str) -> None:
    added, agent, batch = loss_without_and_with(case, {"entropy_coef": 0.7}, kl_coef=0.0)
    log_probs = log_softmax(agent, batch)
    entropy = -(log_probs.exp() * log_probs).sum(-1)[batch.mask].mean()
    assert float(entropy) > 0.1
    assert added == pytest.approx(-0.7 * float(entropy), rel=1e-9)
    _, stats = agent.loss(batch, agent.totals(batch))
    assert float(stats["policy/entropy"]) == pytest.approx(float(entropy), rel=1e-9)


def test_the_kl_in_the_loss_is_k3_to_the_reference_by_its_coefficient() -> None:
    shared = {"kl_placement": "loss", "kl_coef": 0.3}
    agent: Any = make("ppo", policy_kwargs=DOUBLE, **shared)
    batch = rollout(agent)
    reference = chosen(log_softmax(agent, batch), batch)
    move(agent)
    whole = float(agent.loss(batch, agent.totals(batch))[0].detach())
    agent.loss_kl_coef = 0.0
    without = float(agent.loss(batch, agent.totals(batch))[0].detach())
    difference = (reference - chosen(log_softmax(agent, batch), batch))[batch.mask]
    k3 = (difference.exp() - 1 - difference).mean()
    assert float(k3) > 1e-3
    assert whole - without == pytest.approx(0.3 * float(k3), rel=1e-6)


@pytest.mark.parametrize("case", ["reinforce-none", "reinforce++", "ppo", "a2c"])
def test_rewards_are_discounted_by_gamma(case: str) -> None:
    settings = {"whiten_advantages": False} if case in ("reinforce++", "ppo") else {}
    if case in ("ppo", "a2c"):  # with lambda 1 the return is the discounted sum of rewards
        settings["gae_lambda"] = 1.0
    agent: Any = make(case, policy_kwargs=DOUBLE, gamma=0.5, kl_coef=0.0, **settings)
    agent.iteration = 1
    episodes = agent.collect()
    agent.score(episodes)
    longest = int(episodes.response_lengths.argmax())
    n, start = int(episodes.response_lengths[longest]), int(episodes.prompt_lengths[longest])
    assert n >= 3
    episodes.rewards = episodes.at_last_action(torch.ones(len(episodes)))
    batch = agent.advantages(episodes)
    found = batch["returns"][longest, start : start + n].double()
    expected = 0.5 ** torch.arange(n - 1, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_online_dpo_scales_its_log_ratios_by_beta(smoothing: float) -> None:
    tokenizer = letter_tokenizer("abcd")
    agent: Any = make_agent(
        "online-dpo",
        small_gpt2(tokenizer, layers=1, width=8, heads=2, positions=32),
        envs=make("rloo").envs,
        policy_kwargs=DOUBLE,
        iterations=1,
        episodes_per_iteration=16,
        beta=0.7,
        loss="cdpo" if smoothing else "sigmoid",
        label_smoothing=smoothing,
    )
    assert isinstance(agent, OnlineDPO)
    batch = rollout(agent)
    start = chosen(log_softmax(agent, batch), batch)
    move(agent)
    ratios = torch.where(batch.mask, chosen(log_softmax(agent, batch), batch) - start, 0.0).sum(-1)
    better, worse = ratios.view(2, -1)
    x = 0.7 * (better - worse)
    log_sigmoid = torch.nn.functional.logsigmoid
    expected = -(1 - smoothing) * log_sigmoid(x) - smoothing * log_sigmoid(-x)
    ranked = ~batch["tied"].view(2, -1)[0]
    assert int(ranked.sum()) > 0
    loss, stats = agent.loss(batch, agent.totals(batch))
    assert float(loss.detach()) == pytest.approx(float(expected[ranked].mean()), rel=1e-6)
    assert float(stats["rewards/margin"]) == pytest.approx(float(x[ranked].mean()), rel=1e-6)


def test_nlpo_takes_the_nucleus_at_the_temperature() -> None:
    agent: Any = make("nlpo", policy_kwargs={**DOUBLE, "temperature": 0.5}, kl_coef=0.0, mask_top_p=0.6)
    batch = rollout(agent)
    mask = log_softmax(agent, batch, temperature=0.5)  # the mask policy is a copy of the start
    move(agent)
    policy = log_softmax(agent, batch, temperature=0.5)
    likeliest, order = mask.exp().sort(-1, descending=True)
    before = likeliest.cumsum(-1) - likeliest
    kept = torch.zeros_like(mask, dtype=torch.bool)
    kept.scatter_(-1, order, (before < 0.6) | (torch.arange(mask.shape[-1]) < 2))
    expected = chosen(policy.masked_fill(~kept, -torch.inf).log_softmax(-1), batch)
    with agent.policy.masked():
        found = agent.policy.log_prob(batch.episodes)
    assert 0 < int(kept[batch.mask].sum()) < kept[batch.mask].numel()
    torch.testing.assert_close(found[batch.mask], expected[batch.mask], rtol=1e-9, atol=1e-9)
    at_one = log_softmax(agent, batch)
    plain = agent.policy.log_prob(batch.episodes)[batch.mask]
    torch.testing.assert_close(plain, chosen(policy, batch)[batch.mask], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(plain, chosen(at_one, batch)[batch.mask], rtol=1e-2)
