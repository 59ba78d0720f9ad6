"""Stable-Baselines3 on text: its rules, its buffers' equality, truncation, KL penalties, files, learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from torch import Tensor

import textenv
from benchmarks.models import ModelShape
from benchmarks.sb3 import contender, measure
from tests.helpers.models import tiny
from tests.helpers.numeric_helpers import relative_error
from tests.helpers.partners import TALKER, Guess
from textenv.agents.integrations.sb3 import LMActorCriticPolicy, TextVecEnv, sb3_agent
from textenv.agents.integrations.sb3_buffer import SequenceRolloutBuffer
from textenv.agents.policies.language_policy import LanguagePolicy


def text_envs(num_envs: int = 3, task: str = "probe-count", **kwargs: Any) -> Any:
    return gym.make_vec("TextRLHF-v0", num_envs=num_envs, task=task, **kwargs)


def model_for(envs: Any, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> LanguagePolicy:
    """A small random model whose critic is not zero."""
    config = tiny(envs.unwrapped.tokenizer, width=16)
    policy = LanguagePolicy(config, value_head=True, seed=seed, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    head: Any = policy.value_head
    torch.nn.init.normal_(head.projection.last.weight, generator=generator)
    return policy


def rollout(learner: Any) -> Any:
    """Let SB3 collect one rollout with its own code, and return the buffer."""
    _, callback = learner._setup_learn(10_000)
    torch.manual_seed(1)
    learner.collect_rollouts(learner.env, callback, learner.rollout_buffer, learner.n_steps)
    return learner.rollout_buffer


def prefixes(buffer: Any, place: tuple[Any, Any]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(values[place]) for name, values in buffer.observations.items()}


# -- the environment -----------------------------------------------------------------------------------------


def test_sb3_accepts_the_single_environment(recwarn: pytest.WarningsRecorder) -> None:
    check_env(gym.make("TextRLHF-v0", task="probe-count").unwrapped)
    assert [str(w.message) for w in recwarn if "env_checker" in str(w.filename)] == []


@pytest.mark.parametrize("arrays", ["torch", "numpy"])
def test_the_adapter_says_what_the_native_environment_says(arrays: str) -> None:
    native, rows = text_envs(), TextVecEnv(text_envs(arrays=arrays))
    rows.seed(5)
    observation, (expected, _) = rows.reset(), native.reset(seed=5)
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(20):
        for name, value in expected.items():
            assert np.array_equal(observation[name], value.numpy())
            assert rows.observation_space[name].contains(observation[name][0])  # type: ignore[index]
        actions = rng.integers(0, int(rows.action_space.n), size=3)  # type: ignore[attr-defined]
        observation, rewards, dones, infos = rows.step(actions)
        expected, native_rewards, terminated, truncated, info = native.step(actions)
        assert rewards.dtype == np.float32 and np.allclose(rewards, native_rewards.numpy())
        assert np.array_equal(dones, (terminated | truncated).numpy())
        for row in np.flatnonzero(dones):
            ended += 1
            final = infos[row]["terminal_observation"]
            assert np.array_equal(final["input_ids"], info["final_obs"]["input_ids"][row].numpy())
            assert infos[row]["episode"]["r"] == pytest.approx(float(info["episode"]["r"][row]))
            assert infos[row]["episode"]["l"] == int(info["episode"]["l"][row])
            assert infos[row]["truncated"] == bool(truncated[row])
            assert infos[row]["TimeLimit.truncated"] is False
    assert ended > 3


def test_the_rest_of_the_vec_env_face() -> None:
    rows = TextVecEnv(text_envs(render_mode="ansi"))
    rows.reset()
    assert rows.get_attr("max_new_tokens") == [6, 6, 6]
    assert rows.env_is_wrapped(Monitor) == [True] * 3 and rows.env_is_wrapped(gym.Wrapper, 0) == [False]
    masks = rows.env_method("action_masks", indices=[0, 2])
    assert len(masks) == 2 and masks[0].shape == (int(rows.action_space.n),)  # type: ignore[attr-defined]
    assert len(rows.render()) == 3
    rows.set_attr("render_mode", None)
    assert rows.get_attr("render_mode") == [None] * 3
    with pytest.raises(ValueError, match="sets all rows, got indices 1"):
        rows.set_attr("render_mode", None, 1)
    rows.close()
    with pytest.raises(ValueError, match="must have autoreset='same_step', got 'disabled'"):
        TextVecEnv(text_envs(autoreset="disabled"))


# -- the policy ----------------------------------------------------------------------------------------------


def test_values_and_log_probs_of_acting_are_those_of_training() -> None:
    envs = text_envs()
    learner = sb3_agent(PPO, model_for(envs), envs, n_steps=16, batch_size=48, sequences=False)
    buffer = rollout(learner)
    place = tuple(torch.meshgrid(torch.arange(16), torch.arange(3), indexing="ij"))
    place = tuple(index.flatten().numpy() for index in place)
    obs = prefixes(buffer, place)
    actions = torch.as_tensor(buffer.actions[place]).flatten()
    values, log_probs, entropy = learner.policy.evaluate_actions(obs, actions)
    assert np.allclose(values.detach().flatten(), buffer.values[place], atol=1e-5)
    assert np.allclose(log_probs.detach(), buffer.log_probs[place], atol=1e-5)
    assert np.allclose(learner.policy.predict_values(obs).flatten(), buffer.values[place], atol=1e-5)
    distribution = learner.policy.get_distribution(obs)
    assert torch.allclose(distribution.log_prob(actions), log_probs, atol=1e-5)
    found = distribution.entropy()
    assert found is not None and torch.allclose(found, entropy, atol=1e-5)
    greedy = learner.policy.predict({k: v.numpy() for k, v in obs.items()}, deterministic=True)[0]
    assert np.array_equal(greedy, distribution.mode().numpy())


def test_dropout_is_off_while_sb3_trains() -> None:
    envs = text_envs()
    config = tiny(envs.unwrapped.tokenizer, width=16)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.5
    learner = sb3_agent(PPO, config, envs, n_steps=8, batch_size=24)
    sample = next(rollout(learner).get(24))
    learner.policy.set_training_mode(True)
    scored = learner.policy.evaluate_actions(sample.observations, sample.actions)
    assert torch.allclose(scored[1], sample.old_log_prob, atol=1e-5)


def test_the_rule_of_legal_tokens_holds_in_the_middle_of_episodes() -> None:
    envs = text_envs(task="probe-longest", min_new_tokens=5)
    learner = sb3_agent(PPO, model_for(envs), envs, n_steps=3, batch_size=9)
    for _ in range(3):
        buffer = learner.rollout_buffer
        if learner._last_obs is None:
            rollout(learner)
        else:
            _, callback = learner._setup_learn(10_000, reset_num_timesteps=False)
            learner.collect_rollouts(learner.env, callback, buffer, learner.n_steps)
        for sample in buffer.get(9):
            _, log_probs, _ = learner.policy.evaluate_actions(sample.observations, sample.actions)
            assert torch.allclose(log_probs, sample.old_log_prob, atol=1e-5)


def test_the_policy_refuses() -> None:
    envs = text_envs()
    base = envs.unwrapped
    spaces = (base.single_observation_space, base.single_action_space)
    with pytest.raises(ValueError, match="use_sde is for continuous actions"):
        LMActorCriticPolicy(*spaces, lambda _: 1e-3, use_sde=True, model=model_for(envs))
    with pytest.raises(ValueError, match="expected a text environment's spaces"):
        LMActorCriticPolicy(spaces[1], spaces[1], lambda _: 1e-3, model=model_for(envs))


# -- the buffer ----------------------------------------------------------------------------------------------


TURNS: dict[str, Any] = {
    "task": None,
    "tokenizer": TALKER,
    "rewards": [],
    "partner": Guess,
    "max_turns": 3,
    "max_turn_tokens": 2,
}


def two_learners(algorithm: Any, made: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
    """The same learner with SB3's buffer and with sequences, each after the same rollout."""
    learners = []
    for sequences in (False, True):
        envs = text_envs(**(made or {}))
        learner = sb3_agent(
            algorithm,
            model_for(envs),
            envs,
            n_steps=11,
            sequences=sequences,
            seed=3,
            gae_lambda=0.9,
            ent_coef=0.01,
            learning_rate=0.1,
            policy_kwargs={"optimizer_class": torch.optim.SGD},
            **options,
        )
        rollout(learner)
        learner.set_logger(learner.logger)
        learners.append(learner)
    return learners[0], learners[1]


