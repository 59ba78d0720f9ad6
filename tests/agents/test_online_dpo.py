"""Online DPO: which samples become pairs, what a step computes, and whole runs."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import agents
from tests.helpers.agents import rollout
from tests.helpers.models import TOKENIZER, tiny
from tests.helpers.numeric_helpers import relative_error
from textenv.agents.data.preferences import PairedBatch
from textenv.agents.online_dpo import OnlineDPO, OnlineDPOConfig, extremes
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.rewards.kl import KLPenalty
from textenv.rewards.wrappers import wrap_reward

make_envs = partial(agents.make_envs, "online-dpo")
make = partial(agents.make, "online-dpo", minibatches=2)


def gradients(agent: OnlineDPO, batch: PairedBatch, budget: int = 10**6) -> list[Tensor]:
    totals = agent.totals(batch)
    for part in batch.microbatches(budget):
        agent.loss(part, totals)[0].backward()
    found = [p.grad.clone() for p in agent.policy.parameters() if p.grad is not None]
    agent.policy.zero_grad(set_to_none=True)
    return found


# -- pairs ---------------------------------------------------------------------------------------------------


def test_extremes_by_hand() -> None:
    returns = torch.tensor([0.0, 2.0, 2.0, 1.0, 1.0, 1.0, 5.0, 4.0, 3.0])
    best, worst = extremes(returns, torch.arange(9).view(3, 3))
    assert best.tolist() == [1, 3, 6]
    assert worst.tolist() == [0, 5, 8]


@pytest.mark.parametrize("samples", [2, 4])
def test_a_pair_is_the_best_and_the_worst_sample_of_a_prompt(samples: int) -> None:
    agent = make(samples_per_prompt=samples)
    batch = rollout(agent)
    assert len(batch) == 16 // samples
    everything = agent.collected.episodes
    groups = everything.returns.view(-1, samples)
    both = batch.episodes.returns.view(2, -1)
    assert torch.equal(both[0], groups.amax(1)) and torch.equal(both[1], groups.amin(1))
    ids = batch.episodes.episode_id.view(2, -1)
    assert torch.equal(ids[0] // samples, ids[1] // samples)
    assert bool((ids[0] != ids[1]).all())
    prompts = batch.episodes.prompt_index.view(2, -1)
    assert torch.equal(prompts[0], prompts[1])
    assert torch.equal(batch["tied"], (both[0] == both[1]).repeat(2))
    theirs = agent.reference.log_prob(batch.episodes).sum(-1)
    assert torch.allclose(batch["reference"], theirs, atol=1e-5)


# -- the step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"), [("sigmoid", math.log(2)), ("hinge", 1.0), ("ipo", (1 / (2 * 0.1)) ** 2)]
)
def test_the_first_loss_is_that_of_no_difference(kind: Any, expected: float) -> None:
    agent = make(loss=kind, minibatches=1)
    stats = agent.optimizer_step(rollout(agent))
    assert stats["loss"] == pytest.approx(expected, rel=1e-5)
    assert stats["rewards/margin"] == pytest.approx(0.0, abs=1e-5)


def test_the_loss_by_hand() -> None:
    agent = make(minibatches=1)
    batch = rollout(agent)
    agent.optimizer_step(batch)  # now the policy is not the reference any more
    found = agent.loss(batch, agent.totals(batch))[0].detach()
    ours = agent.policy.log_prob(batch.episodes).sum(-1)
    theirs = agent.reference.log_prob(batch.episodes).sum(-1)
    chosen, rejected = (0.1 * (ours - theirs)).view(2, -1)
    ranked = ~batch["tied"].view(2, -1)[0]
    assert 0 < int(ranked.sum()) < len(batch)
    losses = -torch.log(torch.sigmoid(chosen - rejected))
    assert float(found) == pytest.approx(float(losses[ranked].mean()), rel=1e-5)
    assert not torch.allclose(losses[ranked].mean(), losses.mean(), rtol=1e-3)


def test_the_ipo_loss_and_the_implicit_rewards_by_hand() -> None:
    """IPO takes log ratios per token; the rewards are beta times the whole ones, over the pairs not tied."""
    agent = make(loss="ipo", beta=0.3, minibatches=1)
    batch = rollout(agent)
    agent.optimizer_step(batch)
    with torch.no_grad():
        loss, stats = agent.loss(batch, agent.totals(batch))
    counts = batch.mask.sum(-1)
    assert len(counts.unique()) > 1
    moved = agent.policy.log_prob(batch.episodes).sum(-1) - agent.reference.log_prob(batch.episodes).sum(-1)
    ranked = ~batch["tied"].view(2, -1)[0]
    chosen, rejected = (moved / counts).view(2, -1)[:, ranked]
    assert float(loss) == pytest.approx(float((chosen - rejected - 1 / 0.6).square().mean()), rel=1e-5)
    better, worse = (0.3 * moved).view(2, -1)[:, ranked]
    assert float(stats["rewards/chosen"]) == pytest.approx(float(better.mean()), rel=1e-4, abs=1e-7)
    assert float(stats["rewards/rejected"]) == pytest.approx(float(worse.mean()), rel=1e-4, abs=1e-7)
    assert float(stats["rewards/margin"]) == pytest.approx(float((better - worse).mean()), rel=1e-4)
    assert abs(float(stats["rewards/margin"])) > 1e-4
    assert float(stats["rewards/accuracy"]) == pytest.approx(float((better > worse).float().mean()))


def test_the_metrics_of_a_rollout_by_hand() -> None:
    agent = make(samples_per_prompt=4, minibatches=1)
    agent.optimizer_step(rollout(agent))
    batch = rollout(agent)
    played = agent.collected.episodes
    ours, theirs = agent.policy.log_prob(played), agent.reference.log_prob(played)
    row, kl = agent.rollout_metrics(batch), float((ours - theirs).sum())
    assert abs(kl) > 1e-3
    assert row["objective/kl"] == pytest.approx(kl / len(played), rel=1e-4)
    assert row["objective/kl_per_token"] == pytest.approx(kl / int(played.action_mask.sum()), rel=1e-4)
    assert row["objective/entropy"] == pytest.approx(-float(ours[played.action_mask].mean()), rel=1e-5)
    assert row["pairs/tied"] == pytest.approx(float(batch["tied"].float().mean()))


def test_a_kl_penalty_makes_no_preference() -> None:
    envs = wrap_reward(make_envs(samples_per_prompt=4), KLPenalty(0.5))
    agent = make(envs=envs, samples_per_prompt=4)
    agent.iteration = 1
    episodes = agent.collect()
    scores = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0] * 2)
    kl = -torch.arange(16.0) / 10
    agent.score(episodes)
    terms = {"paid": episodes.at_last_action(scores), "kl": episodes.at_last_action(kl)}
    episodes.reward_terms, episodes.rewards = terms, terms["paid"] + terms["kl"]
    batch = agent.advantages(episodes)
    assert batch["tied"].tolist() == [True, False, True, False] * 2
    assert batch.episodes.episode_id.tolist() == [0, 6, 8, 14, 3, 7, 11, 15]
    assert agent.rollout_metrics(batch)["pairs/gap"] == 0.5


def test_ties_have_no_gradient() -> None:
    agent = make()
    batch = rollout(agent)
    tied = batch["tied"][: len(batch)]
    ranked = batch.select((~tied).nonzero().squeeze(-1))
    assert 0 < len(ranked) < len(batch)
    assert relative_error(gradients(agent, batch), gradients(agent, ranked)) < 1e-5
    alone = batch.select(tied.nonzero().squeeze(-1))
    assert all(not grad.any() for grad in gradients(agent, alone))


def test_the_gradient_is_that_of_the_loss() -> None:
    model = LanguagePolicy(tiny(width=4, heads=1), dtype=torch.float64)
    model.double()
    agent = make(model=model)
    batch = rollout(agent)
    agent.optimizer_step(batch)
    totals = agent.totals(batch)
    parameter = agent.policy.model.transformer.ln_f.weight
    (exact,) = torch.autograd.grad(agent.loss(batch, totals)[0], parameter)
    for index in range(len(parameter)):
        ends = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                parameter[index] += shift
                ends.append(float(agent.loss(batch, totals)[0]))
                parameter[index] -= shift
        assert float(exact[index]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-9)


# -- runs ----------------------------------------------------------------------------------------------------


def test_the_kl_is_zero_at_first_and_metrics_are_of_all_samples() -> None:
    agent = make(samples_per_prompt=4, iterations=2)
    first, second = agent.learn().history
    assert first["objective/kl"] == 0.0 and first["objective/kl_per_token"] == 0.0
    assert second["objective/kl"] > 0.0
    assert second["objective/reward"] == pytest.approx(float(agent.collected.episodes.returns.mean()))
    assert first["objective/entropy"] == pytest.approx(math.log(len(TOKENIZER)), abs=0.2)
    expected = {
        "rewards/accuracy",
        "rewards/margin",
        "pairs/tied",
        "pairs/gap",
        "episode/length",
        "grad_norm",
    }
    assert expected <= first.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples_per_prompt": 1}, "samples_per_prompt must be >= 2, got 1"),
        ({"episodes_per_iteration": 15}, r"a multiple of samples_per_prompt \(2\), got 15"),
        ({"episodes_per_iteration": 8, "minibatches": 5}, "minibatches must be <= the 4 pairs"),
        ({"loss": "kto"}, "loss must be one of"),
        ({"label_smoothing": 0.1}, "label_smoothing has no effect with loss='sigmoid', only with one of"),
        ({"beta": 0.0}, "beta must be > 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnlineDPOConfig(**settings)


def test_an_environment_that_deals_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match=r"make the environment with samples_per_prompt=4 .*got 2"):
        make(make_envs(), samples_per_prompt=4)
