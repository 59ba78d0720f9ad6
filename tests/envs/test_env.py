"""`gym.make("TextRLHF-v0")`: the single environment under Gymnasium's and SB3's eyes."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import (
    FlattenObservation,
    RecordEpisodeStatistics,
    TimeLimit,
    TransformReward,
)
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from transformers import GPT2Config, GPT2LMHeadModel

import textenv
from tests.helpers.env_helpers import (
    EOS,
    MADE,
    PROMPTS,
    TOKENIZER,
    V,
    make,
    make_vec,
    random_actions,
    vector_env,
)
from tests.helpers.forked_python import PYTHON
from textenv.envs.text_env import SHARED_ATTRIBUTES, TextEnv
from textenv.prompts.prompt_set import PromptSet


def play(env: Any, steps: int = 40, seed: int | None = 0) -> list[Any]:
    """Everything that an environment says to the same actions; time is left out."""
    seen: list[Any] = [env.reset(seed=seed)]
    for action in random_actions(steps, 1)[:, 0]:
        transition = env.step(int(action))
        transition[4].get("episode", {}).pop("t", None)
        seen.append(transition)
        if transition[2] or transition[3]:
            seen.append(env.reset())
    return seen


def same(a: Any, b: Any) -> bool:
    """Equality of nested observations, infos and numbers, types included."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)


