"""Agents whose baseline is the group: hand-worked advantages, flat groups, dynamic sampling, environments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import textenv
from tests.helpers.agents import TOKENIZER, make, make_envs, rollout, tiny, weights
from textenv.agents.evaluation.task_returns import task_returns
from textenv.agents.grpo import GRPOConfig
from textenv.agents.losses.advantages import get_advantage, group_moments, group_std
from textenv.agents.rloo import RLOOConfig
from textenv.episodes.batch import EpisodeBatch


def groups_of_three() -> EpisodeBatch:
    """Six episodes, ids 3 to 8: returns 1, 3, 8 on one prompt and 2, 2, 2 on the same one again."""
    episodes = EpisodeBatch.from_ids([[0]] * 6, [[1, 2, 4]] * 6)
    episodes.episode_id = torch.arange(3, 9)
    episodes.rewards = torch.zeros(6, 4)
    # R = score - beta * sum of k1: the KL penalties of the tokens are part of it.
    episodes.rewards[:, 3] = torch.tensor([1.5, 3.5, 8.0, 2.5, 2.5, 2.5])
    episodes.rewards[:, 1] = torch.tensor([-0.5, -0.5, 0.0, -0.5, -0.5, -0.5])
    return episodes


def advantages(case: str, **settings: Any) -> list[float]:
    agent: Any = make(case, make_envs("ppo", samples_per_prompt=3), episodes_per_iteration=6, **settings)
    episodes = groups_of_three()
    found = agent.advantages(episodes)["advantages"]
    assert not found[:, 0].any()
    assert torch.equal(found[:, 1], found[:, 2]) and torch.equal(found[:, 1], found[:, 3])
    return found[:, 1].tolist()


def test_rloo_by_hand() -> None:
    # 1 - (3 + 8) / 2, 3 - (1 + 8) / 2, 8 - (1 + 3) / 2.
    assert advantages("rloo") == [-4.5, -1.5, 6.0, 0.0, 0.0, 0.0]


def test_grpo_by_hand() -> None:
    # Mean 4, sample standard deviation sqrt((9 + 1 + 16) / 2).
    expected = [x / (13**0.5 + 1e-4) for x in (-3, -1, 4)]
    assert advantages("grpo") == pytest.approx([*expected, 0.0, 0.0, 0.0])


def with_a_kl_penalty() -> EpisodeBatch:
    """The same, with terms: scores 0.1, 0.3, 0.8 and three times 0.7, and a KL penalty that differs."""
    episodes = groups_of_three()
    scores, kl = torch.zeros(6, 4), torch.zeros(6, 4)
    scores[:, 3] = torch.tensor([0.1, 0.3, 0.8, 0.7, 0.7, 0.7])
    kl[:, 1] = torch.tensor([-0.01, -0.03, -0.02, -0.001, -0.0025, -0.0055])
    kl[:, 3] = torch.tensor([-0.01, -0.01, -0.01, -0.0033, -0.0033, -0.0033])
    episodes.reward_terms = {"score": scores, "kl": kl, "raw/kl": -20 * kl}
    episodes.rewards = scores + kl
    return episodes


def test_a_group_whose_scores_are_equal_is_flat_whatever_its_kl() -> None:
    agent: Any = make(
        "grpo", make_envs("ppo", samples_per_prompt=3), kl_placement="reward", episodes_per_iteration=6
    )
    episodes = with_a_kl_penalty()
    assert agent.flat(episodes).tolist() == [False] * 3 + [True] * 3
    std = group_std(task_returns(episodes, agent.envs), agent.groups(episodes))
    # Scores 0.1, 0.3, 0.8 around 0.4: sqrt((0.09 + 0.01 + 0.16) / 2).
    assert std.tolist() == pytest.approx([0.13**0.5] * 3 + [0.0] * 3)
    # Returns 0.08, 0.26, 0.77 around 0.37. In the flat group the KL's part keeps its size: it is not divided.
    found = agent.advantages(episodes)["advantages"]
    divisor = ((0.29**2 + 0.11**2 + 0.4**2) / 2) ** 0.5 + 1e-4
    expected = [-0.29 / divisor, -0.11 / divisor, 0.4 / divisor, 0.002, 0.0005, -0.0025]
    assert found[:, 1].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_scores_of_a_clip_are_judged_as_clipped() -> None:
    agent: Any = make(
        "grpo",
        make_envs("ppo", samples_per_prompt=3),
        kl_placement="reward",
        episodes_per_iteration=6,
        score_clip=0.1,
    )
    episodes = with_a_kl_penalty()
    assert agent.flat(episodes).tolist() == [True] * 6
    found = agent.advantages(episodes)["advantages"]
    assert float(found.abs().max()) < 0.02


@pytest.mark.parametrize("name", ["ppo", "reinforce++"])
def test_other_agents_give_the_estimator_their_scores_too(name: str) -> None:
    agent: Any = make(name, make_envs("ppo"), advantage="grpo", whiten_advantages=False)
    episodes = with_a_kl_penalty()
    episodes.prompt_index = torch.tensor([0, 0, 0, 1, 1, 1])
    found = agent.advantages(episodes)["advantages"]
    assert found[3:, 1].tolist() == pytest.approx([0.002, 0.0005, -0.0025], rel=1e-4)


def test_dynamic_sampling_does_not_take_the_kl_for_a_difference() -> None:
    agent: Any = make(
        "dapo",
        make_envs("grpo", rewards=[lambda completions, **_: [1.0] * len(completions)]),
        episodes_per_iteration=8,
        max_rollouts=3,
        kl_coef=0.5,
        kl_placement="reward",
    )
    with torch.no_grad():  # the policy leaves the reference, or the KL would be 0
        agent.policy.model.transformer.wte.weight.mul_(3.0)
    batch = rollout(agent)
    assert bool((batch.episodes.reward_terms["kl"] != 0).any())
    assert agent.episodes_seen == 24
    assert agent.rollout_metrics(batch)["group/flat"] == 1.0


def test_dr_grpo_leaves_the_division_out() -> None:
    assert GRPOConfig(aggregation="dr_grpo").estimator == "dr_grpo"
    assert GRPOConfig(aggregation="dapo").estimator == GRPOConfig().estimator == "grpo"
    assert GRPOConfig(aggregation="dr_grpo", advantage="grpo").estimator == "grpo"
    assert advantages("dr_grpo") == [-3.0, -1.0, 4.0, 0.0, 0.0, 0.0]


def test_the_losses_of_the_aggregations_by_hand() -> None:
    # At ratio 1 a token's loss is -A: lengths 2, 1 and A = 1, -1 over at most 4 tokens.
    for case, expected in (("grpo", 0.0), ("dapo", -1 / 3), ("dr_grpo", -1 / 8)):
        agent: Any = make(case, make_envs("grpo", max_new_tokens=4), kl_coef=0.0)
        batch = rollout(agent).select(torch.tensor([0, 1]))
        batch.episodes = EpisodeBatch.from_ids([[0], [1]], [[1, 4], [4]])
        mask = batch.mask
        with torch.no_grad():
            old = agent.policy(batch.episodes).log_probs
        batch.tensors = {"old_log_probs": old, "advantages": torch.tensor([[1.0], [-1.0]]) * mask}
        assert float(agent.loss(batch, agent.totals(batch))[0].detach()) == pytest.approx(expected, abs=1e-6)


def test_gspo_has_one_ratio_a_sequence() -> None:
    agent: Any = make("gspo", kl_coef=0.0, clip_range=0.2, clip_range_high=0.25)
    batch = rollout(agent)
    episodes = EpisodeBatch.from_ids([[0], [1]], [[1, 4], [4]])
    with torch.no_grad():
        new = agent.policy(episodes).log_probs
    # Log-ratios 0.4 and -0.2, mean 0.1; and 0.5, beyond the clip at 1.25.
    difference = torch.tensor([[0.0, 0.4, -0.2], [0.0, 0.5, 0.0]])
    advantages = torch.tensor([[2.0], [3.0]]) * episodes.action_mask
    batch.episodes = episodes
    batch.tensors = {"old_log_probs": new - difference, "advantages": advantages}
    loss, stats = agent.loss(batch, agent.totals(batch))
    assert loss.item() == pytest.approx(-(2 * torch.tensor(0.1).exp().item() + 3 * 1.25) / 2, rel=1e-5)
    assert float(stats["policy/clip_fraction"]) == pytest.approx(1 / 3)


def flat(completions: list[str], **_: Any) -> list[float]:
    return [0.1] * len(completions)


@pytest.mark.parametrize("case", ["rloo", "grpo", "dapo", "dr_grpo", "gspo"])
def test_flat_groups_give_no_gradient_and_no_nan(case: str) -> None:
    agent = make(case, make_envs("rloo", rewards=[flat]), kl_coef=0.0, minibatches=1)
    batch = rollout(agent)
    assert not batch["advantages"].any()
    before = weights(agent)
    stats = agent.optimizer_step(batch)
    assert stats["grad_norm"] == 0.0 and stats["loss"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, weights(agent), strict=True))
    row = agent.rollout_metrics(batch)
    assert row["group/flat"] == 1.0 and row["group/std"] == 0.0


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1, -1 / 3])
def test_equal_scores_are_equal_without_rounding(value: float) -> None:
    scores, groups = torch.full((7,), value), torch.zeros(7, dtype=torch.int64)
    above, sums, squares, counts = group_moments(scores, groups)
    assert not above.any() and not sums.any() and not squares.any()
    assert counts.tolist() == [7.0] * 7
    mask = torch.ones(7, 1, dtype=torch.bool)
    for name in ("rloo", "grpo", "dr_grpo"):
        assert not get_advantage(name)(scores[:, None], mask, groups=groups)[0].any()


def test_groups_are_those_that_were_dealt_together() -> None:
    # 4 prompts and 8 groups an iteration: a prompt that comes twice makes two groups, as in the papers.
    agent: Any = make("rloo", episodes_per_iteration=32, kl_coef=0.0)
    batch = rollout(agent)
    assert agent.groups(batch.episodes).tolist() == [row // 4 for row in range(32)]
    returns = batch.episodes.returns.view(8, 4)
    expected = returns - (returns.sum(-1, keepdim=True) - returns) / 3
    assert torch.allclose(batch["advantages"], expected.view(32, 1) * batch.mask, atol=1e-5)


# -- dynamic sampling ----------------------------------------------------------------------------------------


class _Scripted:
    """Reward 1 for the second episode of the named groups, 0 for all others."""

    def __init__(self, uneven: set[int]) -> None:
        self.uneven, self.calls = uneven, 0

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        first = self.calls // 4
        self.calls += len(completions)
        groups = range(first, first + len(completions) // 4)
        return [float(k == 1 and g in self.uneven) for g in groups for k in range(4)]


def played(uneven: set[int], max_rollouts: int = 3) -> Any:
    paying = _Scripted(uneven)

    def scripted(completions: list[str], **columns: Any) -> list[float]:
        return paying(completions, **columns)

    envs = make_envs("grpo", rewards=[scripted])
    agent: Any = make("dapo", envs, episodes_per_iteration=8, max_rollouts=max_rollouts)
    agent.batch_ = rollout(agent)
    return agent


def test_flat_groups_make_way_for_those_of_further_rollouts() -> None:
    # Two groups an iteration: one of use in the first rollout, none in the second, two in the third.
    agent = played({1, 4, 5})
    assert [int(t) // 4 for t in agent.batch_.episodes.episode_id] == [1] * 4 + [4] * 4
    assert agent.episodes_seen == agent.reward_calls == 24
    assert agent.rollout_metrics(agent.batch_)["group/flat"] == 0.0


def test_no_more_rollouts_than_needed_and_no_more_than_allowed() -> None:
    assert played({0, 1, 2}).episodes_seen == 8
    agent = played(set())
    assert agent.episodes_seen == 24
    assert [int(t) // 4 for t in agent.batch_.episodes.episode_id] == [0] * 4 + [1] * 4
    # One group of use in all: a flat one fills up.
    agent = played({3}, max_rollouts=2)
    assert [int(t) // 4 for t in agent.batch_.episodes.episode_id] == [0] * 4 + [3] * 4
    assert agent.update(agent.batch_)["ratio"] == pytest.approx(1.0, abs=0.2)


def test_what_adapts_learns_once_from_all_groups_played() -> None:
    """Reward terms, the scale of scores, and the KL coefficient, in the reward and in the loss."""

    def of_letters(completions: list[str], **_: Any) -> list[float]:
        return [float(text.startswith("a")) for text in completions]

    envs = make_envs("grpo", rewards=[of_letters, ["normalized", {"of": "length"}]])
    settings = {"max_rollouts": 3, "episodes_per_iteration": 8, "kl_coef": 0.1, "kl_controller": "adaptive"}
    agent: Any = make("dapo", envs, score_scale=True, kl_placement="reward", **settings)
    agent.flat = lambda episodes: torch.ones(len(episodes), dtype=torch.bool)
    batch = rollout(agent)
    assert len(batch) == 8 and len(agent.everything) == agent.episodes_seen == 24
    assert agent.envs.env.term.state_dict()["count"] == agent.score_std.count == 24
    scores = agent.everything.rewards - agent.everything.reward_terms["kl"]
    assert agent.score_std.mean == pytest.approx(float(scores.sum(-1).double().mean()))
    # No KL yet: the coefficient falls by 0.2 * 24 / 10,000.
    assert agent.envs.term.coef == pytest.approx(0.1 * (1 - 0.2 * 24 / 10_000), rel=1e-12)


def test_the_kl_in_the_loss_is_measured_over_all_groups_played() -> None:
    agent: Any = make("grpo", max_rollouts=2, episodes_per_iteration=8, kl_controller="adaptive")
    agent.flat = lambda episodes: torch.ones(len(episodes), dtype=torch.bool)
    agent.learn()
    batch = rollout(agent)
    everything = agent.everything
    kl = agent.policy.log_prob(everything) - agent.reference.log_prob(everything)
    kl = torch.where(everything.action_mask, kl, 0.0).sum(-1)
    found, episodes = agent.sequence_kl(batch)
    assert episodes == 16 and found == pytest.approx(float(kl.mean()), rel=1e-5)
    kept = torch.where(batch.mask, batch["old_log_probs"] - batch["ref_log_probs"], 0.0).sum(-1)
    assert float(kept.mean()) != pytest.approx(found, rel=1e-3)


def test_dynamic_sampling_says_its_length_in_iterations() -> None:
    with pytest.raises(ValueError, match="set iterations instead, got total_episodes=128, max_rollouts=2"):
        GRPOConfig(max_rollouts=2, total_episodes=128)


# -- environments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["rloo", "grpo"])
def test_an_environment_without_groups_is_refused(case: str) -> None:
    message = r"(RLOO|GRPO) needs 8 episodes of each prompt, .*samples_per_prompt=8 .*got 1"
    with pytest.raises(ValueError, match=message):
        make(case, make_envs("ppo"))
    with pytest.raises(ValueError, match=r"needs 6 episodes of each prompt, .*got 4"):
        make(case, make_envs("rloo"), samples_per_prompt=6, episodes_per_iteration=18)


def test_the_environment_says_how_large_a_group_is_unless_the_settings_do() -> None:
    agent: Any = make("rloo")
    assert agent.size == 4
    halves: Any = make("rloo", samples_per_prompt=2)
    assert halves.size == 2
    assert halves.groups(rollout(halves).episodes).tolist() == [row // 2 for row in range(16)]


def test_an_iteration_holds_whole_groups() -> None:
    message = r"episodes_per_iteration must be a multiple of samples_per_prompt \(4\), got 18"
    with pytest.raises(ValueError, match=message):
        make("rloo", episodes_per_iteration=18)
    with pytest.raises(ValueError, match=message):
        RLOOConfig(samples_per_prompt=4, episodes_per_iteration=18)
    with pytest.raises(ValueError, match="samples_per_prompt must be >= 2, got 1"):
        RLOOConfig(samples_per_prompt=1)


@pytest.mark.parametrize(("settings", "size"), [({}, 8), ({"samples_per_prompt": 4}, 4)])
def test_train_makes_an_environment_that_deals_groups(settings: dict[str, Any], size: int) -> None:
    def length(completions: list[str], **_: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    result = textenv.train(
        "rloo",
        tiny(),
        prompts=["a", "b", "c"],
        reward=length,
        tokenizer=TOKENIZER,
        env_kwargs={"max_new_tokens": 4},
        iterations=1,
        episodes_per_iteration=16,
        loggers=(),
        **settings,
    )
    agent: Any = result.agent
    assert agent.size == agent.envs.unwrapped.samples_per_prompt == size


def test_a_tensor_of_groups_needs_two_of_each() -> None:
    scores: Tensor = torch.zeros(3)
    with pytest.raises(ValueError, match="at least 2 episodes, got 1 for group 5"):
        group_moments(scores, torch.tensor([3, 5, 3]))
