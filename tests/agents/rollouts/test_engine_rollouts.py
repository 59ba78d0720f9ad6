"""Responses from an engine: the environment ends and scores them; log-probs and weights are the policy's."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import GPT2Config

from tests.helpers.engine_helpers import TransformersEngine
from tests.helpers.env_helpers import EOS, TOKENIZER, V, make_vec, vector_env
from tests.helpers.partners import TALKER, Guess
from textenv.agents import PPO, EngineCollector, EngineRollouts, PPOConfig, Reinforce, ReinforceConfig
from textenv.agents.nlpo import NLPO, NLPOConfig
from textenv.agents.rollouts.vllm_engine import EngineSampling, Response, VLLMEngine
from textenv.envs.vector_env import TextVectorEnv
from textenv.generation.replay import Replay
from textenv.rollout import collect

SETTINGS: dict[str, Any] = {
    "iterations": 3,
    "episodes_per_iteration": 12,
    "epochs": 1,
    "minibatches": 2,
    "learning_rate": 1e-2,
    "importance_correction": "token",
    "report": False,
}


def config(**changes: Any) -> GPT2Config:
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32, "initializer_range": 0.3}
    return GPT2Config(**{**sizes, "vocab_size": V, "bos_token_id": EOS, "eos_token_id": EOS, **changes})


def ppo(envs: Any, engine: Any = None, model: Any = None, **changes: Any) -> PPO:
    """A small PPO whose responses an engine on transformers writes."""
    options = {name: changes.pop(name) for name in ("policy_kwargs", "callbacks") if name in changes}
    rollouts = EngineCollector(engine=TransformersEngine() if engine is None else engine)
    settings = PPOConfig(**{**SETTINGS, **changes})
    return PPO(model or config(), envs=envs, config=settings, rollouts=rollouts, **options)


def test_the_environment_judges_and_the_log_probs_are_the_policys() -> None:
    agent = ppo(make_vec(3, samples_per_prompt=2))
    episodes = agent.collect()
    by_hand = collect(make_vec(3, samples_per_prompt=2), agent.policy, 12, seed=0, first_ticket=0)
    assert episodes.episode_id.tolist() == list(range(12))
    assert torch.equal(episodes.prompt_index, by_hand.prompt_index)
    assert torch.equal(episodes.prompt_lengths, by_hand.prompt_lengths)
    last = episodes.input_ids.gather(1, episodes.last_action.unsqueeze(-1)).squeeze(-1)
    assert torch.equal(episodes.terminated, last == EOS)
    assert torch.equal(episodes.truncated, ~episodes.terminated)
    assert (episodes.response_lengths[episodes.truncated] == 5).all()
    assert episodes.terminated.any() and episodes.truncated.any()
    torch.testing.assert_close(episodes.log_probs, agent.policy.log_prob(episodes), atol=1e-5, rtol=0)
    assert (episodes.log_probs[episodes.action_mask] < 0).all()
    assert episodes.sampling["engine"] == "TransformersEngine"
    assert episodes.sampling["weights_version"] == agent.policy.weights_version
    assert not episodes.reward_terms
    agent.score(episodes)
    assert {"length", "repetition"} <= set(episodes.reward_terms)
    # Paid in every step, on the same tokens said by hand, the rewards are the same.
    said = [row[mask].tolist() for row, mask in zip(episodes.input_ids, episodes.action_mask, strict=True)]
    replay = Replay(
        seed=0,
        episode_ids=np.arange(12),
        responses=said,
        log_probs=[[0.0] * len(tokens) for tokens in said],
        max_new_tokens=5,
        sampling={},
    )
    paid = collect(make_vec(5, samples_per_prompt=2), replay, 12, seed=0, scoring="immediate")
    assert torch.equal(paid.input_ids, episodes.input_ids)
    for name in ("length", "repetition"):
        torch.testing.assert_close(paid.reward_terms[name], episodes.reward_terms[name])


@pytest.mark.parametrize("lora", [False, {"r": 2, "init_lora_weights": False}], ids=["whole", "lora"])
def test_every_iteration_plays_with_the_weights_of_the_moment(lora: Any) -> None:
    engine, seen = TransformersEngine(), []

    def look(agent: Any, metrics: dict[str, float]) -> None:
        batch = agent.last_batch
        weights = batch["importance_weights"][batch.mask]
        seen.append((batch.episodes.sampling["weights_version"], float((weights - 1).abs().max())))
        assert {"rollout/generate", "rollout/load_weights", "importance/weight"} <= set(metrics)
        assert metrics["rollout/tokens_dropped"] == 0.0

    agent = ppo(make_vec(4), engine, callbacks=[look], policy_kwargs={"lora": lora})
    before = [p.clone() for p in agent.parameters]
    agent.learn()
    assert any(not torch.equal(one, other) for one, other in zip(before, agent.parameters, strict=True))
    versions, off = zip(*seen, strict=True)
    assert len(set(versions)) == 3 and max(off) < 1e-4
    assert engine.calls == ["load", "generate"] * 3


def test_a_run_is_a_function_of_its_seed_and_of_the_episode_ids() -> None:
    first, again, other = (ppo(make_vec(rows), seed=seed) for rows, seed in ((4, 0), (3, 0), (4, 1)))
    episodes = [agent.collect() for agent in (first, again, other)]
    assert torch.equal(episodes[0].input_ids, episodes[1].input_ids)
    assert not torch.equal(episodes[0].prompt_index, episodes[2].prompt_index)
    following = first.collect()
    assert following.episode_id.tolist() == list(range(12, 24))
    assert not torch.equal(following.prompt_index, episodes[0].prompt_index)
    assert (
        first.collector.collect(first.rollout_request(0)).input_ids.tolist() == episodes[0].input_ids.tolist()
    )


def test_legality_temperature_and_the_greedy_baseline() -> None:
    rule: dict[str, Any] = {"min_new_tokens": 2, "suppressed_tokens": [0, 3]}
    wide = config(vocab_size=V + 5)
    agent = ppo(make_vec(4, **rule), model=wide, policy_kwargs={"temperature": 0.7})
    episodes = agent.collect()
    actions = episodes.input_ids[episodes.action_mask]
    assert not {0, 3, *range(V, V + 5)} & set(actions.tolist())
    assert int(episodes.response_lengths[episodes.terminated].min()) >= 3
    torch.testing.assert_close(episodes.log_probs, agent.policy.log_prob(episodes), atol=1e-5, rtol=0)
    settings = ReinforceConfig(**{**SETTINGS, "baseline": "greedy"})
    greedy = Reinforce(
        config(), envs=make_vec(4), config=settings, rollouts=EngineCollector(engine=TransformersEngine())
    )
    greedy.learn()
    assert greedy.iteration == 3


def test_the_environment_ends_texts_that_the_engine_does_not() -> None:
    agent = ppo(make_vec(3, stop_strings=["b"]))
    episodes = agent.collect()
    said = [row[mask].tolist() for row, mask in zip(episodes.input_ids, episodes.action_mask, strict=True)]
    ended = ["b" in TOKENIZER.decode(tokens) for tokens in said]
    assert any(ended) and not all(ended)
    assert not any("b" in TOKENIZER.decode(tokens[:-1]) for tokens in said)
    right = [end or tokens[-1] == EOS for end, tokens in zip(ended, said, strict=True)]
    assert episodes.terminated.tolist() == right
    assert agent.collector.metrics["rollout/tokens_dropped"] > 0


def test_sleep_between_rollouts() -> None:
    engine = TransformersEngine()
    collector = EngineCollector(EngineRollouts(sleep=True), engine)
    agent = PPO(
        config(), envs=make_vec(3), config=PPOConfig(**{**SETTINGS, "iterations": 2}), rollouts=collector
    )
    agent.learn()
    assert engine.calls == ["load", "generate", "sleep", "wake", "load", "generate", "sleep"]


class Short(TransformersEngine):
    """Stops before the environment does."""

    def generate(self, prompts: Any, sampling: EngineSampling) -> list[Response]:
        return [Response([1], [-0.5]) for _ in super().generate(prompts, sampling)]


def test_responses_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the response of episode \d+ ends after 1 tokens"):
        ppo(make_vec(3), Short()).collect()
    fixed: dict[str, Any] = {"seed": 0, "episode_ids": np.arange(1), "max_new_tokens": 5, "sampling": {}}
    with pytest.raises(ValueError, match="a response with log-probs for each of 1 episodes, got 0"):
        Replay(responses=[], log_probs=[], **fixed)
    with pytest.raises(ValueError, match="episode 0 must have a log-prob for each of its 2 tokens, got 1"):
        Replay(responses=[[1, 2]], log_probs=[[0.0]], **fixed)
    replay = Replay(responses=[[1, EOS]], log_probs=[[-1.0, -2.0]], **fixed)
    with pytest.raises(ValueError, match="a token of an episode that has no response here"):
        collect(vector_env(2), replay, 2, seed=0, first_ticket=0)
    found = collect(vector_env(2), replay, 1, seed=0, first_ticket=0)
    assert found.input_ids[found.action_mask].tolist() == [1, EOS]
    assert found.log_probs[found.action_mask].tolist() == [-1.0, -2.0]


class Conversation(TextVectorEnv):
    """Stands for an environment with several turns."""


class Shouting(gym.vector.VectorWrapper):
    """Stands for a wrapper that changes observations."""


def test_what_no_engine_can_play_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = vector_env(3)
    talk = Conversation(3, prompts=base.prompts, tokenizer=TOKENIZER, max_new_tokens=5)
    with pytest.raises(ValueError, match=r"envs must be TextVectorEnv, got Conversation, .* may do more"):
        ppo(talk, kl_coef=0.0).collect()
    with pytest.raises(ValueError, match="does not apply the wrapper Shouting"):
        ppo(Shouting(make_vec(3))).collect()
    settings = NLPOConfig(**{**SETTINGS, "importance_correction": "none"})
    agent = NLPO(
        config(), envs=make_vec(3), config=settings, rollouts=EngineCollector(engine=TransformersEngine())
    )
    with pytest.raises(ValueError, match="logits processor or a nucleus"):
        agent.collect()
    with pytest.warns(UserWarning, match="set importance_correction='token'"):
        ppo(make_vec(3), importance_correction="none").collect()
    real = builtins.__import__

    def without_vllm(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "vllm":
            raise ImportError("no vllm here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_vllm)
    with pytest.raises(ImportError, match=r"pip install 'textenv\[vllm\]'"):
        VLLMEngine(Path("nowhere"), max_length=8)
    starting = PPO(config(), envs=make_vec(3), config=PPOConfig(**SETTINGS), rollouts=EngineRollouts())
    with pytest.raises(ImportError, match="rollouts by vLLM need vllm"):
        starting.collect()


def turn_envs(num_envs: int = 3, **changes: Any) -> Any:
    made = {"tokenizer": TALKER, "rewards": [], "max_turns": 3, "max_turn_tokens": 3, "partner": Guess}
    return gym.make_vec("TextRLHF-v0", num_envs, **{**made, **changes})


def talker() -> GPT2Config:
    eos, bos = TALKER.eos_token_id, TALKER.bos_token_id
    return config(vocab_size=len(TALKER), n_positions=64, bos_token_id=bos, eos_token_id=eos)


def test_an_engine_writes_turn_by_turn() -> None:
    engine = TransformersEngine()
    agent = ppo(turn_envs(min_new_tokens=1), engine, talker())
    episodes = agent.collect()
    assert episodes.episode_id.tolist() == list(range(12)) and engine.calls.count("generate") > 3
    torch.testing.assert_close(episodes.log_probs, agent.policy.log_prob(episodes), atol=1e-5, rtol=0)
    assert max(map(len, episodes.extras["turns"])) > 1
    metrics = agent.collector.metrics
    assert metrics["rollout/tokens_dropped"] == 0 and metrics["rollout/generate"] > 0


@pytest.mark.parametrize("stop", [[], ["7"]])
def test_greedy_turns_of_an_engine_are_those_of_the_policy(stop: list[str]) -> None:
    made = {"stop_strings": stop, "max_turn_tokens": 4}
    agent = ppo(turn_envs(**made), model=talker(), policy_kwargs={"greedy": True})
    found = agent.collect()
    by_hand = collect(turn_envs(5, **made), agent.policy, 12, seed=0, first_ticket=0)
    assert found.input_ids.tolist() == by_hand.input_ids.tolist()
    assert found.action_mask.tolist() == by_hand.action_mask.tolist() and found.extras == by_hand.extras
    assert found.reward_terms["partner"].tolist() == by_hand.reward_terms["partner"].tolist()
