"""ArCHer: values of turns, targets of the critics, sampled turns, the policy's loss, the replay buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

import textenv
from tests.helpers.agents import equal, weights
from tests.helpers.models import tiny
from tests.helpers.partners import TALKER, Guess, Repeat
from textenv.agents.archer import Archer, ArcherPolicy
from textenv.agents.data.replay import EpisodeBuffer
from textenv.agents.make import make_agent
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.rollouts.utterances import sample_turns, turn_states
from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.turns import turn_starts

SHORT: dict[str, Any] = {
    "episodes_per_iteration": 16,
    "iterations": 2,
    "critic_steps": 2,
    "critic_batch_size": 8,
    "actor_turns": 16,
    "learning_rate": 1e-2,
}


def make_envs(partner: Any = Guess, **changes: Any) -> Any:
    made = {"tokenizer": TALKER, "rewards": [], "max_turns": 4, "max_turn_tokens": 2, "partner": partner}
    return gym.make_vec("TextRLHF-v0", 8, **{**made, **changes})


def make(envs: Any = None, **options: Any) -> Any:
    settings = {**SHORT, "policy_kwargs": {"dtype": torch.float64}, **options}
    model = settings.pop("model", None) or tiny(TALKER, positions=64)
    return make_agent("archer", model, envs=make_envs() if envs is None else envs, **settings)


def with_random_critics(agent: Any) -> Any:
    """The agent with critics and target critics that differ from 0 and from each other."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for critic in (agent.policy.turn_critic, agent.policy.target_critic):
            for parameter in critic.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(noise, alpha=0.3)
    return agent


def filled(agent: Any) -> EpisodeBatch:
    """Play one iteration's episodes into the buffer."""
    agent.iteration = 1
    episodes: EpisodeBatch = agent.collect()
    agent.score(episodes)
    return episodes


def turns_of(episodes: EpisodeBatch, row: int) -> list[tuple[int, int]]:
    """First and last column of each turn."""
    mask = [*episodes.action_mask[row].tolist(), False]
    starts = [i for i in range(1, len(mask)) if mask[i] and not mask[i - 1]]
    return [(start, mask.index(False, start) - 1) for start in starts]