@pytest.mark.parametrize("made", [{}, TURNS], ids=["one-turn", "turns"])
def test_sequences_hold_the_same_transitions(made: dict[str, Any]) -> None:
    plain, whole = (learner.rollout_buffer for learner in two_learners(PPO, made, batch_size=33))
    assert isinstance(plain, DictRolloutBuffer) and isinstance(whole, SequenceRolloutBuffer)
    for name in ("rewards", "values", "log_probs", "advantages", "returns", "episode_starts"):
        assert np.array_equal(getattr(plain, name), getattr(whole, name)), name
    assert plain.episode_starts[1:].any(), "an episode must end inside the rollout"
    # Every action of every sequence, as a prefix, is a transition of SB3's buffer, and each comes once.
    theirs = {}
    for step in range(11):
        for row in range(3):
            length = int(plain.observations["attention_mask"][step, row].sum())
            prefix = tuple(plain.observations["input_ids"][step, row, :length].tolist())
            fact = (plain.actions[step, row, 0], plain.advantages[step, row], plain.values[step, row])
            theirs.setdefault((prefix, *map(float, fact)), []).append(1)
    for sample in whole.get(8):
        ids, mask = sample.observations["input_ids"], sample.observations["action_mask"]
        rows, columns = mask.nonzero(as_tuple=True)
        assert len(rows) == len(sample.actions) <= 8
        for i, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            fact = (sample.actions[i], sample.advantages[i], sample.old_values[i])
            theirs[tuple(ids[row, :column].tolist()), *map(float, fact)].pop()
            assert int(ids[row, column]) == int(sample.actions[i])
    assert not any(theirs.values())
    stored = sum(part.size for part in whole._stored["ids"])
    assert stored < plain.observations["input_ids"].size


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [(A2C, {"use_rms_prop": False}), (PPO, {"batch_size": 33, "n_epochs": 2, "clip_range_vf": 0.2})],
)
@pytest.mark.parametrize("made", [{}, TURNS], ids=["one-turn", "turns"])
def test_sb3_takes_the_same_steps_on_sequences(
    algorithm: Any, options: dict[str, Any], made: dict[str, Any]
) -> None:
    plain, whole = two_learners(algorithm, made, **options)
    before = [p.detach().clone() for p in whole.policy.parameters()]
    for learner in (plain, whole):
        learner.train()
    moved = max(
        float((a - b.detach()).abs().max()) for a, b in zip(before, whole.policy.parameters(), strict=True)
    )
    assert moved > 1e-3
    assert relative_error(whole.policy.parameters(), plain.policy.parameters()) < 1e-5
    for name in ("train/value_loss", "train/entropy_loss"):
        assert whole.logger.name_to_value[name] == pytest.approx(plain.logger.name_to_value[name], rel=1e-5)


