"""What agents feed their losses with: scores, advantages, penalties and policies by their settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.agents import make, make_envs, rollout
from tests.helpers.models import TOKENIZER, tiny
from textenv.agents.evaluation.task_returns import kl_wrappers
from textenv.agents.grpo import GRPO, GRPOConfig
from textenv.agents.ilql import ILQL, ILQLConfig
from textenv.agents.losses.advantages import ADVANTAGES, register_advantage
from textenv.agents.rft import RFT, RFTConfig
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.kl import KLPenalty
from textenv.rewards.wrappers import wrap_reward

DOUBLE = {"dtype": torch.float64}


def scatter(agent: Any) -> None:
    """Change the weights, so that the policy differs from its reference."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in agent.policy.model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    agent.policy.invalidate()


# -- scores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "limit"), [(True, None), (False, 0.3), (True, 0.3)])
def test_scores_are_scaled_and_clipped_and_the_kl_is_left_alone(scale: bool, limit: float | None) -> None:
    agent: Any = make("ppo", score_scale=scale, score_clip=limit, kl_coef=0.4, policy_kwargs=DOUBLE)
    agent.iteration = 1
    scatter(agent)
    episodes = agent.collect()
    agent.score(episodes)
    kl = episodes.reward_terms["kl"]
    assert float(kl.abs().max()) > 0.1
    # Scores on both sides of 0, so that both bounds of the clip count.
    shift = episodes.at_last_action(torch.full((16,), 0.5))
    episodes.reward_terms["probe-end"] = episodes.reward_terms["probe-end"] - shift
    episodes.rewards = episodes.rewards - shift
    scores = episodes.reward_terms["probe-end"].double().sum(-1)
    expected = scores / scores.std() if scale else scores
    expected = expected if limit is None else expected.clamp(-limit, limit)
    assert len(expected.unique()) > 1 and float(expected.min()) < 0 < float(expected.max())
    shaped = agent.shaped_rewards(episodes)
    assert torch.allclose((shaped - kl).double().sum(-1), expected, rtol=1e-5, atol=1e-5)
    before = episodes.action_mask & ~episodes.at_last_action(torch.ones(16)).bool()
    assert torch.allclose(shaped[before], kl[before], rtol=1e-5, atol=1e-5)
    assert agent.score_std.count == (16 if scale else 0)
    assert torch.allclose(agent.shaped_task_returns(episodes), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(agent.shaped_rewards(episodes, update=False), shaped)
    assert agent.score_std.count == (16 if scale else 0)


def test_rewards_without_spread_are_not_scaled() -> None:
    agent: Any = make("ppo", scale_rewards=True, whiten_advantages=False)
    episodes = agent.collect()  # without rewards; a new value head gives 0
    episodes.rewards = torch.zeros_like(episodes.rewards)
    batch = agent.advantages(episodes)
    assert not batch["advantages"].any() and not batch["returns"].any()


def test_whitening_heeds_its_floor() -> None:
    wide: Any = make("reinforce++", whiten_min_std=100.0)
    batch = rollout(wide)
    raw = batch["returns"]
    centred = (raw - raw[batch.mask].mean()) / 100.0
    assert torch.allclose(batch["advantages"][batch.mask], centred[batch.mask], rtol=1e-4)


# -- the estimator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["ppo", "reinforce++", "grpo"])
def test_an_estimator_is_given_all_that_there_is(case: str) -> None:
    given: dict[str, Any] = {}

    @register_advantage("spy")
    def spy(rewards: Tensor, mask: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        given.update(options)
        return rewards, rewards

    try:
        more = {"gae_lambda": 0.25, "bootstrap_truncated": True} if case == "ppo" else {}
        agent: Any = make(case, advantage="spy", whiten_advantages=False, gamma=0.5, score_clip=0.5, **more)
        if case == "ppo":
            torch.nn.init.normal_(agent.policy.value_head.projection.last.weight)
        batch = rollout(agent)
    finally:
        del ADVANTAGES["spy"]
    episodes = batch.episodes
    groups = episodes.episode_id // 4 if case == "grpo" else episodes.prompt_index
    assert given["gamma"] == 0.5
    assert torch.equal(given["groups"], groups)
    assert torch.equal(given["scores"], episodes.reward_terms["probe-end"].double().sum(-1).clamp(-0.5, 0.5))
    if case != "ppo":
        assert given["values"] is None and "gae_lambda" not in given
        return
    assert given["gae_lambda"] == 0.25
    assert torch.equal(given["values"], batch["old_values"]) and bool(given["values"].any())
    cut = episodes.truncated
    assert bool(cut.any()) and not bool(cut.all())
    assert bool(given["final_values"][cut].all()) and not bool(given["final_values"][~cut].any())


def test_no_more_episodes_of_a_prompt_than_one_are_evaluated() -> None:
    for agent, config in ((RFT, RFTConfig()), (GRPO, GRPOConfig(samples_per_prompt=4))):
        size = config.samples_per_prompt
        assert agent.group_size(config) == size and size > 1
        assert agent.group_size(config, evaluation=True) == 1


# -- what is made by settings --------------------------------------------------------------------------------


def test_there_is_one_kl_penalty_and_it_has_the_settings() -> None:
    own: Any = make("ppo", kl_coef=0.3, kl_controller="adaptive", kl_target=2.0, kl_horizon=77)
    (wrapper,) = kl_wrappers(own.envs)
    term = wrapper.term
    assert (term.coef, term.controller, term.target, term.horizon) == (0.3, "adaptive", 2.0, 77)
    assert own.reference is not None and own.kl_loss is None
    for coefficient in (0.05, 0.0):  # the environment's penalty stays the only one
        other: Any = make("ppo", wrap_reward(make_envs("ppo"), KLPenalty(0.2)), kl_coef=coefficient)
        (wrapper,) = kl_wrappers(other.envs)
        assert wrapper.term.coef == 0.2 and other.reference is not None
    none: Any = make("ppo", kl_coef=0.0)
    assert kl_wrappers(none.envs) == [] and none.reference is None
    placed: Any = make("ppo", kl_coef=0.3, kl_placement="loss")
    assert kl_wrappers(placed.envs) == [] and placed.kl_loss.coef == 0.3


@pytest.mark.parametrize("case", ["ppo", "nlpo"])
def test_the_policy_is_made_by_the_settings(case: str) -> None:
    more = {"mask_top_p": 0.7, "mask_min_tokens": 3} if case == "nlpo" else {}
    agent: Any = make(case, seed=3, value_head="mlp", value_model="separate", **more)
    policy = agent.policy
    assert (policy.seed, policy.head_kind) == (3, "mlp") and policy.critic is not None
    assert policy.tokenizer is agent.tokenizer
    if case == "nlpo":
        assert (policy.nucleus.top_p, policy.nucleus.min_tokens) == (0.7, 3)
    shared: Any = make(case)
    assert (shared.policy.head_kind, shared.policy.critic) == ("linear", None)


def test_ilqls_policy_is_made_by_the_settings() -> None:
    tokenizer = TOKENIZER
    data = EpisodeBatch.from_ids([[0], [1]], [[1, 2], [3]], rewards=[1.0, 0.0])
    agent = ILQL(
        tiny(),
        dataset=data,
        tokenizer=tokenizer,
        policy_kwargs=DOUBLE,
        config=ILQLConfig(num_q=3, head="linear", decode_beta=2.5, decode_top_k=3, seed=4, cql_coef=0.5),
    )
    policy = agent.policy
    assert (policy.heads.num_q, policy.heads.kind, policy.beta, policy.seed) == (3, "linear", 2.5, 4)
    assert policy.decoding.top_k == 3 and policy.tokenizer is tokenizer
    batch = agent.batch(torch.arange(2))
    loss, stats = agent.loss(batch, agent.totals(batch))
    assert loss.dtype == torch.float64 and not any(value.requires_grad for value in stats.values())
    # Calling the policy gives what is asked for, and of the language model alone.
    with torch.no_grad():
        asked = policy(data, entropy=True, hidden=True)
    assert asked.entropy is not None and asked.hidden is not None and asked.values is None
    logits = policy.model(data.input_ids, attention_mask=data.attention_mask).logits[:, :-1]
    log_p = logits[..., : policy.vocab_size].log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    assert torch.allclose(asked.entropy[:, 1:][data.action_mask[:, 1:]], entropy[data.action_mask[:, 1:]])


# -- metrics and the end of an iteration ---------------------------------------------------------------------


def test_metrics_of_the_rollout_by_hand() -> None:
    agent: Any = make("ppo", policy_kwargs=DOUBLE, kl_coef=0.1, whiten_advantages=False)
    scatter(agent)
    torch.nn.init.normal_(agent.policy.value_head.projection.last.weight)
    agent.policy.invalidate()
    batch = rollout(agent)
    row, mask = agent.rollout_metrics(batch), batch.mask
    log_probs, values, returns = (batch[name] for name in ("old_log_probs", "old_values", "returns"))
    assert row["objective/entropy"] == pytest.approx(-float(log_probs[mask].mean()))
    kl = float((log_probs - batch["ref_log_probs"])[mask].sum())
    assert abs(kl) > 0.1
    assert row["objective/kl"] == pytest.approx(kl / 16)
    assert row["objective/kl_per_token"] == pytest.approx(kl / int(mask.sum()))
    left = (returns - values)[mask].double().var(correction=0) / returns[mask].double().var(correction=0)
    assert row["value/explained_variance"] == pytest.approx(1 - float(left), rel=1e-5)
    assert row["objective/kl_coef"] == 0.1


def test_the_spread_of_groups_is_the_mean_of_their_sample_deviations() -> None:
    agent: Any = make("grpo")
    batch = rollout(agent)
    scores = batch.episodes.returns.double().view(-1, 4)
    row = agent.rollout_metrics(batch)
    assert (
        row["group/std"] == pytest.approx(float(scores.std(dim=1).mean()), rel=1e-6) and row["group/std"] > 0
    )
    assert row["group/flat"] == pytest.approx(float((scores.std(dim=1) == 0).double().mean()))


def test_passes_end_beyond_the_kl_and_not_at_it() -> None:
    agent: Any = make("ppo", stop_at_kl=0.5, epochs=2)
    assert not agent.should_stop_early({"policy/approx_kl": 0.5})
    assert agent.should_stop_early({"policy/approx_kl": 0.5001})
    assert not make("ppo").should_stop_early({"policy/approx_kl": 1e9})


def test_without_a_reference_nlpo_makes_no_pass_for_the_kl() -> None:
    assert "unmasked_log_probs" not in rollout(make("nlpo", kl_coef=0.0)).tensors
    assert "unmasked_log_probs" in rollout(make("nlpo", kl_coef=0.1)).tensors