def plain_values(critic: Any, ids: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of the Q heads and the V heads after each token of a sequence."""
    hidden = critic.trunk.transformer(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return [head(hidden) for head in critic.q_heads], [head(hidden) for head in critic.v_heads]


@torch.no_grad()
def test_one_pass_values_all_turns() -> None:
    agent = with_random_critics(make())
    episodes = filled(agent)
    for found in (
        agent.policy.turn_critic(episodes),
        agent.policy.turn_critic.evaluate(episodes, max_tokens=20),
    ):
        for row in range(len(episodes)):
            length = int(episodes.lengths[row])
            q, v = plain_values(agent.policy.turn_critic, episodes.input_ids[row, :length].tolist())
            for start, end in turns_of(episodes, row):
                for i in range(2):
                    for column in range(start, end + 1):
                        assert float(found.q[i][row, column]) == pytest.approx(float(q[i][end]), abs=1e-9)
                        assert float(found.v[i][row, column]) == pytest.approx(
                            float(v[i][start - 1]), abs=1e-9
                        )
        foreign = ~episodes.action_mask
        assert not any(bool(values[foreign].any()) for values in (*found.q, *found.v))
        least_q, least_v = torch.stack(found.q).amin(0), torch.stack(found.v).amin(0)
        torch.testing.assert_close(found.advantages, least_q - least_v)


@torch.no_grad()
def test_targets_of_the_critics() -> None:
    agent = with_random_critics(make(gamma=0.5))
    filled(agent)
    sampled: list[EpisodeBatch] = []
    sample = agent.sample

    def kept(*arguments: Any) -> Any:
        sampled.append(sample(*arguments))
        return sampled[-1]

    agent.sample = kept
    batches = list(agent.critic_batches())
    assert [len(batch) for batch in batches] == [8, 8]
    turns = {
        tuple(ids[:length].tolist()): (ids, int(length), int(start))
        for ids, length, start in zip(
            sampled[0].input_ids, sampled[0].lengths, sampled[0].prompt_lengths, strict=True
        )
    }
    several = 0
    for batch in batches:
        episodes = batch.episodes
        for row in range(len(episodes)):
            ids = episodes.input_ids[row, : int(episodes.lengths[row])].tolist()
            _, v = plain_values(agent.policy.target_critic, ids)
            places = turns_of(episodes, row)
            several += len(places) > 2
            for k, (start, end) in enumerate(places):
                reward = float(episodes.rewards[row, start : end + 1].sum())
                for i in range(2):
                    following = float(v[i][places[k + 1][0] - 1]) if k + 1 < len(places) else 0.0
                    found = float(batch[f"q_target_{i}"][row, start])
                    assert found == pytest.approx(reward + 0.5 * following, abs=1e-6)
                    own = [
                        float(plain_values(agent.policy.target_critic, tokens[:length].tolist())[0][i][-1])
                        for tokens, length, first in turns.values()
                        if first == start and tokens[:start].tolist() == ids[:start]
                    ]
                    known = bool(batch["v_known"][row, start])
                    assert known == bool(own) or start + 2 > agent.envs.unwrapped.max_length
                    if known:
                        target = float(batch[f"v_target_{i}"][row, start])
                        assert min(abs(target - value) for value in own) < 1e-6
    assert several


def test_the_critics_learn_and_the_policy_stays() -> None:
    agent = with_random_critics(make())
    filled(agent)
    before = {name: p.detach().clone() for name, p in agent.policy.named_parameters()}
    batch = next(iter(agent.critic_batches()))
    starts = turn_starts(batch.mask)
    values = agent.policy.turn_critic(batch.episodes)
    expected = sum(((values.q[i] - batch[f"q_target_{i}"])[starts] ** 2).mean() for i in range(2))
    known = batch["v_known"] > 0
    expected = expected + sum(((values.v[i] - batch[f"v_target_{i}"])[known] ** 2).mean() for i in range(2))
    row = agent.optimizer_step(batch)
    assert row["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)
    for name, parameter in agent.policy.named_parameters():
        moved = not torch.equal(parameter, before[name])
        if name.startswith(("model.", "token_baseline.")):
            assert not moved, name
    # The target network went a tenth of the way.
    for (name, own), other in zip(
        agent.policy.target_critic.named_parameters(), agent.policy.turn_critic.parameters(), strict=True
    ):
        start = before.get(f"target_critic.{name}")
        if start is None:  # the unused output layer, which the two share
            assert own is other
            continue
        torch.testing.assert_close(own, start + 0.1 * (other.detach() - start))


def test_a_sampled_turn_continues_the_recorded_tokens_and_ends_as_in_the_environment() -> None:
    agent = make()
    episodes = filled(agent)
    states = turn_states(episodes, agent.envs)
    assert len(states.rows) > 16
    turns = sample_turns(agent.policy, agent.envs, episodes, states, seed=3, first=0)
    for i in range(len(turns)):
        row, column = int(states.rows[i]), int(states.columns[i])
        assert turns.input_ids[i, :column].tolist() == episodes.input_ids[row, :column].tolist()
        assert int(turns.prompt_lengths[i]) == column and 1 <= int(turns.response_lengths[i]) <= 2
        if int(turns.response_lengths[i]) == 1:
            assert int(turns.input_ids[i, column]) == TALKER.eos_token_id
    again = sample_turns(agent.policy, agent.envs, episodes, states, seed=3, first=0)
    assert torch.equal(again.input_ids, turns.input_ids)
    other = sample_turns(agent.policy, agent.envs, episodes, states, seed=3, first=len(turns))
    assert not torch.equal(other.input_ids, turns.input_ids)
    # The environment is as before.
    assert textenv.collect(agent.envs, agent.policy, 4, seed=1).action_mask.any()


@pytest.mark.parametrize("baseline", [False, True])
def test_the_loss_of_the_policy(baseline: bool) -> None:
    agent = with_random_critics(make(token_baseline=baseline))
    filled(agent)
    with torch.no_grad():
        for parameter in agent.policy.token_baseline.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    turns = agent.actor_turns()
    batch = agent.advantages(turns)
    assert len(turns) <= 16 and bool(batch["advantages"][batch.mask].all())
    out = agent.policy(turns, hidden=True)
    advantages = batch["advantages"].to(out.log_probs)
    if baseline:
        values = torch.zeros_like(advantages)
        values[:, 1:] = agent.policy.token_baseline(out.hidden)[:, :-1]
        advantages = advantages - values.detach()
    expected = -(advantages * out.log_probs)[batch.mask].sum() / len(turns)
    loss, stats = agent.loss(batch, agent.totals(batch))
    torch.testing.assert_close(stats["policy/loss"], expected.detach())
    model = list(agent.policy.model.parameters())
    for a, b in zip(
        torch.autograd.grad(loss, model, retain_graph=True), torch.autograd.grad(expected, model), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert ("archer/baseline_loss" in stats) == baseline


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    whole = make(iterations=4, run_dir=tmp_path / "whole", checkpoint_every=2, buffer_episodes=24)
    whole.learn()
    resumed = Archer.load(tmp_path / "whole/checkpoints/step-00000002", envs=make_envs())
    assert resumed.sampled_turns > 0 and len(resumed.buffer) == 24
    resumed.learn()
    assert equal(weights(resumed), weights(whole)) and resumed.counters() == whole.counters()
    policy = ArcherPolicy.load(tmp_path / "whole/checkpoints/step-00000004")
    assert policy.turn_critic.kind == "mlp"


def test_only_the_critics_learn_in_the_warm_up() -> None:
    agent = make(critic_warmup=1)
    first, second = agent.learn().history
    assert "policy/loss" not in first and "policy/loss" in second
    assert agent.planned_steps() == agent.optimizer_steps == 2 * 2 + 1


def test_critics_have_a_learning_rate_of_their_own() -> None:
    agent = make(critic_learning_rate=3e-3, lr_schedule="linear")
    names = {id(p): name for name, p in agent.policy.named_parameters()}
    for group in agent.optimizer.param_groups:
        critics = {names[id(p)].startswith(("turn_critic.", "token_baseline.")) for p in group["params"]}
        assert critics == {group["initial_lr"] == 3e-3}


def test_the_replay_buffer_keeps_the_newest_episodes() -> None:
    buffer = EpisodeBuffer(3)
    with pytest.raises(RuntimeError, match="must hold an episode"):
        buffer.draw(1, seed=0, number=0)
    for i in range(3):
        buffer.add(EpisodeBatch.from_ids([[1], [1]], [[2 * i], [2 * i + 1, 7]], rewards=[0.0, float(i)]))
    assert buffer.episodes.input_ids[:, 1].tolist() == [3, 4, 5] and buffer.episodes.returns.tolist() == [
        1,
        0,
        2,
    ]
    rows = buffer.draw(50, seed=0, number=4)
    assert torch.equal(rows, buffer.draw(50, seed=0, number=4)) and set(rows.tolist()) == {0, 1, 2}
    assert not torch.equal(rows, buffer.draw(50, seed=0, number=5))
    other = EpisodeBuffer(3)
    sampling, tensors = buffer.state()
    other.load(sampling, tensors)
    assert torch.equal(other.episodes.input_ids, buffer.episodes.input_ids)


def test_it_refuses_what_it_cannot_use() -> None:
    with pytest.raises(TypeError, match="needs an ArcherPolicy or a model, got LanguagePolicy"):
        make(model=LanguagePolicy(tiny(TALKER, positions=64)), policy_kwargs=None)
    with pytest.raises(ValueError, match=r"minibatches must be <= actor_turns \(2\), got 3"):
        make(actor_turns=2, minibatches=3)
    with pytest.raises(ValueError, match="critic_learning_rate has no effect where it equals learning_rate"):
        make(critic_learning_rate=1e-2)


def test_it_learns_a_game_of_two_turns() -> None:
    envs = make_envs(Repeat, max_turns=2, max_turn_tokens=1)
    options = {"critic_steps": 8, "critic_batch_size": 32, "actor_turns": 64, "minibatches": 2}
    model = tiny(TALKER, positions=16, width=16)
    agent = make(envs, model=model, policy_kwargs=None, iterations=12, episodes_per_iteration=32, **options)
    rows = [row["objective/reward"] for row in agent.learn().history]
    assert sum(rows[-3:]) / 3 > sum(rows[:3]) / 3 + 0.05