def test_no_prefix_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = {}
    for learner in two_learners(PPO, batch_size=33, n_epochs=1):
        seen: list[int] = []
        forward = learner.policy.language.forward

        def counted(episodes: Any, *, forward: Any = forward, seen: Any = seen, **kwargs: Any) -> Any:
            seen.append(int(episodes.attention_mask.sum()))
            return forward(episodes, **kwargs)

        monkeypatch.setattr(learner.policy.language, "forward", counted)
        learner.train()
        tokens[type(learner.rollout_buffer)] = sum(seen)
    # 33 actions and the prompts of the sequences, against the sum of all prefixes.
    assert tokens[SequenceRolloutBuffer] < 33 * 2 < tokens[DictRolloutBuffer]


def test_a_gap_between_observations_is_an_error() -> None:
    envs = text_envs()
    base = envs.unwrapped
    buffer = SequenceRolloutBuffer(4, base.single_observation_space, base.single_action_space, n_envs=3)
    obs = {name: value.numpy() for name, value in envs.reset(seed=0)[0].items()}
    zeros = np.zeros(3)
    fact = (np.zeros((3, 1)), zeros, zeros, torch.zeros(3, 1), torch.zeros(3))
    buffer.add(obs, *fact)
    with pytest.raises(ValueError, match="row 0 must hold 2 tokens at step 1 of the rollout, got 1"):
        buffer.add(obs, *fact)
    with pytest.raises(ValueError, match="must be 4 steps long, got 1"):
        next(buffer.get())


