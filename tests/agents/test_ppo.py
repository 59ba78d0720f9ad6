"""PPO: what its update computes, each mistake that peers made with it, and every option."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import agents
from tests.helpers.agents import equal, make_envs, rollout, weights
from tests.helpers.models import tiny
from tests.helpers.numeric_helpers import relative_error
from textenv.agents.losses.running import RunningStd
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.ppo import PPO, PPOConfig
from textenv.episodes.batch import EpisodeBatch
from textenv.rewards.term import RewardTerm
from textenv.scoring import RewardError
from textenv.tasks.letters import letter_tokenizer

make = partial(agents.make, "ppo", epochs=2, minibatches=2)


def stir(agent: PPO) -> None:
    """Give the critic's head, which starts at zero, some weights."""
    critic = agent.policy.critic
    head: Any = agent.policy.value_head if critic is None else critic.value_head
    torch.nn.init.normal_(head.projection.last.weight, generator=torch.Generator().manual_seed(3))


# -- the update ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_the_ratio_of_the_first_step_is_exactly_one(value_model: Any) -> None:
    agent = make(value_model=value_model, epochs=1, minibatches=1)
    stats = agent.optimizer_step(rollout(agent))
    assert stats["ratio"] == 1.0
    assert stats["policy/approx_kl"] == 0.0
    assert stats["policy/clip_fraction"] == 0.0


