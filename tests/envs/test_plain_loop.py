"""A loop of reset, act and step: the environment's rules apply, in every thread and in every copy."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import textenv
from tests.helpers.env_helpers import V, vector_env
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.envs.observation_source import source_of
from textenv.envs.vector_env import TextVectorEnv
from textenv.generation.policy import DecodingPolicy
from textenv.tasks.letters import letter_tokenizer
from textenv.tasks.registry import make_task, task_names
from textenv.tasks.task import Task, TaskData

SIZES: dict[str, Any] = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": V + 3}
RULES: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 3, "suppressed_tokens": [1, 2]}


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(**SIZES, bos_token_id=None, eos_token_id=None, initializer_range=0.5)
    return GPT2LMHeadModel(config)


POLICIES: dict[str, Callable[[], Any]] = {
    "DecodingPolicy": lambda: DecodingPolicy(model()),
    "LanguagePolicy": lambda: LanguagePolicy(model()),
    "uncached": lambda: DecodingPolicy(model(), cached=False),
}


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("arrays", ["torch", "numpy"])
def test_an_unattached_policy_obeys_the_environment_as_collect_does(kind: str, arrays: str) -> None:
    policy, envs = POLICIES[kind](), vector_env(4, arrays=arrays, **RULES)
    obs, info = envs.reset(seed=3, options={"episodes": 12})
    done, steps = {}, 0
    while envs.host_mirror.active.any():
        legal = torch.as_tensor(envs.action_masks())
        actions, known = policy.act(obs, key=info["key"], active=info["active"])
        active = torch.as_tensor(info["active"])
        assert legal[torch.arange(4), torch.as_tensor(actions)][active].all()
        envs.record(**known)
        obs, _, _, _, info = envs.step(actions)
        ended = envs.finished
        if ended is not None:
            done |= {int(ended.episode_id[i]): ended.select([i]) for i in range(len(ended))}
        steps += 1
    expected = textenv.collect(vector_env(4, **RULES), POLICIES[kind](), 12, seed=3)
    assert (
        sorted(done) == list(range(12))
        and not (expected.input_ids == 1).logical_and(expected.action_mask).any()
    )
    for i, episode in sorted(done.items()):
        right = expected.select([i])
        assert episode.input_ids.tolist() == right.input_ids[:, : episode.input_ids.shape[1]].tolist()
        found = episode.log_probs[episode.action_mask]
        torch.testing.assert_close(found, right.log_probs[right.action_mask], atol=1e-5, rtol=0)


def test_a_single_environment_is_obeyed_too() -> None:
    env = gym.make("TextRLHF-v0", prompts=["ab"], tokenizer=letter_tokenizer("abcdef"), rewards=[], **RULES)
    policy = DecodingPolicy(model())
    for seed in range(4):
        obs, info = env.reset(seed=seed)
        over = False
        while not over:
            legal = env.unwrapped.action_masks()  # type: ignore[attr-defined]
            action, _ = policy.act(obs, key=info["key"])
            assert legal[action]
            obs, _, terminated, truncated, info = env.step(int(action))
            over = terminated or truncated


def test_one_policy_obeys_two_environments_in_turn() -> None:
    policy = DecodingPolicy(model())
    strict, free = vector_env(2, **RULES), vector_env(2, max_new_tokens=5)
    for envs in (strict, free, strict):
        obs, info = envs.reset(seed=0)
        policy.act(obs, info["key"])
        assert policy.legality == envs.legality
    assert strict.legality != free.legality


def test_other_observations_have_no_source() -> None:
    envs = vector_env(2, max_new_tokens=3)
    obs, _ = envs.reset(seed=0)
    later = envs.step(np.array([3, 4]))[0]
    assert source_of(obs) is source_of(later) is envs
    assert source_of({**obs, "input_ids": obs["input_ids"].clone()}) is None
    assert source_of(copy.copy(obs)) is envs
    del envs
    assert source_of(obs) is None


def test_an_observation_of_unknown_source_is_warned_of_once() -> None:
    envs, policy = vector_env(2, **RULES), DecodingPolicy(model())
    obs, info = envs.reset(seed=0)
    copied = {name: value.clone() for name, value in obs.items()}
    with pytest.warns(UserWarning, match=r"call attach\(env\) before acting"):
        policy.act(copied, info["key"])
    policy.attach(envs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = policy.act(copied, info["key"])
    right = policy.act(obs, info["key"])
    assert torch.equal(found[0], right[0]) and torch.equal(found[1]["log_prob"], right[1]["log_prob"])


# -- threads -------------------------------------------------------------------------------------------------


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Their results or errors."""
    found: list[Any] = [None] * len(functions)

    def run(i: int) -> None:
        try:
            found[i] = functions[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_one_policy_in_two_threads_plays_what_it_plays_alone() -> None:
    policy = LanguagePolicy(model())
    rules = ({"max_new_tokens": 5}, RULES)

    def play(i: int) -> Any:
        return textenv.collect(vector_env(3, **rules[i]), policy, 24, seed=i)

    expected = [play(0), play(1)]
    for found, right in zip(in_threads(lambda: play(0), lambda: play(1)), expected, strict=True):
        assert found.input_ids.tolist() == right.input_ids.tolist()
        torch.testing.assert_close(found.log_probs, right.log_probs, atol=1e-5, rtol=0)


def test_acting_while_another_thread_evaluates() -> None:
    policy = LanguagePolicy(model())
    episodes = textenv.collect(vector_env(3, **RULES), policy, 12, seed=0)
    right = policy.evaluate(episodes).log_probs

    def evaluate() -> list[Any]:
        found = []
        for _ in range(8):
            policy.invalidate()
            found.append(policy.evaluate(episodes).log_probs)
        return found

    again, evaluated = in_threads(
        lambda: textenv.collect(vector_env(3, **RULES), policy, 12, seed=0), evaluate
    )
    assert again.input_ids.tolist() == episodes.input_ids.tolist()
    assert all(torch.equal(found, right) for found in evaluated)


def test_an_environment_in_two_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = vector_env(2, max_new_tokens=3)
    envs.reset(seed=0)
    inside, go_on, check = threading.Event(), threading.Event(), envs._termination.check

    def slow(*args: Any) -> Any:
        inside.set()
        assert go_on.wait(10)
        return check(*args)

    monkeypatch.setattr(envs._termination, "check", slow)
    thread = threading.Thread(target=envs.step, args=(np.array([3, 4]),))
    thread.start()
    assert inside.wait(10)
    for call in (lambda: envs.step(np.array([3, 4])), lambda: envs.reset(seed=1)):
        with pytest.raises(RuntimeError, match="another thread is inside this environment"):
            call()
    go_on.set()
    thread.join()
    envs.step(np.array([3, 4]))


def test_an_environment_that_is_played_cannot_be_reset_or_played_again() -> None:
    envs = vector_env(2, max_new_tokens=3)

    def resets(obs: Any, info: Any) -> Any:
        envs.reset(seed=1)

    with pytest.raises(RuntimeError, match="while collect"):
        textenv.collect(envs, resets, 4, seed=0)
    with pytest.raises(RuntimeError, match="while collect"):
        textenv.collect(envs, lambda obs, info: textenv.collect(envs, resets, 2), 4, seed=0)
    plain = DecodingPolicy(model())
    assert len(textenv.collect(envs, plain, 4, seed=0)) == 4  # it is free again


# -- copies --------------------------------------------------------------------------------------------------

TASKS: dict[str, dict[str, Any]] = {
    "calculator": {"digits": 1},
    "countdown": {"count": 2},
    "guess-number": {"top": 5},
    "maze": {},
    "twenty-questions": {},
    "wordle": {},
    "random-walks": {},
    "probe-constant": {},
    "probe-copy": {},
    "probe-count": {},
    "probe-longest": {},
    "probe-end": {},
    "prompts": {"data": ["ab", "ba"], "tokenizer": letter_tokenizer("abc")},
    "reviews": {
        "data": [{"text": f"word {'ab' * i} c d e f g"} for i in range(60)],
        "prompt_words": 2,
        "rating_column": None,
        "tokenizer": letter_tokenizer("abcdefgwor "),
    },
}


def numbers(values: Any) -> Any:
    return torch.as_tensor(values).tolist()


@pytest.mark.parametrize("duplicate", [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy])
@pytest.mark.parametrize("task", TASKS)
def test_environments_of_tasks_are_copied_in_the_middle_of_an_episode(task: str, duplicate: Any) -> None:
    options: dict[str, Any] = {"task_kwargs": TASKS[task]}
    if task == "prompts":
        options["max_new_tokens"] = 4
    for make in (gym.make, gym.make_vec):
        env: Any = make("TextRLHF-v0", task=task, **options)
        env.reset(seed=0)
        token = env.action_space.sample() * 0 + 1
        _, _, *ends, _ = env.step(token)
        over = any(bool(torch.as_tensor(end).any()) for end in ends)
        again = duplicate(env)
        found, right = (e.reset() if over else e.step(token) for e in (again, env))
        assert numbers(found[0]["input_ids"]) == numbers(right[0]["input_ids"])
        assert over or numbers(found[1]) == numbers(right[1])
        data = again.unwrapped.task_data
        assert data.prompts == env.unwrapped.task_data.prompts
        if data.model_config is not None:
            assert data.model_config().vocab_size == env.unwrapped.task_data.model_config().vocab_size


def test_every_registered_task_is_among_them() -> None:
    modules = {name: make_task(name).builder.__module__ for name in task_names()}
    built_in = {name for name, module in modules.items() if module.startswith("textenv.tasks.")}
    assert {name for name in built_in if "example" not in name} <= set(TASKS)


def test_a_task_with_a_lambda_says_what_cannot_be_pickled() -> None:
    data = make_task("probe-copy").build()

    def build(split: str = "train") -> TaskData:
        fields = {name: getattr(data, name) for name in ("prompts", "tokenizer", "rewards", "max_new_tokens")}
        return TaskData(**fields, make_demonstrations=lambda: None)  # type: ignore[arg-type,return-value]

    task = Task(name="mine", description="", builder=build)
    env = gym.make("TextRLHF-v0", task=task)
    with pytest.raises(TypeError, match=r"make_demonstrations of its TaskData is .*<lambda>; use a function"):
        pickle.dumps(env.unwrapped.task_data)  # type: ignore[attr-defined]
    assert copy.deepcopy(env).unwrapped.task_data.rewards == data.rewards  # type: ignore[attr-defined]


def test_a_copied_environment_can_be_played_by_another_thread() -> None:
    envs = vector_env(2, max_new_tokens=3)
    envs.reset(seed=0)
    again: TextVectorEnv = pickle.loads(pickle.dumps(envs))
    one, other = in_threads(lambda: envs.step(np.array([3, 4])), lambda: again.step(np.array([3, 4])))
    assert one[0]["input_ids"].tolist() == other[0]["input_ids"].tolist()
