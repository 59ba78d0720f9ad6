"""REINFORCE's baselines, ReMax among them, and REINFORCE++: hand-worked advantages, costs, mistakes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.agents import TOKENIZER, make, make_envs, rollout
from textenv.agents.base.callbacks import Callback
from textenv.agents.losses.masked import first_action_value
from textenv.agents.losses.running import RunningStd
from textenv.agents.reinforce import ReinforceConfig, acting_greedily
from textenv.agents.rollouts.factory import make_collector
from textenv.agents.settings.ray_rollouts import RayRollouts
from textenv.episodes.batch import EpisodeBatch

# Two episodes on prompts of one token: action tokens in columns 1-3 and in column 1.
REWARDS = torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 5.0, 0.0, 0.0]])


def two_episodes() -> EpisodeBatch:
    episodes = EpisodeBatch.from_ids([[0], [1]], [[1, 2, 4], [4]])
    episodes.rewards = REWARDS.clone()
    return episodes


def estimate(agent: Any, episodes: EpisodeBatch) -> tuple[list[list[float]], list[list[float]]]:
    batch = agent.advantages(episodes)
    return batch["advantages"].tolist(), batch["returns"].tolist()


def test_without_a_baseline_by_hand() -> None:
    advantages, returns = estimate(make("reinforce-none", gamma=0.5), two_episodes())
    # 1 + 0.5 * (0 + 0.5 * 2) = 1.5, then 1 and 2.
    assert advantages == returns == [[0.0, 1.5, 1.0, 2.0], [0.0, 5.0, 0.0, 0.0]]


def test_the_batch_baseline_by_hand() -> None:
    # Returns 3 and 5, mean 4.
    advantages, returns = estimate(make("reinforce"), two_episodes())
    assert returns == [[0.0, 3.0, 2.0, 2.0], [0.0, 5.0, 0.0, 0.0]]
    assert advantages == [[0.0, -1.0, -2.0, -2.0], [0.0, 1.0, 0.0, 0.0]]


def test_the_greedy_baseline_by_hand() -> None:
    agent: Any = make("remax", gamma=0.5)
    agent.greedy = EpisodeBatch.from_ids([[0], [1]], [[4], [2, 4]])
    agent.greedy.rewards = torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 4.0]])
    # Greedy returns from the first token on: 3, and 0.5 * 4 = 2.
    advantages, _ = estimate(agent, two_episodes())
    assert advantages == [[0.0, 1.5 - 3, 1.0 - 3, 2.0 - 3], [0.0, 5.0 - 2, 0.0, 0.0]]


def test_reinforce_plus_plus_by_hand() -> None:
    agent = make("reinforce++", whiten_advantages=False)
    # Return to go of the rewards of tokens, KL penalties among them; normalised over the batch's tokens.
    assert estimate(agent, two_episodes())[0] == [[0.0, 3.0, 2.0, 2.0], [0.0, 5.0, 0.0, 0.0]]
    batch = rollout(make("reinforce++"))
    own = batch["advantages"][batch.mask]
    assert float(own.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(own.var(correction=0)) == pytest.approx(1.0, abs=1e-4)


def test_the_value_at_the_first_action_token() -> None:
    mask = torch.tensor([[False, True, True], [False, False, True], [False, False, False]])
    assert first_action_value(torch.arange(9.0).view(3, 3), mask).tolist() == [1.0, 5.0, 0.0]


def test_the_greedy_episodes_are_the_likeliest_on_the_same_prompts() -> None:
    agent: Any = make("remax", envs=make_envs("reinforce", task="probe-copy"))
    batch = rollout(agent)
    sampled, greedy = batch.episodes, agent.greedy
    assert torch.equal(sampled.episode_id, greedy.episode_id)
    assert torch.equal(sampled.prompt_index, greedy.prompt_index)
    assert not torch.equal(sampled.input_ids[:, : greedy.input_ids.shape[1]], greedy.input_ids)
    assert agent.policy.decoding.greedy is False
    # Each of its tokens is the argmax of the policy; on equal prompts it is the same episode.
    logits = agent.policy.model(greedy.input_ids, attention_mask=greedy.attention_mask).logits
    likeliest = logits[:, :-1, : agent.policy.vocab_size].argmax(-1)
    assert bool((likeliest == greedy.input_ids[:, 1:])[greedy.action_mask[:, 1:]].all())
    expected = greedy.returns[:, None] * batch.mask
    assert torch.allclose(batch["returns"] - batch["advantages"], expected, atol=1e-6)


def test_greedy_episodes_are_paid_the_same_rewards_and_all_their_cost_is_counted() -> None:
    seen: list[int] = []

    def counting(completions: list[str], **_: Any) -> list[float]:
        seen.append(len(completions))
        return [float(len(text)) for text in completions]

    agent: Any = make("remax", envs=make_envs("reinforce", rewards=[counting]), iterations=2)
    row = agent.learn().history[-1]
    assert sum(seen) == 2 * (16 + 16) == agent.reward_calls == agent.episodes_seen
    assert row["episodes"] == row["reward_calls"] == 64
    assert list(agent.greedy.reward_terms) == ["counting", "kl", "raw/kl"]
    assert row["baseline/reward"] == pytest.approx(float(agent.greedy.returns.mean()))
    # Tokens: those of both kinds, of two iterations.
    played = agent.env_tokens
    plain: Any = make("reinforce", envs=make_envs("reinforce", rewards=[counting]), iterations=2)
    plain.learn()
    assert played > plain.env_tokens


def test_each_iteration_plays_new_episodes() -> None:
    agent = make("remax", kl_coef=0.0)
    first, second = rollout(agent), rollout(agent)
    assert first.episodes.episode_id.tolist() == list(range(16))
    assert second.episodes.episode_id.tolist() == list(range(16, 32))


PROMPTS = ["".join(letters) for letters in itertools.product("abcd", repeat=2)] + ["abc", "bcd", "cda", "dab"]


@pytest.mark.parametrize("case", ["remax", "reinforce"])
def test_every_prompt_is_sampled_once_an_epoch(case: str) -> None:
    # 20 prompts and 10 sampled episodes an iteration: two iterations sample each prompt once.
    seen: list[int] = []

    class Watch(Callback):
        def on_iteration(self, agent: Any, metrics: Any) -> None:
            seen.extend(agent.last_batch.episodes.prompt_index.tolist())

    envs = make_envs("reinforce", task=None, prompts=PROMPTS, tokenizer=TOKENIZER, max_new_tokens=4)
    agent: Any = make(case, envs, episodes_per_iteration=10, iterations=4)
    agent.callbacks.append(Watch())
    agent.learn()
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
    assert agent.counters()["next_ticket"] == 40
    assert agent.episodes_seen == (80 if case == "remax" else 40)


def test_a_checkpoint_without_a_place_in_the_stream_goes_on_where_its_run_would_have() -> None:
    agent: Any = make("remax", kl_coef=0.0)
    agent.learn()
    older = {name: value for name, value in agent.counters().items() if name != "next_ticket"}
    other: Any = make("remax", kl_coef=0.0)
    other.set_counters(older)
    assert older["episodes_seen"] == other.next_ticket == 64
    other.set_counters(agent.counters())
    assert other.next_ticket == 32


def test_adaptive_terms_learn_from_the_sampled_episodes_alone() -> None:
    agent: Any = make(
        "remax", envs=make_envs("reinforce", rewards=[["normalized", {"of": "length"}]]), kl_coef=0.0
    )
    agent.iteration = 1
    episodes = agent.collect()
    agent.score(episodes)
    plain: Any = make(
        "reinforce", envs=make_envs("reinforce", rewards=[["normalized", {"of": "length"}]]), kl_coef=0.0
    )
    plain.iteration = 1
    plain.score(plain.collect())
    assert agent.envs.term.state_dict() == plain.envs.term.state_dict()


def test_scores_of_greedy_episodes_are_shaped_like_the_others() -> None:
    agent: Any = make("remax", score_scale=True, score_clip=0.7, kl_coef=0.0)
    batch = rollout(agent)
    spread = RunningStd()
    spread.update(batch.episodes.returns)
    assert agent.score_std.state_dict() == spread.state_dict()  # the greedy ones were not counted
    baseline: Tensor = (agent.greedy.returns / spread.std).clamp(-0.7, 0.7)
    found = (batch["returns"] - batch["advantages"])[batch.mask]
    assert torch.allclose(found, (baseline[:, None] * batch.mask)[batch.mask], atol=1e-5)


def test_the_episodes_of_a_run_include_the_greedy_ones() -> None:
    config = ReinforceConfig(baseline="greedy", total_episodes=96, episodes_per_iteration=16)
    assert config.num_iterations == 3
    assert ReinforceConfig(total_episodes=96, episodes_per_iteration=16).num_iterations == 6
    with pytest.raises(ValueError, match=r"total_episodes must be a multiple of 32, .* got 80"):
        ReinforceConfig(baseline="greedy", total_episodes=80, episodes_per_iteration=16)


def test_acting_greedily_ends_with_the_block_even_after_an_error() -> None:
    agent = make("remax")
    with pytest.raises(KeyError), acting_greedily(agent.policy):
        assert agent.policy.decoding.greedy
        raise KeyError
    assert not agent.policy.decoding.greedy


def test_actors_that_play_ahead_cannot_play_episodes_twice() -> None:
    agent: Any = make("remax")
    agent.collector = make_collector(RayRollouts(mode="async"))
    with pytest.raises(ValueError, match="generates each episode twice, rollouts in mode 'async' do it once"):
        agent.setup()