# -- truncation, penalties -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bootstrap", [False, True])
def test_truncated_episodes_are_bootstrapped_only_if_asked(bootstrap: bool) -> None:
    envs = text_envs(task="probe-longest", min_new_tokens=8, rewards=[])
    learner = sb3_agent(
        PPO, model_for(envs), envs, n_steps=16, batch_size=48, bootstrap_truncated=bootstrap, gamma=0.5
    )
    seen: dict[int, np.ndarray] = {}
    step_wait = learner.env.step_wait

    def watched() -> Any:
        result = step_wait()
        for row, info in enumerate(result[3]):
            if "terminal_observation" in info:
                seen[len(seen)] = info["terminal_observation"]["input_ids"]
                assert info["truncated"] and info["TimeLimit.truncated"] is bootstrap, row
        return result

    learner.env.step_wait = watched
    rewards = rollout(learner).rewards
    assert len(seen) == 6
    if not bootstrap:
        assert not rewards.any()
        return
    nonzero = rewards[rewards != 0]
    ids = torch.as_tensor(np.stack(list(seen.values())))
    full = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "prompt_length": torch.ones(len(ids), dtype=torch.int64),
    }
    expected = 0.5 * learner.policy.predict_values(full).flatten()
    assert sorted(nonzero.tolist()) == pytest.approx(sorted(expected.tolist()), abs=1e-5)


def test_a_kl_penalty_knows_the_policy() -> None:
    envs = text_envs(rewards=[["kl", {"coef": 0.5}]])
    policy = model_for(envs)
    learner = sb3_agent(PPO, policy, envs, n_steps=12, batch_size=36)
    policy.reference()
    assert np.allclose(rollout(learner).rewards, 0.0, atol=1e-5)
    with torch.no_grad():
        weight = next(iter(policy.model.parameters()))
        weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    # The log-probs that acting found are the ones that the penalty takes.
    policy.log_prob = None  # type: ignore[method-assign,assignment]
    assert np.abs(rollout(learner).rewards).max() > 1e-3


def test_the_benchmark_measures_all_three() -> None:
    shape = ModelShape(layers=1, width=16, heads=2, vocab=32, positions=32)
    case = measure(shape, rows=4, new_tokens=8, repeats=1)
    assert set(case["us_per_token"]) == {"native", "sequences", "prefixes"}
    assert case["times_native"]["native"] == 1.0 and min(case["us_per_token"].values()) > 0
    with pytest.raises(ValueError, match="contender must be one of native, sequences, prefixes, got 'trl'"):
        contender("trl", shape, rows=4, new_tokens=8)


# -- learning and files --------------------------------------------------------------------------------------


def test_sb3_ppo_improves_on_a_probe() -> None:
    envs = text_envs(16, task="probe-constant")
    learner = sb3_agent(
        PPO,
        tiny(envs.unwrapped.tokenizer, width=32, positions=64),
        envs,
        n_steps=16,
        batch_size=64,
        n_epochs=4,
        learning_rate=3e-3,
        seed=0,
    )
    before = float(evaluate_policy(learner, learner.env, n_eval_episodes=64, deterministic=False)[0])
    learner.learn(16 * 16 * 11)
    after = float(evaluate_policy(learner, learner.env, n_eval_episodes=64, deterministic=False)[0])
    assert before < 0.4
    assert after > 0.9
    # What SB3 trained is an ordinary policy of the library.
    batch = textenv.collect(text_envs(8, task="probe-constant"), learner.policy.language, 32, seed=0)
    assert float(batch.returns.mean()) > 0.9


def test_sb3_a2c_improves_on_a_probe() -> None:
    envs = text_envs(16, task="probe-constant")
    config = tiny(envs.unwrapped.tokenizer, width=32, positions=64)
    learner = sb3_agent(A2C, config, envs, n_steps=8, learning_rate=3e-3, normalize_advantage=True, seed=0)
    learner.learn(16 * 8 * 20)
    reward = evaluate_policy(learner, learner.env, n_eval_episodes=64, deterministic=False)[0]
    assert float(reward) > 0.9


def test_sb3_saves_and_loads_it(tmp_path: Path) -> None:
    envs = text_envs()
    config = tiny(envs.unwrapped.tokenizer, width=16)
    learner = sb3_agent(PPO, config, envs, n_steps=8, batch_size=24, n_epochs=1)
    learner.learn(24)
    learner.save(tmp_path / "ppo.zip")
    loaded = PPO.load(tmp_path / "ppo.zip", env=TextVecEnv(text_envs()))
    obs, _ = text_envs().reset(seed=0)
    obs = {name: value.numpy() for name, value in obs.items()}
    found = [
        agent.policy.predict_values({k: torch.as_tensor(v) for k, v in obs.items()})
        for agent in (learner, loaded)
    ]
    assert torch.equal(*found)
    loaded.learn(24)
    learner.policy.language.save(tmp_path / "model")
    again = LanguagePolicy.load(tmp_path / "model")
    assert torch.equal(again.model.lm_head.weight, learner.policy.language.model.lm_head.weight)
