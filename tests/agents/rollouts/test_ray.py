"""Rollouts and rewards in Ray actors: the same episodes as in one process, whoever plays and whoever dies."""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor

from tests.helpers.agents import equal, weights
from tests.helpers.env_helpers import PROMPTS, REWARDS, TOKENIZER, make_vec
from tests.helpers.models import tiny
from tests.helpers.partners import TALKER, Guess
from tests.test_docs import run_page
from textenv.agents.base.callbacks import make_callbacks
from textenv.agents.make import make_agent
from textenv.agents.policies.language_policy import LanguagePolicy
from textenv.agents.ppo import PPO, PPOConfig
from textenv.agents.rollouts import ray_actors
from textenv.agents.rollouts.collector import LocalCollector
from textenv.agents.rollouts.factory import make_collector
from textenv.agents.rollouts.ray_actors import RolloutActor, Work, env_recipe, pack, policy_recipe, unpack
from textenv.agents.rollouts.ray_collector import RayCollector, start_rollout_actors
from textenv.agents.settings.ray_rollouts import RayRollouts
from textenv.agents.sft import SFT
from textenv.envs.vector_env import TextVectorEnv
from textenv.episodes.batch import EpisodeBatch
from textenv.prompts.prompt_set import PromptSet
from textenv.rewards.registry import REWARDS as REGISTERED
from textenv.rewards.registry import make_reward, register_reward, spec_of
from textenv.rewards.term import RewardTerm
from textenv.rewards.wrappers import wrap_reward
from textenv.rollout import collect
from textenv.scoring import RewardError, reward_wrappers
from textenv.utils.ray_session import ActorsLostError, connect, gather, start_actors

ray = pytest.importorskip("ray", reason="ray is not installed (extra 'ray')")
pytestmark = pytest.mark.timeout(900)  # starting a process takes long on a busy machine
CPUS = 0.1
config = partial(tiny, TOKENIZER, layers=2, width=16)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One small cluster for the module; more CPUs than the machine has, for they are only bookkeeping."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for last in (False, False, True):
        try:
            ray.init(
                num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000
            )
            break
        except Exception as error:  # Ray raises no class of its own when it has waited for 30 seconds
            if last or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def actors(cluster: None) -> list[Any]:
    """Two actors that all tests share; each may be killed a few times."""
    return start_rollout_actors(RayRollouts(num_actors=2, num_cpus=CPUS, max_restarts=10))


def make(
    actors: list[Any] | None = None,
    *,
    model: Any = None,
    envs: Any = None,
    policy_kwargs: dict[str, Any] | None = None,
    rollouts: dict[str, Any] | None = None,
    name: str = "ppo",
    **settings: Any,
) -> Any:
    """An agent, whose episodes ``actors`` play if there are any."""
    defaults: dict[str, Any] = {"iterations": 3, "episodes_per_iteration": 16, "learning_rate": 1e-2}
    defaults |= {"epochs": 2, "minibatches": 2} if name != "reinforce" else {}
    player = None if actors is None else RayCollector(RayRollouts(**(rollouts or {})), actors=actors)
    return make_agent(
        name,
        config() if model is None else model,
        envs=make_vec(4) if envs is None else envs,
        rollouts=player,
        policy_kwargs=policy_kwargs,
        **{**defaults, **settings},
    )


def watch(agent: Any, callback: Callable[[Any, dict[str, float]], Any]) -> None:
    """Call ``callback(agent, metrics)`` after every iteration."""
    agent.callbacks.extend(make_callbacks([callback]))


def comparable(history: list[dict[str, float]]) -> list[dict[str, float]]:
    kept = ("time/", "throughput/", "rollout/")
    return [{k: v for k, v in row.items() if not k.startswith(kept)} for row in history]


def check_same_episodes(found: EpisodeBatch, expected: EpisodeBatch, *, bitwise: bool = False) -> None:
    ours, theirs = dict(found.tensors()), dict(expected.tensors())
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if bitwise or not tensor.is_floating_point():
            assert torch.equal(ours[name], tensor), name
        else:
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5)
    assert found.extras == expected.extras
    assert found.sampling == expected.sampling


# -- in step -------------------------------------------------------------------------------------------------