@pytest.mark.parametrize("value_model", ["shared", "separate"])
@pytest.mark.parametrize("kl_placement", ["reward", "loss"])
def test_the_pass_for_the_old_log_probs_serves_the_first_step(
    value_model: Any, kl_placement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: dict[str, int] = {}
    ends: dict[str, list[Tensor]] = {}
    for name in ("served", "anew"):
        agent = make(value_model=value_model, kl_placement=kl_placement, epochs=3, minibatches=1)
        if name == "anew":
            monkeypatch.setattr(agent.policy, "expect_step", lambda episodes: None)
        once = agent.policy._pass
        passes[name] = 0

        def counted(*args: Any, name: str = name, once: Any = once, **kwargs: Any) -> Any:
            passes[name] += 1
            return once(*args, **kwargs)

        monkeypatch.setattr(agent.policy, "_pass", counted)
        agent.learn()
        ends[name] = weights(agent)
    assert passes["anew"] - passes["served"] == 2  # one an iteration
    assert equal(ends["served"], ends["anew"])


def test_the_gradient_is_clipped_by_its_norm() -> None:
    moved = []
    for limit in (None, 1e-6):
        agent = make(max_grad_norm=limit, adam_eps=1.0, kl_coef=0.0)
        before = weights(agent)
        norm = agent.optimizer_step(rollout(agent))["grad_norm"]
        assert norm > 1e-3
        moved.append(max(float((a - b).abs().max()) for a, b in zip(before, weights(agent), strict=True)))
    assert moved[1] < 1e-3 * moved[0]


def test_rewards_and_advantages_lie_on_own_tokens() -> None:
    agent = make(envs=make_envs(task="probe-copy"), whiten_advantages=False, kl_coef=0.0, gae_lambda=1.0)
    batch = rollout(agent)
    episodes = batch.episodes
    paid = episodes.rewards != 0
    assert paid.any()
    assert bool((paid.nonzero()[:, 1] == episodes.last_action[paid.any(-1)]).all())
    # With lambda 1, gamma 1 and a critic that is still zero, the advantage is the return.
    assert torch.allclose(batch["advantages"], episodes.returns.unsqueeze(-1) * batch.mask)
    assert not batch["returns"][~batch.mask].any()


def test_advantages_are_white_over_own_tokens() -> None:
    agent = make()
    batch = rollout(agent)
    own = batch["advantages"][batch.mask]
    assert float(own.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(own.var(correction=0)) == pytest.approx(1.0, abs=1e-4)
    assert not batch["advantages"][~batch.mask].any()


def test_advantages_centred_by_prompt() -> None:
    agent = make(center_by_prompt=True, whiten_advantages=False, gae_lambda=1.0, kl_coef=0.0)
    batch = rollout(agent)
    prompts = batch.episodes.prompt_index
    assert len(prompts.unique()) == 4
    for prompt in prompts.unique():
        rows = prompts == prompt
        returns = (batch.episodes.returns.unsqueeze(-1) * batch.mask)[rows]
        own = batch.mask[rows]
        expected = returns[own] - returns[own].mean()
        assert torch.allclose(batch["advantages"][rows][own], expected, atol=1e-6)


def test_eos_is_trained_although_it_is_the_padding() -> None:
    tokenizer = letter_tokenizer("abcd")
    tokenizer.pad_token = tokenizer.eos_token
    envs = make_envs(
        task=None,
        prompts=["a", "b", "c", "d"],
        tokenizer=tokenizer,
        max_new_tokens=4,
        rewards=[lambda completions, **_: [float(len(text) == 0) for text in completions]],
    )
    agent = make(envs, tiny(tokenizer, positions=16), kl_coef=0.0)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    prompt = EpisodeBatch.from_ids([[0]], [[tokenizer.eos_token_id]])
    before = float(agent.policy.log_prob(prompt).sum().exp())
    agent.config = agent.config.replace(iterations=12)
    agent.learn()
    assert float(agent.policy.log_prob(prompt).sum().exp()) > max(0.5, 2 * before)


# -- KL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_kl_is_exactly_zero_at_step_0(placement: Any) -> None:
    agent = make(iterations=2, kl_placement=placement)
    rows = agent.learn().history
    assert rows[0]["objective/kl"] == 0.0
    assert rows[1]["objective/kl"] != 0.0


def test_kl_as_reward_is_paid_per_token() -> None:
    agent = make(kl_coef=0.5, iterations=1)
    agent.learn()
    episodes = agent.collect()
    agent.score(episodes)
    kl = agent.policy.log_prob(episodes) - agent.policy.reference().log_prob(episodes)
    assert torch.allclose(episodes.reward_terms["kl"], -0.5 * kl, atol=1e-5)
    assert torch.allclose(
        episodes.rewards, episodes.reward_terms["kl"] + episodes.reward_terms["probe-end"], atol=1e-5
    )
    row = agent.rollout_metrics(agent.advantages(episodes))
    assert row["objective/kl"] == pytest.approx(float(kl.sum(-1).mean()), abs=1e-5)
    assert row["objective/score"] == pytest.approx(
        float(episodes.reward_terms["probe-end"].sum(-1).mean()), abs=1e-6
    )
    assert row["objective/reward"] < row["objective/score"]


def test_kl_in_the_loss_leaves_the_reward_alone_and_pulls_back() -> None:
    agent = make(kl_coef=0.5, kl_placement="loss", iterations=1)
    agent.learn()
    episodes = agent.collect()
    agent.score(episodes)
    assert list(episodes.reward_terms) == ["probe-end"]
    batch = agent.advantages(episodes)
    batch.tensors["advantages"] = torch.zeros_like(batch["advantages"])
    agent.config = agent.config.replace(value_coef=0.0)
    before = agent.policy.log_prob(episodes) - batch["ref_log_probs"]
    loss, stats = agent.loss(batch, agent.totals(batch))
    d = torch.where(batch.mask, batch["ref_log_probs"] - batch["old_log_probs"], 0.0)
    k3 = float((d.exp() - 1 - d).sum() / batch.mask.sum())
    assert float(stats["policy/kl_loss"]) == pytest.approx(k3, rel=1e-3)
    assert loss.item() == pytest.approx(0.5 * k3, rel=1e-3)
    agent.optimizer.state.clear()
    agent.optimizer.param_groups[0]["lr"] = 1e-3
    for _ in range(20):
        agent.optimizer_step(batch)
    after = agent.policy.log_prob(episodes) - batch["ref_log_probs"]
    assert float(after.abs().sum()) < 0.7 * float(before.abs().sum())


def test_the_adaptive_controller_raises_the_coefficient_when_the_kl_is_above_its_target() -> None:
    agent = make(kl_controller="adaptive", kl_target=1e-4, kl_horizon=100, iterations=3)
    rows = agent.learn().history
    coefficients = [row["objective/kl_coef"] for row in rows]
    # By a factor 1 + 0.2 n / horizon at most (Ziegler et al. 2019); KL was 0 in the first iteration.
    assert coefficients[0] == pytest.approx(0.05 * (1 - 0.2 * 16 / 100))
    assert coefficients[1] == pytest.approx(coefficients[0] * (1 + 0.2 * 16 / 100))


def test_no_kl_keeps_no_reference() -> None:
    agent = make(kl_coef=0.0)
    row = agent.learn().history[-1]
    assert agent.reference is None
    assert "objective/kl" not in row


# -- options -------------------------------------------------------------------------------------------------


def test_a_truncated_episode_bootstraps_from_the_last_value() -> None:
    found = {}
    for flag in (False, True):
        agent = make(
            bootstrap_truncated=flag, whiten_advantages=False, gae_lambda=1.0, kl_coef=0.0, value_head="mlp"
        )
        stir(agent)
        batch = rollout(agent)
        found[flag] = batch
    cut = found[True].episodes.truncated
    assert cut.any() and not cut.all()
    gained = (found[True]["returns"] - found[False]["returns"]) * found[True].mask
    final = agent.policy.evaluate(found[True].episodes, values=True, final_values=True).final_values
    assert final is not None
    expected = torch.where(cut, final, 0.0).unsqueeze(-1) * found[True].mask
    assert torch.allclose(gained, expected, atol=1e-5)


def test_scores_are_scaled_by_their_running_spread_and_clipped() -> None:
    agent = make(score_scale=True, score_clip=0.5, kl_coef=0.1, iterations=2)
    agent.learn()
    episodes = agent.collect()
    agent.score(episodes)
    spread = RunningStd()
    spread.load_state_dict(agent.score_std.state_dict())
    scores = episodes.reward_terms["probe-end"].sum(-1)
    spread.update(scores)
    shaped = agent.shaped_rewards(episodes) - episodes.reward_terms["kl"]
    assert torch.allclose(shaped.sum(-1), (scores / spread.std).clamp(-0.5, 0.5).float(), atol=1e-5)
    assert float(shaped.sum(-1).max()) == pytest.approx(0.5, abs=1e-5)


def test_scaled_rewards_have_unit_variance_and_zeros_stay_zeros() -> None:
    agent = make(scale_rewards=True, whiten_advantages=False, gae_lambda=1.0, kl_coef=0.0)
    batch = rollout(agent)
    paid = batch.episodes.rewards
    spread = paid[batch.mask].std(correction=0)
    # A shift would reward length: every token without a reward would get the same one.
    assert torch.allclose(batch["returns"], paid.sum(-1, keepdim=True) / spread * batch.mask, rtol=1e-4)


def test_training_stops_early_at_a_kl() -> None:
    free = make(kl_coef=0.0, epochs=4, iterations=1)
    free.learn()
    held = make(kl_coef=0.0, epochs=4, iterations=1, stop_at_kl=1e-6)
    row = held.learn().history[0]
    assert free.optimizer_steps == 8
    assert held.optimizer_steps == 2  # the first step's ratio is 1, the second is past the limit
    assert row["policy/stopped_early"] == 1.0


def test_the_pretraining_mixture_keeps_the_text_likely_and_counts_once_a_step() -> None:
    text = EpisodeBatch.from_ids([[0]] * 4, [[1, 2, 3, 2]] * 4)
    kept = {}
    mixture = {"dataset": text, "ptx_coef": 1.0, "ptx_batch_size": 2}
    for coefficient, given in ((0.0, {}), (1.0, mixture)):
        agent = make(iterations=6, kl_coef=0.0, **given)
        agent.learn()
        kept[coefficient] = float(agent.policy.log_prob(text)[0].sum())
    assert kept[1.0] > kept[0.0] + 1.0
    losses = []
    for budget in (10**6, 40):
        agent = make(dataset=text, ptx_coef=1.0, max_tokens_per_microbatch=10**6)
        batch = rollout(agent)
        agent.config = agent.config.replace(max_tokens_per_microbatch=budget)
        losses.append(agent.optimizer_step(batch)["policy/ptx_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(ValueError, match=r"ptx_coef=1.0 needs dataset="):
        make(ptx_coef=1.0)
    with pytest.raises(ValueError, match=r"^dataset has no effect with ptx_coef=0, .*; got 4 rows$"):
        make(dataset=text)


def test_a_separate_critic_learns_and_leaves_the_policy_alone() -> None:
    agent = make(value_model="separate", kl_coef=0.0)
    batch = rollout(agent)
    batch.tensors["advantages"] = torch.zeros_like(batch["advantages"])
    model = [p.detach().clone() for p in agent.policy.model.parameters()]
    errors = [agent.optimizer_step(batch)["value/loss"] for _ in range(40)]
    assert errors[-1] < 0.5 * errors[0]
    assert all(torch.equal(a, b) for a, b in zip(model, agent.policy.model.parameters(), strict=True))


def test_the_average_of_the_weights_is_evaluated_and_saved_and_training_goes_on_from_its_own(
    tmp_path: Path,
) -> None:
    agent = make(ema_decay=0.5, iterations=2, kl_coef=0.0)
    start = weights(agent)
    batch = rollout(agent)
    agent.optimizer_step(batch)
    first = weights(agent)
    agent.optimizer_step(batch)
    second = weights(agent)
    expected = [a * 0.25 + b * 0.25 + c * 0.5 for a, b, c in zip(start, first, second, strict=True)]
    with agent.averaged():
        assert relative_error(weights(agent), expected) < 1e-6
    assert equal(second, weights(agent))

    agent.save(tmp_path / "agent")
    saved = LanguagePolicy.load(tmp_path / "agent")
    saved_weights = [parameter for _, parameter in sorted(saved.named_parameters())]
    assert relative_error(saved_weights, expected) < 1e-6
    resumed = PPO.load(tmp_path / "agent", envs=make_envs())
    assert equal(second, weights(resumed))
    with resumed.averaged(), agent.averaged():
        assert equal(weights(resumed), weights(agent))
    # The averaged policy is the one that plays.
    played = agent.evaluate(make_envs(), 16)
    with agent.averaged():
        again = PPO.evaluate(make(model=agent.policy, ema_decay=None), make_envs(), 16)
    assert torch.equal(played.episodes.input_ids, again.episodes.input_ids)


def test_running_spread() -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 20, dtype=torch.float64)
    spread = RunningStd()
    assert spread.std == 1.0
    for part in values:
        spread.update(part)
    assert spread.std == pytest.approx(float(values.std()))


# -- runs ----------------------------------------------------------------------------------------------------


class _Broken(RewardTerm):
    """The reward of one episode is NaN."""

    name = "broken"

    def score(self, episodes: EpisodeBatch) -> Tensor:
        scores = torch.zeros(len(episodes))
        scores[3] = math.nan
        return scores


def test_a_nan_reward_stops_with_the_term_and_the_episodes(tmp_path: Path) -> None:
    agent = make(envs=make_envs(rewards=[_Broken()]), run_dir=tmp_path)
    before = weights(agent)
    with pytest.raises(RewardError, match="broken") as caught:
        agent.learn()
    assert any("iteration 1" in note for note in caught.value.__notes__)
    folder = tmp_path / "failures" / "iteration-000001"
    assert len(EpisodeBatch.load(folder / "episodes.jsonl")) == 16
    assert json.loads((folder / "failure.json").read_text())["term"] == "reward"
    assert equal(before, weights(agent))


def test_metric_names() -> None:
    row = make(entropy_coef=0.01).learn().history[0]
    expected = {
        "objective/kl",
        "objective/score",
        "objective/reward",
        "objective/entropy",
        "policy/approx_kl",
        "policy/clip_fraction",
        "policy/entropy",
        "policy/loss",
        "value/loss",
        "value/clip_fraction",
        "value/explained_variance",
        "ratio",
        "episode/length",
        "episode/eos_rate",
        "time/rollout",
        "time/score",
        "time/update",
        "throughput/rollout_tokens_s",
        "throughput/train_tokens_s",
    }
    assert expected <= row.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_range": 1.5}, "clip_range must be in"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
        ({"advantage": "gea"}, "unknown advantage 'gea'; known: gae, "),
        ({"dual_clip": 1.0}, "dual_clip must be > 1"),
        ({"value_model": "other"}, "value_model must be one of"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**settings)