class TestCheckers:
    @pytest.mark.parametrize("kwargs", [{}, MADE, {"task": "probe-count"}, {"task": "probe-longest"}])
    def test_gymnasium(self, kwargs: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            env = gym.make("TextRLHF-v0", render_mode="ansi", **kwargs)
            check_env(env.unwrapped)

    @pytest.mark.parametrize("kwargs", [{}, MADE])
    def test_stable_baselines(self, kwargs: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env_sb3(gym.make("TextRLHF-v0", **kwargs))
            check_env_sb3(gym.make("TextRLHF-v0", **kwargs).unwrapped)

    def test_every_sampled_action_is_taken(self) -> None:
        """Illegal tokens are for policies to avoid: a random agent must not crash."""
        env = make(suppressed_tokens=[0, 1], min_new_tokens=2)
        env.action_space.seed(0)
        env.reset(seed=0)
        for _ in range(200):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()

    def test_stable_baselines_learns(self) -> None:
        from stable_baselines3 import PPO

        agent = PPO("MultiInputPolicy", make(), n_steps=16, batch_size=8, n_epochs=1, seed=0, device="cpu")
        assert agent.learn(32).num_timesteps == 32


class TestAttributes:
    """Libraries tell single from vectorized environments by their attributes."""

    def test_none_of_a_vectorized_environment(self) -> None:
        of_vectors = {*dir(VectorEnv), *VectorEnv.__annotations__, *vars(SyncVectorEnv([make]))}
        of_vectors |= {"autoreset", "autoreset_mode", "arrays", "closed"}
        of_singles = {*dir(gym.Env), *gym.Env.__annotations__}
        env = make().unwrapped
        for name in sorted(of_vectors - of_singles):
            assert not hasattr(env, name), name

    def test_all_that_rewards_and_policies_ask(self) -> None:
        env = make()
        env.reset(seed=0)
        base = env.unwrapped
        for name in SHARED_ATTRIBUTES:
            assert hasattr(base, name), name
            if not callable(getattr(base, name)):
                assert same_object_or_value(getattr(base, name), getattr(base.rows, name)), name
        with pytest.raises(AttributeError, match="'MadeTextEnv' object has no attribute 'num_envs'"):
            base.num_envs  # noqa: B018

    def test_a_policy_plays_it_as_one_row(self) -> None:
        env = make().unwrapped
        config = GPT2Config(vocab_size=V, n_layer=1, n_embd=8, n_head=1, n_positions=16)
        policy = textenv.DecodingPolicy(GPT2LMHeadModel(config))
        policy.attach(env)
        observation, info = env.reset(seed=0)
        batch = {name: torch.as_tensor(value)[None] for name, value in observation.items()}
        actions, _ = policy.act(batch, key=torch.as_tensor(info["key"])[None])
        assert tuple(actions.shape) == (1,)


def same_object_or_value(a: Any, b: Any) -> bool:
    return a is b or bool(np.all(np.asarray(a) == np.asarray(b)))


class TestSpec:
    def test_json_round_trip(self) -> None:
        kwargs = {
            "task": "random-walks",
            "rewards": ["random-walks-optimality", ["length", {"coef": 0.1}], ["length", {"coef": 0.2}]],
            "max_new_tokens": 6,
        }
        env = gym.make("TextRLHF-v0", **kwargs)
        spec = EnvSpec.from_json(env.spec.to_json())
        again = gym.make(spec)
        assert again.spec == env.spec == gym.make(env.spec).spec
        assert str(again) == str(env)
        assert str(again).count("RewardWrapper<") == 3
        assert same(play(env), play(again))

    def test_native_json_round_trip(self) -> None:
        kwargs = {"task": "probe-count", "rewards": [["length", {"coef": 0.1}]], "arrays": "numpy"}
        envs = gym.make_vec("TextRLHF-v0", 3, autoreset="disabled", samples_per_prompt=3, **kwargs)
        spec = EnvSpec.from_json(envs.unwrapped.spec.to_json())
        again = gym.make_vec(spec)
        assert again.unwrapped.spec == envs.unwrapped.spec
        assert again.num_envs == 3
        assert again.unwrapped.autoreset == "disabled"
        first, second = envs.reset(seed=3), again.reset(seed=3)
        assert same(first, second)
        assert same(envs.step([1, 2, 3])[:4], again.step([1, 2, 3])[:4])

    def test_wrappers_from_elsewhere_are_made_again_once(self) -> None:
        env = TransformReward(RecordEpisodeStatistics(make(episode_statistics=False)), lambda reward: reward)
        assert [w.name for w in env.spec.additional_wrappers].count("RewardWrapper") == 2
        env = RecordEpisodeStatistics(make(episode_statistics=False))
        assert str(gym.make(env.spec)) == str(env)


class TestPickling:
    def test_in_the_middle_of_an_episode(self) -> None:
        env = make()
        env.reset(seed=1)
        env.step(2)
        again = pickle.loads(pickle.dumps(env))
        for action in (3, 4, EOS):
            a, b = env.step(action), again.step(action)
            for _, *_, info in (a, b):
                if "episode" in info:
                    assert 0 <= info["episode"].pop("t") < 60
            assert same(a, b)
        assert same(env.reset(), again.reset())

    def test_deepcopy_goes_its_own_way(self) -> None:
        env = make()
        env.reset(seed=1)
        branch = copy.deepcopy(env)
        branch.step(2)
        observation = env.step(3)[0]
        assert int(observation["input_ids"][observation["prompt_length"]]) == 3


class TestUpstreamWrappers:
    def test_record_episode_statistics(self) -> None:
        env = RecordEpisodeStatistics(make(episode_statistics=False))
        env.reset(seed=0)
        env.step(1)
        *_, info = env.step(EOS)
        assert info["episode"]["l"] == 2
        with_ours = RecordEpisodeStatistics(make(), stats_key="theirs")
        with_ours.reset(seed=0)
        with_ours.step(1)
        *_, info = with_ours.step(EOS)
        assert info["theirs"]["l"] == info["episode"]["l"] == 2
        assert info["theirs"]["r"] == pytest.approx(info["episode"]["r"])
        assert info["episode"]["r"] != 0

    def test_time_limit_cuts_and_the_next_episode_follows(self) -> None:
        env = TimeLimit(make(rewards=[]), 2)
        _, info = env.reset(seed=0)
        env.step(1)
        _, _, terminated, truncated, _ = env.step(1)
        assert truncated and not terminated
        _, following = env.reset()
        assert following["episode_id"] == info["episode_id"] + 1

    def test_flatten_observation(self) -> None:
        env = FlattenObservation(make())
        observation, _ = env.reset(seed=0)
        assert env.observation_space.contains(observation)

    def test_transform_reward(self) -> None:
        env, plain = TransformReward(make(), lambda reward: 2 * reward), make()
        env.reset(seed=0)
        plain.reset(seed=0)
        rewards = [(env.step(a)[1], plain.step(a)[1]) for a in (1, 1, EOS)]
        assert all(doubled == 2 * reward for doubled, reward in rewards)
        assert rewards[-1][0] != 0


class TestSingle:
    def test_is_row_0_of_the_vector(self) -> None:
        env, envs = make(), make_vec(1, arrays="numpy", autoreset="disabled")
        obs, info = env.reset(seed=5)
        batched, infos = envs.reset(seed=5)
        assert same(obs["input_ids"], batched["input_ids"][0])
        assert info["key"] == infos["key"][0]
        for action in (1, 2, 3, 4, 5):
            obs, reward, terminated, truncated, info = env.step(action)
            batched, rewards, terminations, truncations, infos = envs.step(np.array([action]))
            assert same(obs["input_ids"], batched["input_ids"][0])
            assert reward == rewards[0]
            assert (terminated, truncated) == (terminations[0], truncations[0])
            assert info["key"] == infos["key"][0]
        assert truncated
        assert info["episode"]["r"] == infos["episode"]["r"][0]

    def test_info_holds_plain_numbers(self) -> None:
        env = make()
        _, info = env.reset(seed=0)
        assert info["active"] is True
        assert isinstance(info["key"], np.int64)
        *_, info = env.step(EOS)
        assert info["active"] is False
        assert set(info) == {"key", "episode_id", "prompt_index", "active", "episode"}

    def test_masked_sampling_draws_legal_tokens(self) -> None:
        env = make(suppressed_tokens=list(range(6)), min_new_tokens=1)
        env.reset(seed=0)
        mask = env.unwrapped.action_masks()
        assert np.flatnonzero(mask).tolist() == [6, 7, TOKENIZER.bos_token_id, TOKENIZER.pad_token_id]
        env.action_space.seed(0)
        assert env.action_space.sample(mask=mask.astype("int8")) in np.flatnonzero(mask)
        env.step(6)
        assert env.unwrapped.action_masks()[EOS]

    def test_actions_of_any_integer_kind(self) -> None:
        env = make()
        for action in (3, np.int32(3), np.array(3), np.array([3]), torch.tensor(3)):
            env.reset(seed=0)
            observation = env.step(action)[0]
            assert observation["input_ids"][observation["prompt_length"]] == 3

    def test_human_mode_prints(self, capsys: pytest.CaptureFixture[str]) -> None:
        env = TextEnv(
            prompts=PromptSet.from_texts(["a"], TOKENIZER),
            tokenizer=TOKENIZER,
            max_new_tokens=3,
            render_mode="human",
        )
        env.reset(seed=0)
        env.step(1)
        env.step(EOS)
        assert capsys.readouterr().out == "[0] a | \n[0] a | b\n[0] a | b<eos>  (over)\n"
        assert env.render() is None


class TestBadInput:
    def test_step_before_reset(self) -> None:
        with pytest.raises(ResetNeeded, match="reset"):
            make().unwrapped.step(0)

    def test_step_after_the_end(self) -> None:
        env = make()
        env.reset(seed=0)
        env.step(EOS)
        with pytest.raises(ResetNeeded, match="episode is over"):
            env.unwrapped.step(0)

    @pytest.mark.parametrize("action", [V, -1, 2**40])
    def test_token_out_of_range(self, action: int) -> None:
        env = make(disable_env_checker=True)
        env.reset(seed=0)
        with pytest.raises(ValueError, match=rf"actions\[0\] must be a token id in \[0, {V}\), got {action}"):
            env.step(action)

    @pytest.mark.parametrize("action", [1.0, "a", True, None])
    def test_not_an_integer(self, action: Any) -> None:
        env = make(disable_env_checker=True)
        env.reset(seed=0)
        with pytest.raises(TypeError, match="action must be an integer"):
            env.step(action)

    def test_wrong_shape(self) -> None:
        env = make(disable_env_checker=True)
        env.reset(seed=0)
        with pytest.raises(ValueError, match=r"one token id, got shape \(2,\)"):
            env.step(np.array([1, 2]))

    def test_options_belong_to_vectors(self) -> None:
        with pytest.raises(ValueError, match="options must be empty"):
            make().reset(options={"episodes": 3})

    def test_after_close(self) -> None:
        env = make()
        env.reset(seed=0)
        env.close()
        env.close()
        with pytest.raises(ClosedEnvironmentError, match=r"step\(\) was called after close\(\)"):
            env.step(0)
        with pytest.raises(ClosedEnvironmentError, match=r"reset\(\) was called after close\(\)"):
            env.reset()

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"task": "random-wolks"}, "random-walks"),
            ({"rewards": ["brewity"]}, "brewity"),
            ({"max_new_token": 3}, "max_new_tokens"),
            ({"prompts": ["a", ""], "tokenizer": TOKENIZER}, "row 1: prompt is empty"),
            ({"prompts": [], "tokenizer": TOKENIZER}, "no records"),
            ({"max_new_tokens": 0}, "max_new_tokens must be >= 1, got 0"),
            ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer, got 2.5"),
            ({"min_new_tokens": 9, "max_new_tokens": 5}, r"min_new_tokens must be <= max_new_tokens \(5\)"),
            ({"stop_token_ids": [999]}, r"stop_token_ids must lie in \[0, \d+\), got \[999\]"),
            ({"stop_strings": "end"}, "stop_strings must be a list of strings"),
            ({"stop_strings": [""]}, r"stop_strings\[0\] must be a non-empty string"),
            ({"render_mode": "depth_array"}, "render_mode must be one of"),
            ({"samples_per_prompt": 0}, "samples_per_prompt must be >= 1, got 0"),
            ({"truncation_side": "middle"}, "truncation_side must be one of"),
            ({"chat_template": True}, "chat template"),
        ],
    )
    def test_make(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises((ValueError, TypeError), match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium also warns of the render mode
            gym.make("TextRLHF-v0", **kwargs)

    def test_prompts_of_another_tokenizer(self) -> None:
        with pytest.raises(ValueError, match=rf"prompts\[1\] must hold token ids in \[0, {V}\).*got 99"):
            vector_env(prompts=PromptSet([[1], [2, 99]]))


def test_a_users_own_rewards_and_tasks_do_not_matter(tmp_path: Path) -> None:
    for name in ("rewards", "tasks", "agents"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong file was imported')")
    script = tmp_path / "script.py"
    script.write_text(
        "import gymnasium as gym, textenv\n"
        "env = gym.make('TextRLHF-v0', rewards=[['length', {}]])\n"
        "print(env.reset(seed=0)[1]['episode_id'])\n"
    )
    done = PYTHON.run([str(script)], cwd=tmp_path)
    assert (done.stdout.strip(), done.returncode) == ("0", 0), done.stderr


def test_prompt_texts_reach_the_observation() -> None:
    env = make(shuffle=False)
    seen = []
    for i in range(len(PROMPTS)):
        observation, info = env.reset(seed=0 if i == 0 else None)
        seen.append(TOKENIZER.decode(observation["input_ids"][: observation["prompt_length"]]))
        assert observation["attention_mask"].sum() == observation["prompt_length"]
        assert info["prompt_index"] == i
    assert seen == PROMPTS
