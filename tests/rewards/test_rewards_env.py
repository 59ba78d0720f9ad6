"""Rewards on the real environment: steps and deferred scoring give equal rewards."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.helpers.reward_helpers import (
    COLUMNS,
    PROMPTS,
    TOKENIZER,
    TinyPolicy,
    classifier,
    language_model,
    random_actions,
    vector_env,
)
from textenv.envs.text_env import TextEnv
from textenv.prompts.prompt_set import PromptSet
from textenv.rewards.registry import REWARDS, make_reward, reward_names
from textenv.rewards.term import RewardTerm
from textenv.rewards.wrappers import RewardWrapper, VectorRewardWrapper, wrap_reward
from textenv.rollout import collect
from textenv.scoring import RewardError, foreign_reward_wrappers, reward_wrappers, walk
from textenv.tasks.registry import make_task, task_names
from textenv.utils.hashing import uniform

# Arguments of rewards that need some. A new reward without required arguments is covered without being listed
# here.
ARGUMENTS: dict[str, Any] = {
    "clipped": lambda: {"of": ["length", {"coef": 0.4}], "low": 0.7, "high": 1.5},
    "ensemble": lambda: {"of": ["length", "kl", ["normalized", {"of": "repetition"}]], "how": "mean-std"},
    "kl": lambda: {"coef": 0.3, "controller": "adaptive", "horizon": 50.0},
    "normalized": lambda: {"of": ["length", {"coef": 0.4}]},
    "regex": lambda: {"column": "pattern", "how": "count"},
    "repetition": lambda: {"n": 1},
    "reward-model": lambda: {"model": classifier()},
    "weighted": lambda: {"of": ["normalized", {"of": "kl"}], "weight": -2.0},
}
task_names()  # loads the tasks, which register rewards of their own
OF_TASKS = [
    (name, per_token)
    for name in reward_names()
    if REWARDS[name].__module__.startswith("textenv.tasks.")
    for per_token in (False, True)
    if not per_token or "per_token" in inspect.signature(REWARDS[name]).parameters
]
BUILTIN = [name for name in reward_names() if REWARDS[name].__module__.startswith("textenv.rewards.")]
BUILTIN.remove("remote")  # needs a cluster, so it is tested with it, in test_ray


def _policy() -> TinyPolicy:
    return TinyPolicy(language_model(0), language_model(1))


def _stack(terms: list[Any], **env: Any) -> Any:
    envs: Any = vector_env(**env)
    envs.bind(_policy())
    for term in terms:
        envs = wrap_reward(envs, term)
    return envs


def _collected(terms: list[Any], scoring: str, **env: Any) -> list[Any]:
    envs = _stack(terms, **env)
    policy = envs.unwrapped.policy
    # Twice, so that the second rollout is scored with state that the first one moved.
    return [collect(envs, policy, 7, seed=3, scoring=scoring) for _ in range(2)]


@pytest.mark.parametrize("name", BUILTIN)
def test_deferred_scoring_equals_immediate_scoring(name: str) -> None:
    arguments = ARGUMENTS.get(name, dict)
    paid = {}
    for scoring in ("immediate", "deferred"):
        paid[scoring] = _collected([[name, arguments()]], scoring)
    for now, later in zip(paid["immediate"], paid["deferred"], strict=True):
        assert now.episode_id.tolist() == later.episode_id.tolist()
        torch.testing.assert_close(now.input_ids, later.input_ids)
        assert set(now.reward_terms) == set(later.reward_terms) >= {name}
        for term in now.reward_terms:
            torch.testing.assert_close(now.reward_terms[term], later.reward_terms[term], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(now.rewards, later.rewards, rtol=1e-5, atol=2e-5)
    assert bool((paid["deferred"][0].rewards != 0).any()), "a reward that is always 0 proves nothing"


@pytest.mark.parametrize(("name", "per_token"), OF_TASKS)
def test_deferred_equals_immediate_for_the_rewards_of_tasks(name: str, per_token: bool) -> None:
    task = {"random-walks-optimality": "random-walks"}.get(name, name)
    data = make_task(task).build("train")
    spec = next(spec for spec in data.rewards if spec[0] == name)
    if "per_token" in spec[1]:
        spec = [name, {**spec[1], "per_token": per_token}]
    paid = {}
    for scoring in ("immediate", "deferred"):
        envs: Any = gym.make_vec("TextRLHF-v0", num_envs=3, task=task, rewards=[spec])
        vocabulary, tokenizer = envs.unwrapped.legality.vocab_size, data.tokenizer

        def act(
            obs: Any, info: Any, vocabulary: int = vocabulary, tokenizer: Any = tokenizer
        ) -> torch.Tensor:
            # Even episodes say what the task's own texts say after that prompt, if it has texts; odd ones
            # anything.
            actions = (uniform(info["key"]) * vocabulary).long()
            for row in (info["episode_id"] % 2 == 0).nonzero().squeeze(-1).tolist():
                length, prompt = int(obs["attention_mask"][row].sum()), int(obs["prompt_length"][row])
                start = tokenizer.decode(obs["input_ids"][row, :prompt])
                text = next((text for text in data.texts or () if text.startswith(start)), None)
                if text is not None:
                    said = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
                    actions[row] = said[min(length, len(said) - 1)]
            return actions

        paid[scoring] = collect(envs, act, 30, seed=0, scoring=scoring)
    for term, values in paid["deferred"].reward_terms.items():
        torch.testing.assert_close(paid["immediate"].reward_terms[term], values)
    assert name in paid["deferred"].reward_terms and bool((paid["deferred"].rewards != 0).any())


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
def test_reward_is_conserved(autoreset: str) -> None:
    terms = ["length", ["normalized", {"of": "repetition"}], ["kl", {"coef": 0.2}], "length"]
    envs = _stack(terms, autoreset=autoreset)
    policy = envs.unwrapped.policy
    policy.attach(envs.unwrapped)
    obs, info = envs.reset(seed=5, options={"episodes": 9})
    stepped, booked, shown = 0.0, 0.0, 0.0
    for _ in range(60):
        if not info["active"].any() and not envs.unwrapped.episodes_left:
            break
        actions, known = policy.act(obs, key=info["key"], active=info["active"])
        envs.unwrapped.record(**known)
        obs, rewards, _, _, info = envs.step(actions)
        stepped += float(rewards.sum())
        if "episode" in info:
            shown += float(info["episode"]["r"][info["_episode"]].sum())
        batch = envs.unwrapped.finished_with_rewards
        if batch is not None:
            counted = sum(value for name, value in batch.reward_terms.items() if not name.startswith("raw/"))
            torch.testing.assert_close(counted, batch.rewards)
            assert bool((batch.rewards[~batch.action_mask] == 0).all())
            booked += float(batch.rewards.sum())
    assert booked == pytest.approx(stepped, abs=1e-4)
    assert booked == pytest.approx(shown, abs=1e-4)
    assert abs(booked) > 0.1


def test_the_terminal_reward_lands_on_the_last_own_token() -> None:
    batch = _collected(["length"], "deferred")[0]
    for row in range(len(batch)):
        paid_at = batch.rewards[row].nonzero().squeeze(-1).tolist()
        assert paid_at == [int(batch.lengths[row]) - 1]


def test_the_same_reward_twice_gets_a_number() -> None:
    envs = _stack(["length", ["length", {"coef": 1.0}], ["normalized", {"of": "length"}]])
    assert [wrapper.name for wrapper in reward_wrappers(envs)] == ["length", "length#2", "normalized"]
    batch = collect(envs, random_actions, 4, seed=0)
    assert set(batch.reward_terms) == {"length", "length#2", "normalized", "raw/length"}
    torch.testing.assert_close(batch.reward_terms["length#2"], -100 * batch.reward_terms["length"])


@pytest.mark.parametrize("scoring", ["immediate", "deferred"])
def test_two_shaped_rewards_of_one_name_keep_their_own_statistics(scoring: str) -> None:
    specs = [
        ["normalized", {"of": ["length", {"coef": 1.0}]}],
        ["normalized", {"of": ["length", {"coef": 5.0}]}],
    ]
    envs = _stack(specs)
    batch = collect(envs, random_actions, 6, seed=0, scoring=scoring)
    assert {"raw/length", "raw/length#2"} < set(batch.reward_terms)
    small, large = (wrapper.term for wrapper in reward_wrappers(envs))
    mean = float(batch.response_lengths.float().mean())
    assert (small.mean, large.mean) == (pytest.approx(mean), pytest.approx(5 * mean))


def test_a_reward_of_ones_own_in_ten_lines() -> None:
    class VowelBonus(RewardTerm):
        """One point for every vowel, as it is chosen."""

        per_token = True

        def score(self, episodes: Any) -> torch.Tensor:
            vowels = torch.tensor(self.tokenizer.convert_tokens_to_ids(["a", "e"]))
            return torch.isin(episodes.input_ids, vowels).float()

    envs = wrap_reward(vector_env(), VowelBonus())
    batch = collect(envs, random_actions, 8, seed=0)
    expected = [sum(text.count(v) for v in "ae") for text in batch.completion_texts(TOKENIZER)]
    assert batch.returns.tolist() == expected and sum(expected) > 0
    assert torch.equal(batch.rewards, collect(envs, random_actions, 8, seed=0, scoring="immediate").rewards)


def test_a_plain_function_pays_in_a_vector_environment_with_columns() -> None:
    def longer_than_reference(completions: list[str], answer: list[Any]) -> list[float | None]:
        return [
            None if isinstance(a, list) else float(len(c)) for c, a in zip(completions, answer, strict=True)
        ]

    envs = wrap_reward(vector_env(), longer_than_reference)
    for scoring in ("immediate", "deferred"):
        batch = collect(envs, random_actions, 10, seed=1, scoring=scoring)
        texts = batch.completion_texts(TOKENIZER)
        skipped = [isinstance(answer, list) for answer in batch.extras["answer"]]
        expected = [0.0 if skip else float(len(text)) for skip, text in zip(skipped, texts, strict=True)]
        assert any(skipped) and batch.returns.tolist() == expected
        assert set(batch.reward_terms) == {"longer_than_reference"}


@pytest.mark.parametrize("scoring", ["immediate", "deferred"])
def test_nan_is_an_error_with_prompt_and_completion(scoring: str) -> None:
    class Broken(RewardTerm):
        def score(self, episodes: Any) -> torch.Tensor:
            return torch.full((len(episodes),), torch.nan)

    with pytest.raises(
        RewardError, match=r"reward 'broken' gave nan \(broken\) for prompt '.+', completion '.*'"
    ):
        collect(wrap_reward(vector_env(), Broken()), random_actions, 2, seed=0, scoring=scoring)


def test_numpy_rewards_stay_numpy() -> None:
    envs = wrap_reward(vector_env(arrays="numpy"), "length")
    obs, info = envs.reset(seed=0)
    for _ in range(3):
        obs, rewards, _, _, info = envs.step(random_actions(obs, info).numpy())
        assert isinstance(rewards, np.ndarray) and rewards.dtype == np.float32


# -- single environments, specs and refusals ---------------------------------------------------------------


def _single() -> TextEnv:
    prompts = PromptSet.from_texts(PROMPTS, TOKENIZER, columns=COLUMNS)
    return TextEnv(prompts=prompts, tokenizer=TOKENIZER, max_new_tokens=6)


def test_single_and_vector_environments_pay_the_same() -> None:
    single = wrap_reward(wrap_reward(_single(), ["length", {"coef": 0.5}]), "repetition")
    vector = wrap_reward(wrap_reward(vector_env(1), ["length", {"coef": 0.5}]), "repetition")
    assert isinstance(single, RewardWrapper) and isinstance(vector, VectorRewardWrapper)
    obs, info = vector.reset(seed=4)
    single.reset(seed=4)
    for _ in range(20):
        action = random_actions(obs, info)
        obs, rewards, _, _, info = vector.step(action)
        _, reward, terminated, truncated, single_info = single.step(int(action[0]))
        assert reward == pytest.approx(float(rewards[0]))
        if terminated or truncated:
            assert single_info["episode"]["r"] == pytest.approx(float(info["episode"]["r"][0]))
            single.reset()


def test_both_wrappers_record_their_spec() -> None:
    term = ["clipped", {"of": ["length", {"coef": 1.0}], "high": 3}]
    assert wrap_reward(_single(), term)._saved_kwargs == {"term": term}
    assert wrap_reward(vector_env(), term)._saved_kwargs == {"term": term}


def test_a_reward_object_is_marked_in_the_spec_and_explained() -> None:
    wrapper = wrap_reward(vector_env(), lambda completions: [0.0] * len(completions))
    assert wrapper._saved_kwargs == {"term": "object:function"}
    with pytest.raises(ValueError, match="'function' was given as a Python object, which a spec can't hold"):
        make_reward("object:function")


def test_other_environments_are_refused() -> None:
    with pytest.raises(TypeError, match="RewardWrapper needs a text environment below it, got CartPoleEnv"):
        wrap_reward(gym.make("CartPole-v1"), "length")
    with pytest.raises(TypeError, match="put the reward into each single environment"):
        wrap_reward(gym.vector.SyncVectorEnv([_single]), "length")


def test_scoring_modes_are_checked() -> None:
    envs = wrap_reward(vector_env(), "length")
    with pytest.raises(ValueError, match="scoring must be one of immediate, deferred, got 'later'"):
        envs.scoring = "later"


def test_foreign_reward_wrappers_are_found() -> None:
    class Doubling(gym.vector.VectorWrapper):
        def step(self, actions: Any) -> Any:
            obs, rewards, *rest = self.env.step(actions)
            return obs, 2 * rewards, *rest

    class Harmless(gym.vector.VectorWrapper):
        pass

    envs = wrap_reward(vector_env(), "length")
    assert foreign_reward_wrappers(envs) == []
    assert foreign_reward_wrappers(Harmless(envs)) == []
    doubled = Doubling(envs)
    assert foreign_reward_wrappers(doubled) == [doubled]
    clipped = gym.wrappers.vector.ClipReward(envs, 0.0, 1.0)
    assert foreign_reward_wrappers(wrap_reward(clipped, "length")) == [clipped]
    normalized = gym.wrappers.NormalizeReward(wrap_reward(_single(), "length"))
    assert foreign_reward_wrappers(normalized) == [normalized]
    single = gym.wrappers.TimeLimit(wrap_reward(_single(), "length"), 100)
    assert foreign_reward_wrappers(single) == []
    assert [type(layer).__name__ for layer in walk(single)] == ["TimeLimit", "RewardWrapper", "TextEnv"]


def test_close_reaches_the_term() -> None:
    closed = []

    class Holder(RewardTerm):
        def score(self, episodes: Any) -> torch.Tensor:
            return torch.zeros(len(episodes))

        def close(self) -> None:
            closed.append(self.name)

    wrap_reward(vector_env(), ["weighted", {"of": Holder(), "weight": 1.0}]).close()
    wrap_reward(_single(), Holder()).close()
    assert closed == ["holder", "holder"]
