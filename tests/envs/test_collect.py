"""`collect`: exactly n episodes in order for every form of policy; what it records; what it refuses."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorWrapper
from gymnasium.wrappers.vector import ClipReward, RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from tests.helpers.env_helpers import EOS, V, by_key, make_vec, vector_env
from textenv.episodes.batch import EpisodeBatch
from textenv.generation.policy import DecodingPolicy
from textenv.rollout import FOREIGN, collect
from textenv.tasks.random_walks import DEFAULT_SEED, WalkGraph

SPECIAL = {"bos_token_id": EOS, "eos_token_id": EOS}


class Policy:
    """Plays by the key and says what it knows, which a test can check from the key."""

    def __init__(self) -> None:
        self.attached: Any = None

    def attach(self, env: Any) -> None:
        self.attached = env

    def sampling(self) -> dict[str, Any]:
        return {"temperature": 0.5, "weights_version": 3}

    def act(self, obs: dict[str, Any], key: Any, active: Any) -> tuple[Any, dict[str, Any]]:
        key = torch.as_tensor(key)
        known = {"log_prob": -(key % 97).double() - 1, "value": (key % 89).float()}
        return by_key(obs, {"key": key}), {
            name: value * torch.as_tensor(active) for name, value in known.items()
        }


def same(a: EpisodeBatch, b: EpisodeBatch) -> bool:
    ours, theirs = dict(a.tensors()), dict(b.tensors())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@settings(max_examples=40)
@given(
    num_envs=st.integers(1, 9),
    episodes=st.integers(1, 30),
    autoreset=st.sampled_from(["same_step", "next_step"]),
    budget=st.integers(1, 6),
    samples=st.integers(1, 3),
    arrays=st.sampled_from(["torch", "numpy"]),
)
def test_properties(
    num_envs: int, episodes: int, autoreset: str, budget: int, samples: int, arrays: str
) -> None:
    envs = vector_env(
        num_envs, autoreset=autoreset, max_new_tokens=budget, samples_per_prompt=samples, arrays=arrays
    )
    batch = collect(envs, Policy(), episodes, seed=1).validate()
    assert batch.episode_id.tolist() == list(range(episodes))
    assert (batch.terminated ^ batch.truncated).all()
    last = batch.input_ids.gather(1, batch.last_action.unsqueeze(-1)).squeeze(-1)
    assert torch.equal(batch.terminated, last == EOS)
    assert ((batch.response_lengths == budget) | batch.terminated).all()
    assert (batch.response_lengths <= budget).all()
    prompts = envs.prompts.rows(batch.prompt_index.numpy())[0]
    assert torch.equal(batch.prompt_lengths, torch.from_numpy(envs.prompts.lengths)[batch.prompt_index])
    for row, prompt, n in zip(batch.input_ids, prompts, batch.prompt_lengths.tolist(), strict=True):
        assert torch.equal(row[:n], prompt[:n])
    assert (
        batch.prompt_index.view(-1)[: episodes // samples * samples].view(-1, samples).diff(dim=1) == 0
    ).all()
    assert batch.log_probs is not None and batch.values is not None
    assert ((batch.log_probs <= -1) == batch.action_mask).all()
    assert not batch.values[~batch.action_mask].any()
    assert envs.next_episode_id == episodes
    # The same episodes whatever the rest: two rows, plainly.
    plain = vector_env(2, max_new_tokens=budget, samples_per_prompt=samples)
    assert same(collect(plain, Policy(), episodes, seed=1), batch)


class TestPolicies:
    def test_what_the_policy_knew_comes_back_at_its_token(self) -> None:
        envs = vector_env(3)
        batch = collect(envs, Policy(), 12, seed=5)
        for ticket in range(12):
            alone = vector_env(1)
            _, info = alone.reset(seed=5, options={"episodes": 1, "first_ticket": ticket})
            row, start = batch.select([ticket]), int(batch.prompt_lengths[ticket])
            for t in range(int(row.response_lengths)):
                assert row.values is not None and row.log_probs is not None
                assert row.values[0, start + t] == int(info["key"][0]) % 89
                assert row.log_probs[0, start + t] == -(int(info["key"][0]) % 97) - 1
                *_, info = alone.step(row.input_ids[:, start + t])

    def test_a_plain_function(self) -> None:
        batch = collect(vector_env(3), by_key, 10, seed=0)
        assert batch.log_probs is None and batch.values is None

    def test_a_policy_after_a_plain_function_leaves_nothing_behind(self) -> None:
        envs = vector_env(3)
        collect(envs, Policy(), 10, seed=0)
        assert collect(envs, by_key, 10).log_probs is None

    def test_sampling_is_noted(self) -> None:
        policy, envs = Policy(), vector_env(2, min_new_tokens=1, suppressed_tokens=[3])
        batch = collect(envs, policy, 4, seed=0)
        assert policy.attached is envs
        assert batch.sampling == {
            "temperature": 0.5,
            "weights_version": 3,
            "vocab_size": V,
            "min_new_tokens": 1,
            "stop_token_ids": [EOS],
            "suppressed_tokens": [3],
        }

    def test_policy_sees_wrapped_observations(self) -> None:
        class Marked(VectorWrapper):
            def reset(self, **kwargs: Any) -> Any:
                obs, info = self.env.reset(**kwargs)
                return {**obs, "mark": 1}, info

            def step(self, actions: Any) -> Any:
                obs, *rest = self.env.step(actions)
                return {**obs, "mark": 1}, *rest

        seen = []

        def policy(obs: Any, info: Any) -> Any:
            seen.append(obs["mark"])
            return by_key(obs, info)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it overrides step, so it may change rewards
            collect(Marked(vector_env(2)), policy, 3, seed=0)
        assert set(seen) == {1}

    def test_rows_that_are_parked_from_the_start(self) -> None:
        """More rows than episodes, with a model: idle rows are neither decoded nor in the way."""
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=V, n_positions=20, n_layer=1, n_embd=8, n_head=1, initializer_range=1.0, **SPECIAL
        )
        model = GPT2LMHeadModel(config).double().eval()
        few = collect(vector_env(8), DecodingPolicy(model), 3, seed=0)
        alone = collect(vector_env(1), DecodingPolicy(model), 3, seed=0)
        assert torch.equal(few.input_ids, alone.input_ids)
        torch.testing.assert_close(few.log_probs, alone.log_probs, rtol=0, atol=1e-10)

    def test_everything_ends_at_once(self) -> None:
        """A model whose weights always end: every row is refilled in every step, then all are parked."""
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=V, n_positions=20, n_layer=1, n_embd=8, n_head=1, **SPECIAL)
        model = GPT2LMHeadModel(config)

        def end(logits: Tensor, hidden: Tensor, t: Tensor) -> Tensor:
            return logits.index_fill(-1, torch.tensor([EOS]), 1e4)

        batch = collect(vector_env(4), DecodingPolicy(model, logits_processor=end), 10, seed=0)
        assert batch.response_lengths.tolist() == [1] * 10
        assert batch.terminated.all()

    def test_other_keys_of_act_are_stored_not_returned(self) -> None:
        class Chatty(Policy):
            def act(self, obs: Any, key: Any, active: Any) -> Any:
                actions, known = super().act(obs, key, active)
                return actions, {**known, "mood": torch.ones(len(actions))}

        envs = vector_env(2)
        assert {name for name, _ in collect(envs, Chatty(), 2, seed=0).tensors()} == {
            name for name, _ in collect(envs, Policy(), 2, seed=0).tensors()
        }


class TestRewards:
    @pytest.mark.parametrize("task", ["probe-count", "probe-longest", "probe-end"])
    def test_immediate_is_deferred_on_probes(self, task: str) -> None:
        envs = gym.make_vec("TextRLHF-v0", 4, task=task)

        def policy(obs: Any, info: Any) -> Any:
            return (info["key"] >> 5) % envs.single_action_space.n

        batches = [collect(envs, policy, 25, seed=2, scoring=how) for how in ("immediate", "deferred")]
        assert same(*batches)
        assert batches[0].rewards.abs().sum() > 0

    def test_immediate_is_deferred_on_random_walks(self) -> None:
        envs = gym.make_vec("TextRLHF-v0", 4)
        graph = WalkGraph.from_seed(DEFAULT_SEED)
        walks = {walk[0]: walk for walk in reversed(graph.walks_to_goal())}  # the shortest comes last
        letters = envs.unwrapped.tokenizer

        def policy(obs: Any, info: Any) -> Any:
            """Every second episode walks to the goal, the others wander."""
            actions = (info["key"] >> 5) % envs.single_action_space.n
            steps = obs["attention_mask"].sum(-1) - 1
            for i in (info["episode_id"] % 2 == 0).nonzero().flatten().tolist():
                walk = letters(walks[letters.decode(obs["input_ids"][i, :1])])["input_ids"]
                rest = [*walk[1:], letters.eos_token_id]
                actions[i] = rest[min(int(steps[i]), len(rest) - 1)]
            return actions

        batches = [collect(envs, policy, 25, seed=2, scoring=how) for how in ("immediate", "deferred")]
        assert same(*batches)
        assert (batches[0].returns[::2] == 1).all() and batches[0].returns[1::2].mean() < 0.1

    def test_rewards_are_what_step_paid(self) -> None:
        envs = make_vec(3)
        batch = collect(envs, by_key, 20, seed=0, scoring="immediate")
        torch.testing.assert_close(batch.rewards, sum(batch.reward_terms.values()))
        obs, info = envs.reset(seed=0, options={"episodes": 20})
        paid = torch.zeros(20)
        while info["active"].any():
            playing = info["episode_id"].clone()
            obs, rewards, _, _, info = envs.step(by_key(obs, info))
            paid.index_add_(0, playing.clamp_min(0), rewards)
        torch.testing.assert_close(batch.returns, paid)

    def test_a_foreign_wrapper_makes_it_immediate_with_one_notice(self) -> None:
        envs = ClipReward(make_vec(3, arrays="numpy"), max_reward=0.4)
        with pytest.warns(UserWarning, match="ClipReward changes rewards in every step"):
            batch = collect(envs, by_key, 20, seed=0)
        assert float(batch.rewards.max()) == pytest.approx(0.4)
        assert batch.reward_terms[FOREIGN].min() < 0
        with pytest.raises(ValueError, match="scoring must be 'auto' or 'immediate' where ClipReward"):
            collect(envs, by_key, 2, scoring="deferred")

    def test_statistics_wrappers_do_not_matter(self) -> None:
        plain = make_vec(3, arrays="numpy", episode_statistics=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wrapped = RecordEpisodeStatistics(
                make_vec(3, arrays="numpy", episode_statistics=False), buffer_length=50
            )
            assert same(collect(wrapped, by_key, 15, seed=0), collect(plain, by_key, 15, seed=0))
        assert wrapped.episode_count == 15

    def test_scoring_is_put_back(self) -> None:
        envs = make_vec(2)
        assert envs.scoring == "immediate"
        collect(envs, by_key, 3, seed=0, scoring="deferred")
        assert envs.scoring == "immediate"


class TestErrors:
    def test_an_error_in_the_policy_leaves_the_environment_usable(self) -> None:
        envs = make_vec(3)

        def policy(obs: Any, info: Any) -> Any:
            if int(info["episode_id"].max()) > 5:
                raise RuntimeError("out of memory, say")
            return by_key(obs, info)

        with pytest.raises(RuntimeError, match="out of memory, say"):
            collect(envs, policy, 20, seed=0, progress=True)
        assert envs.scoring == "immediate"
        again = collect(envs, by_key, 20, seed=0)
        assert same(again, collect(make_vec(5), by_key, 20, seed=0))

    def test_bad_actions_say_so(self) -> None:
        with pytest.raises(ValueError, match=r"actions\[0\] must be a token id"):
            collect(vector_env(2), lambda obs, info: np.array([V, V]), 2, seed=0)

    def test_only_native_environments(self) -> None:
        with pytest.raises(TypeError, match=r"envs must be the native vector environment.*got SyncVectorEnv"):
            collect(make_vec(2, "sync"), by_key, 2)
        with pytest.raises(TypeError, match="got MadeTextEnv"):
            collect(gym.make("TextRLHF-v0"), by_key, 2)

    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"episodes": 0}, ValueError, "episodes must be >= 1, got 0"),
            ({"episodes": 2, "world_size": 3}, ValueError, "episodes must be >= 3, got 2"),
            ({"rank": 2, "world_size": 2}, ValueError, r"rank'\] must lie in \[0, world_size=2\), got 2"),
            (
                {"scoring": "later"},
                ValueError,
                "scoring must be one of 'auto', 'deferred', 'immediate', got 'later'",
            ),
            ({"policy": 3}, TypeError, r"policy must have act\(...\) or be callable, got int"),
        ],
    )
    def test_arguments(self, kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            collect(vector_env(2), **{"policy": by_key, "episodes": 4, **kwargs})

    def test_disabled_autoreset(self) -> None:
        with pytest.raises(ValueError, match=r"autoreset must be 'same_step' or 'next_step'.*got 'disabled'"):
            collect(vector_env(2, autoreset="disabled"), by_key, 2)

    def test_an_act_of_the_wrong_form(self) -> None:
        class Wrong:
            def act(self, obs: Any, key: Any, active: Any) -> Any:
                return torch.zeros(2, dtype=torch.int64)

        with pytest.raises(TypeError, match=r"policy.act must return \(actions, .*got Tensor"):
            collect(vector_env(2), Wrong(), 2)

    def test_recorded_shapes_are_checked(self) -> None:
        class Wrong(Policy):
            def act(self, obs: Any, key: Any, active: Any) -> Any:
                actions, known = super().act(obs, key, active)
                return actions, {name: value[:1] for name, value in known.items()}

        with pytest.raises(ValueError, match=r"record\(log_prob=...\) must have shape \(2,\), got \(1,\)"):
            collect(vector_env(2), Wrong(), 2)

    def test_after_close(self) -> None:
        envs = vector_env(2)
        envs.close()
        with pytest.raises(gym.error.ClosedEnvironmentError):
            collect(envs, by_key, 2)


def test_the_progress_bar_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    envs = vector_env(3)
    with_bar = collect(envs, by_key, 12, seed=0, progress=True)
    assert capsys.readouterr().out == ""
    assert same(with_bar, collect(envs, by_key, 12, seed=0))


def test_terms_learn_only_if_they_may() -> None:
    envs = make_vec(2, rewards=[["normalized", {"of": ["length", {"coef": 0.5}]}]])
    term = envs.term
    before = term.state_dict()
    collect(envs, by_key, 8, seed=0, update_terms=False)
    assert term.state_dict() == before
    collect(envs, by_key, 8, seed=0)
    assert term.state_dict() != before


def test_gradients_are_not_kept() -> None:
    weight = torch.zeros(1, requires_grad=True)

    class Learner(Policy):
        def act(self, obs: Any, key: Any, active: Any) -> Any:
            actions, known = super().act(obs, key, active)
            return actions, {name: value + weight for name, value in known.items()}

    batch = collect(vector_env(2), Learner(), 3, seed=0)
    assert batch.log_probs is not None and not batch.log_probs.requires_grad
