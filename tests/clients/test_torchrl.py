"""TorchRL: specs of single and vectorized environments, and what becomes of the ends of episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, GymWrapper, SerialEnv, check_env_specs

import textenv  # noqa: F401 - registers the environment

ID = "TextRLHF-v0"
PLAIN: dict[str, Any] = {"rewards": []}


def rows(autoreset: str, **changes: Any) -> Any:
    return gym.make_vec(ID, num_envs=3, arrays="numpy", autoreset=autoreset, **changes)


def upstream() -> Any:
    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
    return gym.make_vec(ID, num_envs=3, vectorization_mode="sync", vector_kwargs=mode)


def wrapped(env: Any) -> Any:
    return GymWrapper(env, categorical_action_encoding=True)


ENVIRONMENTS: dict[str, Callable[[], Any]] = {
    "by id": lambda: GymEnv(ID),
    "token ids": lambda: GymEnv(ID, categorical_action_encoding=True),
    "arguments": lambda: GymEnv(ID, task="probe-count", max_new_tokens=4),
    "repeated actions": lambda: GymEnv(ID, frame_skip=2),
    "pixels": lambda: GymEnv(ID, from_pixels=True),
    "wrapped": lambda: wrapped(gym.make(ID)),
    "without rewards": lambda: wrapped(gym.make(ID, **PLAIN)),
    "several": lambda: SerialEnv(2, lambda: GymEnv(ID, categorical_action_encoding=True)),
    "rows": lambda: wrapped(rows("disabled")),
    "rows, one-hot": lambda: GymWrapper(rows("disabled")),
    "rows, without rewards": lambda: wrapped(rows("disabled", **PLAIN)),
    "rows, with info": lambda: wrapped(rows("disabled")).auto_register_info_dict(),
    "rows, same step": lambda: wrapped(rows("same_step", episode_statistics=False)),
    "rows, same step, without rewards": lambda: wrapped(rows("same_step", episode_statistics=False, **PLAIN)),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_specs(name: str) -> None:
    check_env_specs(ENVIRONMENTS[name]())


@pytest.mark.parametrize("autoreset", ["disabled", "same_step"])
def test_specs_where_episodes_end_in_the_first_step(autoreset: str) -> None:
    """TorchRL tries one random step when it wraps rows; on this task about a third of the steps end one."""
    for seed in range(6):
        torch.manual_seed(seed)
        env = wrapped(rows(autoreset, task="probe-end", episode_statistics=autoreset == "disabled"))
        check_env_specs(env)
        env.rollout(8, break_when_any_done=False)


def test_statistics_in_same_step_mode_are_what_torchrl_cannot_read() -> None:
    """The same fails with Gymnasium's own statistics, so a change here is a change of TorchRL."""

    class Statistics(RecordEpisodeStatistics):
        autoreset_mode = AutoresetMode.SAME_STEP

    def gymnasiums() -> Any:
        mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
        changes: dict[str, Any] = {"task": "probe-end", "episode_statistics": False}
        return Statistics(
            gym.make_vec(ID, num_envs=3, vectorization_mode="sync", vector_kwargs=mode, **changes)
        )

    for make in (lambda: rows("same_step", task="probe-end"), gymnasiums):
        failures = 0
        for seed in range(6):
            torch.manual_seed(seed)
            try:
                check_env_specs(wrapped(make()))
            except (AttributeError, RuntimeError):
                failures += 1
        assert failures


def ended(env: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Texts before their last action, that action, texts after it, and the texts that came next."""
    env.set_seed(0)
    torch.manual_seed(0)
    data = env.rollout(30, break_when_any_done=False)
    over = data["next", "done"][:, :-1].squeeze(-1)
    now, coming = data[:, :-1][over], data[:, 1:][over]
    assert len(now) > 4
    return now["input_ids"], now["action"], now["next", "input_ids"], coming["input_ids"]


def test_disabled_keeps_final_observations() -> None:
    before, actions, final, coming = ended(wrapped(rows("disabled")))
    changed = before != final
    assert (changed.sum(-1) == 1).all()
    assert final[changed].equal(actions)
    assert not coming.equal(final)


def test_same_step_loses_them_as_gymnasiums_own_environments_do() -> None:
    """TorchRL looks for a final observation under the name "observation", which a dict does not have."""
    ours, theirs = ended(wrapped(rows("same_step", episode_statistics=False))), ended(wrapped(upstream()))
    assert not ours[2].any() and not theirs[2].any()
    for one, other in zip(ours, theirs, strict=True):
        assert one.equal(other)


def test_next_step_is_refused_by_torchrl() -> None:
    with pytest.raises(RuntimeError, match="auto-reset mode must be one of SAME_STEP or DISABLED"):
        wrapped(rows("next_step"))


def test_a_collector() -> None:
    collector = Collector(
        lambda: GymEnv(ID, categorical_action_encoding=True), None, frames_per_batch=16, total_frames=32
    )
    assert [batch.batch_size for batch in collector] == [torch.Size([16])] * 2
    collector.shutdown()
