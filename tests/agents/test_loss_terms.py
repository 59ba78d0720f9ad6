"""Optional terms of losses, and the settings inside them, against plain forward passes in float64.

Tests of whole losses compare two ways through the same agent. They do not see a term that both ways forget or
scale wrongly.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.agents import make, rollout
from textenv.agents.data.batch import TrainingBatch, rows_of_step
from textenv.agents.online_dpo import OnlineDPO
from textenv.agents.rft import RFT
from textenv.episodes.batch import EpisodeBatch

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
    agent.kl_loss.coef = 0.0
    without = float(agent.loss(batch, agent.totals(batch))[0].detach())
    difference = (reference - chosen(log_softmax(agent, batch), batch))[batch.mask]
    k3 = (difference.exp() - 1 - difference).mean()
    assert float(k3) > 1e-3
    assert whole - without == pytest.approx(0.3 * float(k3), rel=1e-6)


def test_the_kl_in_the_loss_is_aggregated_like_the_policys_loss() -> None:
    agent: Any = make("grpo", policy_kwargs=DOUBLE, kl_coef=0.3)
    batch = rollout(agent)
    reference = chosen(log_softmax(agent, batch), batch)
    move(agent)
    difference = torch.where(batch.mask, reference - chosen(log_softmax(agent, batch), batch), 0.0)
    k3 = (difference.exp() - 1 - difference).sum(-1) / batch.mask.sum(-1)
    loss, stats = agent.loss(batch, agent.totals(batch))
    assert float(stats["policy/kl_loss"]) == pytest.approx(float(k3.mean()), rel=1e-6)
    assert float(loss.detach() - stats["policy/loss"]) == pytest.approx(0.3 * float(k3.mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("ppo", {"clip_range": 0.05, "clip_range_high": 0.3, "dual_clip": 1.2, "value_coef": 0.0}),
        ("reinforce++", {"clip_range": 0.05, "ratio_level": "sequence"}),
        ("grpo", {"clip_range": 0.05, "aggregation": "dr_grpo"}),
        ("rloo", {"clip_range": 0.05, "dual_clip": 1.2, "aggregation": "sequence-mean"}),
    ],
)
def test_the_clipped_surrogate_heeds_every_setting(case: str, settings: dict[str, Any]) -> None:
    agent: Any = make(case, policy_kwargs=DOUBLE, kl_coef=0.0, epochs=2, **settings)
    batch = rollout(agent)
    old, mask = chosen(log_softmax(agent, batch), batch), batch.mask
    move(agent, 0.4)
    generator = torch.Generator().manual_seed(2)
    advantages = torch.randn(mask.shape, generator=generator, dtype=torch.float64) * mask
    batch.tensors["advantages"] = advantages
    difference = torch.where(mask, chosen(log_softmax(agent, batch), batch) - old, 0.0)
    if settings.get("ratio_level") == "sequence":
        difference = (difference.sum(-1) / mask.sum(-1)).unsqueeze(-1) * mask
    ratio, high = difference.exp(), settings.get("clip_range_high", 0.05)
    clipped = -advantages * ratio.clamp(0.95, 1 + high)
    expected = torch.maximum(-advantages * ratio, clipped)
    if "dual_clip" in settings:
        bounded = torch.minimum(expected, -1.2 * advantages)
        expected = torch.where(advantages < 0, bounded, expected)
        assert bool((ratio[advantages < 0] > 1.2).any() and (ratio[advantages > 0] < 1.2).any())
    if settings.get("aggregation") == "sequence-mean":
        whole = (expected.sum(-1) / mask.sum(-1)).mean()
    elif settings.get("aggregation") == "dr_grpo":
        whole = expected.sum() / (len(batch) * agent.envs.unwrapped.max_new_tokens)
    else:
        whole = expected[mask].mean()
    _, stats = agent.loss(batch, agent.totals(batch))
    assert float(stats["policy/loss"]) == pytest.approx(float(whole), rel=1e-6)
    beyond = (clipped > -advantages * ratio)[mask].double().mean()
    assert 0.0 < float(beyond) < 1.0
    assert float(stats["policy/clip_fraction"]) == pytest.approx(float(beyond))
    k3 = (ratio - 1 - difference)[mask].mean()
    assert float(stats["policy/approx_kl"]) == pytest.approx(float(k3), rel=1e-6)
    assert float(stats["ratio"]) == pytest.approx(float(ratio[mask].mean()), rel=1e-6)


@pytest.mark.parametrize("clip_range", [0.01, None])
def test_the_value_loss_is_added_by_its_coefficient(clip_range: float | None) -> None:
    agent: Any = make(
        "ppo", policy_kwargs=DOUBLE, value_coef=0.3, value_clip_range=clip_range, kl_coef=0.0, epochs=2
    )
    batch = rollout(agent)
    with torch.no_grad():
        for parameter in agent.policy.value_head.parameters():
            parameter += 0.3
    agent.policy.invalidate()
    values, old = agent.policy(batch.episodes, values=True).values.detach(), batch["old_values"]
    errors = (values - batch["returns"]).square()
    if clip_range is not None:
        clipped = old + (values - old).clamp(-clip_range, clip_range) - batch["returns"]
        assert 0.0 < float((clipped.square() > errors)[batch.mask].double().mean()) < 1.0
        errors = torch.maximum(errors, clipped.square())
    expected = 0.5 * float(errors[batch.mask].mean())
    loss, stats = agent.loss(batch, agent.totals(batch))
    assert float(stats["value/loss"]) == pytest.approx(expected, rel=1e-6)
    assert float(loss.detach() - stats["policy/loss"]) == pytest.approx(0.3 * expected, rel=1e-6)


TEXT = EpisodeBatch.from_ids([[0], [1], [2], [3]], [[1, 2, 3, 2], [3], [0, 1], [2, 2, 1]])


def test_the_pretraining_loss_is_the_token_mean_over_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    agent: Any = make(
        "reinforce",
        policy_kwargs=DOUBLE,
        dataset=TEXT,
        ptx_coef=0.3,
        ptx_batch_size=3,
        seed=1,
        kl_coef=0.0,
    )
    batch = rollout(agent)
    rows = rows_of_step(4, 0, size=3, seed=1)
    assert set(rows.tolist()) != set(rows_of_step(4, 0, size=3, seed=0).tolist())
    text = TrainingBatch(TEXT.select(rows))
    likelihood = torch.where(text.mask, chosen(log_softmax(agent, text), text), 0.0).sum(-1)
    tokens = int(text.mask.sum())
    loss, stats = agent.loss(batch, agent.totals(batch))
    expected = -float(likelihood.sum()) / tokens
    assert float(stats["policy/ptx_loss"]) == pytest.approx(expected, rel=1e-9)
    assert float(loss.detach() - stats["policy/loss"]) == pytest.approx(0.3 * expected, rel=1e-6)
    # A process has its own rows of the step, and the tokens of all: the processes' losses add up.
    module = "textenv.agents.base.extra_losses.process_group"
    for rank, size, own in ((0, 2, [0, 2]), (1, 2, [1]), (3, 4, [])):
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.rank", lambda rank=rank: rank)
            patch.setattr(f"{module}.world_size", lambda size=size: size)
            found = float(agent.pretraining.at_step(0).detach())
        assert found == pytest.approx(-float(likelihood[own].sum()) / tokens, rel=1e-9)


@pytest.mark.parametrize("case", ["ppo", "reinforce"])
def test_statistics_hold_no_graph(case: str) -> None:
    agent: Any = make(case, dataset=TEXT, ptx_coef=0.3, entropy_coef=0.1, kl_coef=0.1, kl_placement="loss")
    batch = rollout(agent)
    loss, stats = agent.loss(batch, agent.totals(batch))
    assert loss.requires_grad
    assert {"policy/loss", "policy/kl_loss", "policy/entropy", "policy/ptx_loss"} <= stats.keys()
    assert [name for name, value in stats.items() if value.requires_grad] == []


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


@pytest.mark.parametrize("kind", ["sigmoid", "cdpo", "ipo"])
def test_online_dpo_by_beta_and_smoothing(kind: str) -> None:
    smoothing = 0.2 if kind == "cdpo" else 0.0
    agent: Any = make(
        "online-dpo",
        make("rloo").envs,
        policy_kwargs=DOUBLE,
        iterations=1,
        episodes_per_iteration=16,
        beta=0.7,
        loss=kind,
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
    if kind == "ipo":  # of log ratios averaged over the response
        first, second = (ratios / batch.mask.sum(-1)).view(2, -1)
        expected = (first - second - 1 / (2 * 0.7)).square()
    ranked = ~batch["tied"].view(2, -1)[0]
    assert int(ranked.sum()) > 0
    loss, stats = agent.loss(batch, agent.totals(batch))
    assert float(loss.detach()) == pytest.approx(float(expected[ranked].mean()), rel=1e-6)
    assert float(stats["rewards/margin"]) == pytest.approx(float(x[ranked].mean()), rel=1e-6)
    assert float(stats["rewards/chosen"]) == pytest.approx(0.7 * float(better[ranked].mean()), rel=1e-6)
    assert [name for name, value in stats.items() if value.requires_grad] == []


def test_the_likelihood_of_rft_has_the_denominator_of_the_whole_step() -> None:
    agent: Any = make(
        "rft",
        make("rloo").envs,
        policy_kwargs=DOUBLE,
        iterations=2,
        episodes_per_iteration=16,
        samples_per_prompt=4,
        improve_steps=3,
        epochs=2,
        minibatches=2,
    )
    assert isinstance(agent, RFT)
    assert agent.planned_steps() == 2 * 3 * 2 * 2
    agent.envs.unwrapped.bind(agent.policy)
    agent.iteration = 1
    episodes = agent.collect()
    batch = TrainingBatch(episodes)
    likelihood = torch.where(batch.mask, chosen(log_softmax(agent, batch), batch), 0.0).sum(-1)
    totals, found = agent.totals(batch), 0.0
    for part in (slice(0, 3), slice(3, 16)):
        loss, stats = agent.loss(TrainingBatch(episodes.select(part)), totals)
        found += float(loss.detach())
        assert not stats["sft/nll"].requires_grad
    assert found == pytest.approx(-float(likelihood.sum()) / int(batch.mask.sum()), rel=1e-9)


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