def test_two_actors_play_the_episodes_of_one_process(actors: list[Any]) -> None:
    alone, shared = make(), make(actors)
    for _ in range(2):  # the second time with other weights
        check_same_episodes(shared.collect(), alone.collect())
        for agent in (alone, shared):
            agent.iteration += 1
            episodes = agent.generate(0)
            agent.score(episodes)
            agent.update(agent.advantages(episodes))
    assert equal(weights(alone), weights(shared))


def test_one_actor_of_the_same_shape_is_equal_to_the_last_bit(actors: list[Any]) -> None:
    check_same_episodes(make(actors[:1]).collect(), make().collect(), bitwise=True)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ppo", {"kl_controller": "adaptive"}),
        (
            "ppo",
            {"value_model": "separate", "policy_kwargs": {"lora": {"r": 2, "target_modules": ["c_attn"]}}},
        ),
        ("ppo", {"kl_coef": 0.0, "policy_kwargs": {"train_layers": 1, "temperature": 0.7}}),
        ("nlpo", {"mask_update_iterations": 1, "mask_min_tokens": 2}),  # the mask policy travels, too
        ("reinforce", {"baseline": "greedy"}),  # plays every ticket twice, the second time greedily
    ],
)
def test_training_is_the_same_to_the_last_bit(name: str, settings: Any, actors: list[Any]) -> None:
    alone, shared = make(name=name, **settings), make(actors, name=name, **settings)
    results = [agent.learn() for agent in (alone, shared)]
    assert equal(weights(alone), weights(shared))
    assert repr(comparable(results[0].history)) == repr(comparable(results[1].history))
    assert {row["rollout/staleness"] for row in results[1].history} == {0.0}


