"""How often the host waits for the device while a rollout runs: once a token, to learn which texts ended."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from tests.helpers.env_helpers import EOS, V, vector_env
from tests.helpers.sync_helpers import ELSEWHERE, Accelerator
from textenv.envs.vector_env import TextVectorEnv
from textenv.generation.nucleus import Nucleus
from textenv.generation.policy import DecodingPolicy
from textenv.rollout import collect

SIZES: dict[str, Any] = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64, "vocab_size": V}


def model() -> nn.Module:
    torch.manual_seed(0)
    return tf.GPT2LMHeadModel(tf.GPT2Config(**SIZES, bos_token_id=EOS, eos_token_id=EOS)).eval()


def play(envs: TextVectorEnv, policy: DecodingPolicy, waits: list[Any], episodes: int) -> list[list[Any]]:
    """Play so many episodes; the waits of every ``act`` and ``step``, and whether rows were refilled."""
    policy.attach(envs)
    obs, info = envs.reset(seed=0, options={"episodes": episodes})
    rounds, active, refilled = [], True, True
    while active:
        before = len(waits)
        actions, known = policy.act(obs, info["key"], active=info["active"])
        between = len(waits)
        envs.record(**known)
        dealt = envs.episodes_started
        obs, _, _, _, info = envs.step(actions)
        rounds.append([refilled, waits[before:between], waits[between:]])
        refilled = envs.episodes_started > dealt
        active = bool(envs.host_mirror.active.any())
    return rounds


@pytest.mark.parametrize("options", [{}, {"greedy": True}, {"top_k": 3, "temperature": 0.7}], ids=str)
def test_the_host_waits_once_a_token_and_once_more_for_new_prompts(options: dict[str, Any]) -> None:
    with Accelerator() as device, torch.no_grad():
        policy = DecodingPolicy(device.move(model()), cuda_graphs=False, **options)
        envs = vector_env(4, device=ELSEWHERE, max_new_tokens=8)
        rounds = play(envs, policy, device.waits, episodes=12)
    assert len(rounds) > 8 and any(not refilled for refilled, _, _ in rounds)
    for refilled, in_act, in_step in rounds[1:]:
        assert in_step == ["to the host"]
        assert in_act in ([], ["to the host"]) and (refilled or not in_act)


def test_an_observation_that_the_environment_did_not_give_is_looked_at() -> None:
    with Accelerator() as device, torch.no_grad():
        policy = DecodingPolicy(device.move(model()), cuda_graphs=False)
        envs = vector_env(2, device=ELSEWHERE)
        policy.attach(envs)
        obs, info = envs.reset(seed=0)
        policy.act(obs, info["key"], active=info["active"])
        obs, _, _, _, info = envs.step([0, 1])
        device.waits.clear()
        policy.act({name: value.clone() for name, value in obs.items()}, info["key"], active=info["active"])
    assert device.waits == ["to the host"]


def test_the_accelerator_sees_every_way_to_wait_and_its_numbers_are_right() -> None:
    with Accelerator() as device:
        numbers = torch.tensor([3.0, 0.0, 4.0]).to(ELSEWHERE, non_blocking=True)
        assert not device.waits
        seen = [
            lambda: numbers[0].item(),
            lambda: bool(numbers.any()),
            lambda: numbers.cpu(),
            lambda: numbers.tolist(),
            lambda: numbers.nonzero(),
            lambda: numbers[numbers > 0],
            lambda: numbers[torch.tensor([0])],
            lambda: torch.tensor([1.0], device=ELSEWHERE),
            lambda: torch.ones(3).to(ELSEWHERE),
        ]
        for count, look in enumerate(seen, start=1):
            look()
            assert len(device.waits) == count
        assert (numbers * 2).norm().cpu() == 10.0
        with pytest.raises(RuntimeError, match="on the host and on the device"):
            numbers + torch.ones(3)


def test_what_the_host_knows_leads_to_the_same_tokens_as_looking() -> None:
    """Refills, parked rows, changed weights, another environment in between, an edited observation."""
    net = model()
    for seed in range(3):
        knowing, looking = DecodingPolicy(net), DecodingPolicy(net)
        envs, other = vector_env(3, max_new_tokens=6), vector_env(3, max_new_tokens=6)
        knowing.attach(envs)
        looking.attach(copy.copy(envs))
        looking._host_mirror = None
        obs, info = envs.reset(seed=seed, options={"episodes": 9})
        elsewhere, _ = other.reset(seed=9)
        for step in range(100):
            if not envs.host_mirror.active.any():
                break
            assert envs.host_mirror.is_current(obs, info["active"])
            if step == 3:
                net.transformer.wte.weight.data.mul_(1.1)
                knowing.invalidate()
                looking.invalidate()
            if step == 5:
                knowing.act(elsewhere, active=torch.ones(3, dtype=torch.bool))
            if step == 7:
                obs["input_ids"][info["active"], 0] = 2
                assert not envs.host_mirror.is_current(obs, info["active"])
            ours, theirs = (p.act(obs, info["key"], active=info["active"]) for p in (knowing, looking))
            assert torch.equal(ours[0], theirs[0])
            torch.testing.assert_close(ours[1]["log_prob"], theirs[1]["log_prob"], atol=1e-5, rtol=0)
            obs, _, _, _, info = envs.step(ours[0])
        else:
            pytest.fail("the episodes never ended")


def test_the_host_mirror_is_what_the_device_holds() -> None:
    envs = vector_env(3, autoreset="next_step")
    generator = torch.Generator().manual_seed(0)

    def check(obs: dict[str, Any], info: dict[str, Any]) -> None:
        assert envs.host_mirror.lengths.tolist() == obs["attention_mask"].sum(-1).tolist()
        assert envs.host_mirror.active.tolist() == info["active"].tolist()

    check(*envs.reset(seed=0))
    for step in range(30):
        obs, _, _, _, info = envs.step(torch.randint(V, (3,), generator=generator))
        check(obs, info)
        if step == 10:
            before = envs.host_mirror.version.copy()
            check(*envs.reset(options={"reset_mask": [False, True, False]}))
            assert (envs.host_mirror.version != before).tolist() == [False, True, False]
        if step == 20:
            check(*envs.reset(seed=1, options={"episodes": 2}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graphs", [True, False])
def test_cuda_sees_one_synchronisation_a_token(graphs: bool) -> None:
    envs = vector_env(4, device="cuda", max_new_tokens=8)
    policy = DecodingPolicy(model().cuda(), cuda_graphs=graphs)
    collect(envs, policy, 12, seed=0)  # captures graphs and self-checks
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            rounds = play(envs, policy, waits, episodes=12)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for refilled, in_act, in_step in rounds[1:]:
        assert len(in_step) == 1 and len(in_act) <= refilled, [str(w.message) for w in in_act + in_step]


def test_a_nucleus_costs_one_more_look() -> None:
    with Accelerator() as device, torch.no_grad():
        policy = DecodingPolicy(device.move(model()), cuda_graphs=False)
        policy.restriction = nucleus = Nucleus(device.move(model()), top_p=0.9, min_tokens=2)
        nucleus.decoding.cuda_graphs = False
        envs = vector_env(2, device=ELSEWHERE)
        rounds = play(envs, policy, device.waits, episodes=2)
    assert {len(in_act) for refilled, in_act, _ in rounds[1:] if not refilled} == {1}