def test_weights_are_sent_once_a_version(actors: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def counted(policy: LanguagePolicy) -> Any:
        sent.append(policy.weights_version)
        return pack(policy)

    monkeypatch.setattr(ray_actors, "pack", counted)
    agent = make(actors)
    first, again = agent.collect(), agent.generate(0)
    assert len(sent) == 1
    check_same_episodes(again, first, bitwise=True)
    agent.iteration = 1
    agent.score(first)
    agent.update(agent.advantages(first))
    later = agent.collect()
    assert sent == [first.sampling["weights_version"], later.sampling["weights_version"]]
    assert sent[1] > sent[0]


def test_actors_compute_rewards_and_kl(actors: list[Any]) -> None:
    @register_reward("first-letter-for-test")
    class FirstLetter(RewardTerm):
        def score(self, episodes: EpisodeBatch) -> Tensor:
            first = episodes.prompt_lengths.unsqueeze(-1)
            return episodes.input_ids.gather(1, first).squeeze(-1).float()

    try:
        rewards = [["normalized", {"of": "first-letter-for-test"}], *REWARDS]
        runs = {}
        for where in (False, True):
            agent = make(
                actors,
                envs=make_vec(4, rewards=rewards),
                rollouts={"score_in_actors": where},
                kl_controller="adaptive",
                kl_horizon=50,
            )
            runs[where] = agent.learn().history
    finally:
        del REGISTERED["first-letter-for-test"]
    assert "terms/kl" in runs[True][0] and "terms/normalized" in runs[True][0]
    for learner, there in zip(*map(comparable, runs.values()), strict=True):
        assert learner == pytest.approx(there, rel=1e-3, abs=1e-4, nan_ok=True)
    assert runs[True][-1]["objective/kl"] > 0.0


def test_a_resumed_run_equals_the_uninterrupted_one(actors: list[Any], tmp_path: Path) -> None:
    whole = make(actors, rollouts={"score_in_actors": True})
    whole.learn()
    part = make(actors, rollouts={"score_in_actors": True}, iterations=2)
    part.learn()
    part.save(tmp_path / "half")
    player = RayCollector(RayRollouts(score_in_actors=True), actors=actors)
    resumed = PPO.load(
        tmp_path / "half", envs=make_vec(4), rollouts=player, config=part.config.replace(iterations=3)
    )
    resumed.learn()
    assert equal(weights(whole), weights(resumed))


def test_an_environment_by_its_gym_id(actors: list[Any]) -> None:
    class Other(gym.vector.VectorWrapper[Any, Any, Any, Any, Any]):
        """Something that a copy would lack."""

    envs = Other(make_vec(4))
    with pytest.raises(ValueError, match=r"can't copy the wrapper Other; .* gym id .*env_kwargs"):
        make(actors, envs=envs).collect()
    by_id = {"env": "TextRLHF-v0", "env_kwargs": dict(prompts=PROMPTS, tokenizer=TOKENIZER, max_new_tokens=5)}
    check_same_episodes(make(actors, envs=envs, rollouts=by_id).collect(), make().collect())


# -- apart ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1, 2])
def test_staleness_keeps_its_bound_and_a_run_is_a_function_of_its_seed(bound: int, actors: list[Any]) -> None:
    runs = []
    for _ in range(2):
        agent = make(
            actors,
            rollouts={"mode": "async", "max_staleness": bound},
            iterations=5,
            importance_correction="token",
        )
        history = agent.learn().history
        assert [row["rollout/staleness"] for row in history] == [min(i, bound) for i in range(5)]
        assert history[0]["importance/weight"] == pytest.approx(1.0, abs=1e-5)
        assert all(abs(row["importance/weight"] - 1.0) > 1e-4 for row in history[1:])
        assert agent.episodes_seen == 5 * 16
        runs.append(weights(agent))
    assert equal(*runs)


def test_actors_play_while_the_learner_learns(actors: list[Any]) -> None:
    """By hand: every iteration learns from what the weights of the iteration before played."""
    settings = {"importance_correction": "token", "kl_coef": 0.0}
    apart = make(actors, rollouts={"mode": "async"}, **settings)
    under_way: list[list[int]] = []
    watch(apart, lambda agent, row: under_way.append(agent.collector.under_way))
    apart.learn()
    assert under_way == [[16], [32], []]  # nothing is played that no iteration learns from
    by_hand = make(**settings)
    queue = [by_hand.collect()]
    for iteration in range(1, 4):
        by_hand.iteration = iteration
        queue.append(by_hand.generate(16 * iteration))
        episodes = queue.pop(0)
        by_hand.score(episodes)
        by_hand.update(by_hand.advantages(episodes))
    for ours, theirs in zip(weights(apart), weights(by_hand), strict=True):
        # Equal but for the behaviour log-probs, which depend on the shape of the batch by rounding.
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_asynchronous_ppo_learns_to_stop_at_once(actors: list[Any]) -> None:
    envs = gym.make_vec("TextRLHF-v0", num_envs=32, task="probe-end")
    from textenv.tasks.registry import make_task

    agent = make(
        actors,
        model=make_task("probe-end").build().model_config(),
        envs=envs,
        rollouts={"mode": "async"},
        iterations=14,
        episodes_per_iteration=64,
        epochs=4,
        minibatches=1,
        learning_rate=5e-3,
        kl_coef=0.0,
        value_clip_range=None,
        importance_correction="token",
    )
    before = agent.evaluate(envs, 128).metrics["return/mean"]
    agent.learn()
    assert before < 0.6
    assert agent.evaluate(envs, 128).metrics["return/mean"] >= 0.95


def test_asynchronous_rollouts_without_correction_are_warned_of(actors: list[Any]) -> None:
    with pytest.warns(UserWarning, match="set importance_correction='token' or 'sequence'"):
        make(actors, rollouts={"mode": "async"}, iterations=1).learn()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(actors, iterations=1).learn()


# -- death ---------------------------------------------------------------------------------------------------


def slow(num_envs: int = 2) -> Any:
    """Rollouts of half a second or more: long texts, few at a time."""
    return make_vec(num_envs, max_new_tokens=80, min_new_tokens=80)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_killed_actor_is_replaced_and_no_ticket_is_lost_or_played_twice(
    mode: str, actors: list[Any]
) -> None:
    settings = {
        "model": config(positions=90),
        "rollouts": {"mode": mode},
        "importance_correction": "token",
        "epochs": 1,
        "minibatches": 1,
    }
    undisturbed = make(actors, envs=slow(), **settings)
    undisturbed.learn()
    disturbed = make(actors, envs=slow(), **settings)
    seen: list[int] = []
    generate = disturbed.generate

    def watched(first_ticket: int) -> EpisodeBatch:
        if mode == "sync" and first_ticket == 16:
            threading.Timer(0.1, os.kill, (disturbed.collector.pids[0], signal.SIGKILL)).start()
        episodes = generate(first_ticket)
        seen.extend(episodes.episode_id.tolist())
        if mode == "async" and first_ticket == 0:  # the actors have just begun the next rollout
            os.kill(disturbed.collector.pids[0], signal.SIGKILL)
        return episodes

    disturbed.generate = watched
    history = disturbed.learn().history
    assert [row["rollout/actors_replaced"] for row in history] == [0.0, 1.0, 1.0]
    assert seen == list(range(3 * 16))
    assert equal(weights(disturbed), weights(undisturbed))


def test_an_actor_that_dies_too_often_ends_the_run() -> None:
    class Fragile:
        """Dies of its work."""

        def pid(self) -> int:
            return os.getpid()

        def work(self) -> None:
            os._exit(1)

    started = start_actors(ray, Fragile, 1, num_cpus=CPUS, num_gpus=0, max_restarts=0, timeout=120)
    with pytest.raises(ActorsLostError, match="died more than max_restarts times"):
        gather(ray, [started[0].work.remote()])
    with pytest.raises(TimeoutError, match=r"1 actors with num_cpus=99 .* in 1 s; the cluster has 4 CPUs"):
        start_actors(ray, Fragile, 1, num_cpus=99, num_gpus=0, max_restarts=0, timeout=1)


# -- rewards elsewhere ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remote(cluster: None) -> Iterator[Callable[..., Any]]:
    """Remote rewards whose actors are stopped at the end."""
    made: list[Any] = []

    def build(of: Any, **options: Any) -> Any:
        made.append(make_reward(["remote", {"of": of, "num_cpus": CPUS, **options}]))
        return made[-1]

    yield build
    for term in made:
        term.close()


def test_remote_rewards_are_those_of_the_wrapped_term(remote: Callable[..., Any]) -> None:
    # Per token and per episode, with parts of its own, and immediately as well as deferred.
    of = ["weighted", {"of": ["repetition", {"n": 1}], "weight": -2.0}]
    term = remote(of, num_actors=2)
    assert spec_of(term) == ["remote", {"of": of, "num_cpus": CPUS, "num_actors": 2}]
    agent = make(envs=make_vec(4, rewards=[]))
    paid = {}
    for name, reward, scoring in (
        ("own", of, "deferred"),
        ("far", term, "deferred"),
        ("now", term, "immediate"),
    ):
        envs = wrap_reward(make_vec(4, rewards=[]), reward)
        paid[name] = collect(envs, agent.policy, 7, seed=3, scoring=scoring)
        assert reward_wrappers(envs)[0].raw_names == {"repetition": "raw/repetition"}
    assert bool((paid["own"].rewards != 0).any())
    for name in ("far", "now"):
        assert torch.equal(paid[name].rewards, paid["own"].rewards)
        assert torch.equal(
            paid[name].reward_terms["raw/repetition"], paid["own"].reward_terms["raw/repetition"]
        )
    pids = ray.get([actor.pid.remote() for actor in term._actors])
    os.kill(pids[0], signal.SIGKILL)
    again = collect(envs, agent.policy, 7, seed=3)
    assert torch.equal(again.rewards, paid["own"].rewards)


def test_what_a_remote_reward_can_not_be(remote: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="but 'normalized' has a state and asks the policy; put the remote"):
        remote(["normalized", {"of": "kl"}])
    with pytest.raises(ValueError, match=r"unknown reward 'lenght'"):
        remote("lenght")
    with pytest.raises(ValueError, match="remote: num_actors must be >= 1, got 0"):
        remote("length", num_actors=0)


def test_errors_of_a_remote_reward_come_back_as_they_are(remote: Callable[..., Any]) -> None:
    @register_reward("fails-for-test")
    class Fails(RewardTerm):
        def bind(self, env: Any) -> None:
            super().bind(env)
            if "answer" not in env.prompts.columns:
                raise ValueError("needs the column 'answer'")

        def score(self, episodes: EpisodeBatch) -> Tensor:
            raise RewardError(f"no opinion on {episodes.completion_texts(self.tokenizer)[0]!r}")

    try:
        term = remote("fails-for-test")
    finally:
        del REGISTERED["fails-for-test"]
    with pytest.raises(ValueError, match="needs the column 'answer'"):
        wrap_reward(make_vec(2, rewards=[]), term)
    prompts = PromptSet.from_texts(PROMPTS, TOKENIZER, columns={"answer": PROMPTS})
    wrap_reward(make_vec(2, rewards=[], prompts=prompts), term)
    with pytest.raises(RewardError, match="no opinion on 'c'"):
        term.score(EpisodeBatch.from_ids([[1]], [[2]]))


# -- without a cluster: what is sent -------------------------------------------------------------------------


def test_a_copy_of_an_environment_has_every_setting() -> None:
    given = dict(
        max_new_tokens=7,
        min_new_tokens=2,
        stop_strings=["ab"],
        suppressed_tokens=[3],
        samples_per_prompt=2,
        shuffle=False,
        stop_token_ids=[1, 5],
    )
    envs = make_vec(3, **given)
    recipe = env_recipe(envs, num_envs=5)
    left_out = {"self", "num_envs", "autoreset", "device", "arrays", "render_mode", "episode_statistics"}
    assert set(recipe.arguments) == set(inspect.signature(TextVectorEnv.__init__).parameters) - left_out
    copy = recipe.build("cpu")
    assert (copy.num_envs, copy.legality) == (5, envs.unwrapped.legality)
    assert (copy.max_length, copy.shuffle, copy.samples_per_prompt) == (envs.unwrapped.max_length, False, 2)
    assert copy.stop_strings.strings == ("ab",)
    assert not copy.has_partner


def test_a_copy_has_the_partner_too() -> None:
    made = {"tokenizer": TALKER, "rewards": [], "max_turns": 3, "max_turn_tokens": 2, "partner": Guess}
    envs = gym.make_vec("TextRLHF-v0", 2, **made)
    copy = pickle.loads(pickle.dumps(env_recipe(envs, num_envs=4))).build("cpu")

    def letters(obs: Any, info: Any) -> Any:
        return (info["key"] >> 8) % 10

    first, second = (collect(each, letters, 8, seed=1) for each in (envs, copy))
    assert first.input_ids.tolist() == second.input_ids.tolist() and first.extras == second.extras


def test_an_actor_follows_the_learners_weights() -> None:
    learner = LanguagePolicy(config(), value_head="separate", lora={"r": 2, "target_modules": ["c_attn"]})
    before = pack(learner)
    # Adapters alone: neither the frozen model nor the critic is sent.
    assert before and all("lora_" in name for name in before)
    recipes = (env_recipe(make_vec(4)), policy_recipe(learner))
    actor = RolloutActor(fetch=lambda reference: reference)
    call = dict(seed=0, first_ticket=3, episodes=8, rank=1, world_size=2, device="cpu", version=5)
    call |= {"sampling": {"greedy": False, "temperature": 0.5}, "recipe": recipes}
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if "lora_B" in name:
                parameter.add_(1.0)
    result = actor.generate(Work(weights=(pack(learner),), **call))
    learner.decoding.temperature = 0.5
    expected = collect(make_vec(4), learner, 8, seed=0, first_ticket=3, rank=1, world_size=2, score=False)
    expected.sampling["weights_version"] = 5
    check_same_episodes(result.episodes, expected, bitwise=True)
    assert (result.pid, result.seconds > 0) == (os.getpid(), True)


def test_weights_in_half_precision_travel_exactly() -> None:
    source, target = (LanguagePolicy(config(), value_head=True, seed=seed) for seed in (1, 2))
    for policy in (source, target):
        policy.model.bfloat16()
    sent = pack(source)
    unpack(target, sent)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    parameters = {id(parameter): parameter for parameter in source.parameters()}.values()
    assert sum(array.nbytes for array in sent.values()) == sum(
        p.numel() * p.element_size() for p in parameters
    )


# -- mistakes ------------------------------------------------------------------------------------------------


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    agent = make_agent("ppo", config(), envs=make_vec(2), rollouts=RayRollouts(), iterations=1)
    with pytest.raises(ImportError, match=r"pip install 'textenv\[ray\]'"):
        agent.collect()
    with pytest.raises(ImportError, match=r"pip install 'textenv\[ray\]'"):
        make_reward(["remote", {"of": "length"}])


def test_what_can_not_be_sent_says_what_to_do(actors: list[Any]) -> None:
    class Mine(TextVectorEnv):
        """An environment of the user's own."""

    own = Mine(2, prompts=PromptSet.from_texts(PROMPTS, TOKENIZER), tokenizer=TOKENIZER, max_new_tokens=3)
    with pytest.raises(ValueError, match=r"of the class Mine; .* gym id"):
        make(actors, envs=own, kl_coef=0.0).collect()
    locked = PromptSet.from_texts(PROMPTS, TOKENIZER, columns={"lock": [threading.Lock()] * len(PROMPTS)})
    envs = make_vec(2, prompts=locked, rewards=[])
    with pytest.raises(TypeError, match=r"environment can't be sent to actors \(.*lock.*\); .*gym id"):
        make(actors, envs=envs, kl_coef=0.0).collect()

    class Unregistered(RewardTerm):
        def score(self, episodes: EpisodeBatch) -> Tensor:
            return torch.ones(len(episodes))

    envs = make_vec(2, rewards=[Unregistered()])
    with pytest.raises(
        ValueError, match=r"'unregistered', which can't be written down; .*score_in_actors=False"
    ):
        make(actors, envs=envs, rollouts={"score_in_actors": True}).collect()
    envs = gym.wrappers.vector.ClipReward(make_vec(2), 0, 1)
    with pytest.raises(ValueError, match=r"ClipReward changes rewards in every step.* use a reward term"):
        make(actors, envs=envs).collect()


def test_settings_that_do_not_go_together(actors: list[Any]) -> None:
    with pytest.raises(ValueError, match="env_kwargs are arguments of env"):
        RayRollouts(env_kwargs={})
    with pytest.raises(ValueError, match=r"env must be None, got 'TextRLHF-v0'"):
        RayRollouts(score_in_actors=True, env="TextRLHF-v0")
    with pytest.raises(ValueError, match=r"num_actors must be <= episodes_per_iteration \(1\), got 2"):
        make(actors, episodes_per_iteration=1, minibatches=1).collect()
    with pytest.raises(ValueError, match=r"SFT learns offline, rollouts must be None"):
        SFT(config(), dataset=EpisodeBatch.from_ids([[1]], [[2]]), rollouts=RayRollouts())
    with pytest.raises(TypeError, match=r"rollouts must be RayRollouts, .* got int"):
        PPO(config(), envs=make_vec(2), rollouts=2)  # type: ignore[arg-type]
    assert isinstance(make_collector(RayRollouts(num_actors=0)), LocalCollector)


def test_rollouts_from_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from textenv.agents import training
    from textenv.agents.cli.main import main

    given: list[Any] = []

    def train(*args: Any, **kwargs: Any) -> Any:
        given.append(kwargs["rollouts"])
        raise ValueError("enough")

    monkeypatch.setattr(training, "train", train)
    monkeypatch.chdir(tmp_path)
    options = ["--rollouts.num_actors=3", "--rollouts.mode", "async", "--rollouts.num-cpus=0.5"]
    for more in ([], options):
        assert main(["train", "ppo", "--task=probe-end", *more]) == 1
    assert given == [None, RayRollouts(num_actors=3, mode="async", num_cpus=0.5)]


def test_an_agents_own_actors_are_stopped_at_the_end() -> None:
    """Started by the agent itself, and gone when it has learned; a connection that is there is used."""
    assert connect() is ray
    agent = make_agent(
        "ppo",
        config(),
        envs=make_vec(2),
        rollouts=RayRollouts(num_actors=1, num_cpus=CPUS),
        config=PPOConfig(iterations=1, episodes_per_iteration=4, minibatches=1),
    )
    pids: list[int] = []
    watch(agent, lambda agent, row: pids.extend(agent.collector.pids.values()))
    agent.learn()
    (pid,) = pids
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_the_blocks_of_the_page_on_ray_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page("docs/ray.md", tmp_path, monkeypatch)
