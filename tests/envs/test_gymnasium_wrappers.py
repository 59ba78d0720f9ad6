"""Every wrapper of Gymnasium plays on the environment, or cannot for the reason in docs/works_with.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers as single
from gymnasium.wrappers import vector

from tests.helpers.doc_blocks import sections_of
from tests.helpers.env_helpers import make, make_vec, random_actions

NEEDS = {
    "ArrayConversion": "array_api_compat",
    "NumpyToTorch": "array_api_compat",
    "HumanRendering": "pygame",
    "RecordVideo": "moviepy",
    "ResizeObservation": "cv2",
}
"""The package that a wrapper imports beyond Gymnasium's own."""


def flat(**changes: Any) -> Any:
    return single.FlattenObservation(make(**changes))


def drawn() -> Any:
    return make(render_mode="rgb_array")


def pixels() -> Any:
    return single.AddRenderObservation(drawn())


PLAYS: dict[str, Callable[[Path], Any]] = {
    "AddRenderObservation": lambda _: pixels(),
    "AddWhiteNoise": lambda _: single.AddWhiteNoise(drawn(), probability_of_noise_per_pixel=0.1),
    "ArrayConversion": lambda _: single.ArrayConversion(make(), env_xp=np, target_xp=torch),
    "Autoreset": lambda _: single.Autoreset(make()),
    "ClipReward": lambda _: single.ClipReward(make(), 0, 0.5),
    "DelayObservation": lambda _: single.DelayObservation(make(), delay=1),
    "DtypeObservation": lambda _: single.DtypeObservation(flat(), np.float32),
    "FilterObservation": lambda _: single.FilterObservation(make(), ["input_ids"]),
    "FlattenObservation": lambda _: flat(),
    "FrameStackObservation": lambda _: single.FrameStackObservation(make(), 2),
    "GrayscaleObservation": lambda _: single.GrayscaleObservation(pixels()),
    "HumanRendering": lambda _: single.HumanRendering(drawn()),
    "MaxAndSkipObservation": lambda _: single.MaxAndSkipObservation(flat(), 2),
    "NormalizeObservation": lambda _: single.NormalizeObservation(flat()),
    "NormalizeReward": lambda _: single.NormalizeReward(make()),
    "NumpyToTorch": lambda _: single.NumpyToTorch(make()),
    "ObstructView": lambda _: single.ObstructView(drawn(), obstructed_pixels_ratio=0.1, obstruction_width=4),
    "OrderEnforcing": lambda _: single.OrderEnforcing(make()),
    "PassiveEnvChecker": lambda _: single.PassiveEnvChecker(make()),
    "RecordEpisodeStatistics": lambda _: single.RecordEpisodeStatistics(make(episode_statistics=False)),
    "RecordVideo": lambda folder: single.RecordVideo(drawn(), str(folder)),
    "RenderCollection": lambda _: single.RenderCollection(drawn()),
    "RepeatAction": lambda _: single.RepeatAction(make(), 2),
    "RescaleObservation": lambda _: single.RescaleObservation(flat(), np.float32(0), np.float32(1)),
    "ReshapeObservation": lambda _: single.ReshapeObservation(flat(), (1, *flat().observation_space.shape)),
    "ResizeObservation": lambda _: single.ResizeObservation(pixels(), (32, 64)),
    "StickyAction": lambda _: single.StickyAction(make(), 0.5),
    "TimeAwareObservation": lambda _: single.TimeAwareObservation(single.TimeLimit(make(), 9)),
    "TimeLimit": lambda _: single.TimeLimit(make(), 9),
    "TransformAction": lambda _: single.TransformAction(make(), lambda action: action, None),
    "TransformObservation": lambda _: single.TransformObservation(make(), lambda obs: obs, None),
    "TransformReward": lambda _: single.TransformReward(make(), lambda reward: 2 * reward),
}
REFUSES: dict[str, tuple[Callable[[], Any], str | None]] = {
    "AtariPreprocessing": (lambda: single.AtariPreprocessing(drawn()), "frame-skip|opencv"),
    "ClipAction": (lambda: single.ClipAction(make()), "requires a Box action space"),
    "DiscretizeAction": (lambda: single.DiscretizeAction(make(), 3), "continuous actions"),
    "DiscretizeObservation": (lambda: single.DiscretizeObservation(make(), 3), "continuous observations"),
    "JaxToNumpy": (lambda: single.JaxToNumpy(make()), None),
    "JaxToTorch": (lambda: single.JaxToTorch(make()), None),
    "RescaleAction": (lambda: single.RescaleAction(make(), 0, 1), "requires a Box action space"),
}


def rows(**changes: Any) -> Any:
    return make_vec(2, arrays="numpy", **changes)


def flat_rows(**changes: Any) -> Any:
    return vector.FlattenObservation(rows(**changes))


def of_drawn_rows(wrapper: Any, *arguments: Any, **changes: Any) -> Any:
    return wrapper(rows(render_mode="rgb_array", **changes), *arguments)


IN_EVERY_MODE: dict[str, Callable[..., Any]] = {
    "ClipReward": lambda _, **mode: vector.ClipReward(rows(**mode), 0, 0.5),
    "DictInfoToList": lambda _, **mode: vector.DictInfoToList(rows(**mode)),
    "HumanRendering": lambda _, **mode: of_drawn_rows(vector.HumanRendering, **mode),
    "NormalizeReward": lambda _, **mode: vector.NormalizeReward(rows(**mode)),
    "RecordEpisodeStatistics": lambda _, **mode: vector.RecordEpisodeStatistics(
        rows(episode_statistics=False, **mode)
    ),
    "RecordVideo": lambda folder, **mode: of_drawn_rows(vector.RecordVideo, str(folder), **mode),
    "TransformAction": lambda _, **mode: vector.TransformAction(rows(**mode), lambda actions: actions),
    "TransformReward": lambda _, **mode: vector.TransformReward(rows(**mode), lambda rewards: 2 * rewards),
    "VectorizeTransformAction": lambda _, **mode: vector.VectorizeTransformAction(
        rows(**mode), single.TransformAction, func=lambda action: action, action_space=None
    ),
    "VectorizeTransformReward": lambda _, **mode: vector.VectorizeTransformReward(
        rows(**mode), single.TransformReward, func=lambda reward: reward
    ),
}
NOT_IN_SAME_STEP: dict[str, Callable[..., Any]] = {
    "ArrayConversion": lambda _, **mode: vector.ArrayConversion(rows(**mode), env_xp=np, target_xp=torch),
    "DtypeObservation": lambda _, **mode: vector.DtypeObservation(flat_rows(**mode), np.float32),
    "FilterObservation": lambda _, **mode: vector.FilterObservation(rows(**mode), ["input_ids"]),
    "FlattenObservation": lambda _, **mode: flat_rows(**mode),
    "NormalizeObservation": lambda _, **mode: vector.NormalizeObservation(flat_rows(**mode)),
    "NumpyToTorch": lambda _, **mode: vector.NumpyToTorch(rows(**mode)),
    "RescaleObservation": lambda _, **mode: vector.RescaleObservation(flat_rows(**mode), 0, 1),
    "ReshapeObservation": lambda _, **mode: vector.ReshapeObservation(
        flat_rows(**mode), (1, *flat_rows(**mode).single_observation_space.shape)
    ),
    "TransformObservation": lambda _, **mode: vector.TransformObservation(rows(**mode), lambda obs: obs),
    "VectorizeTransformObservation": lambda _, **mode: vector.VectorizeTransformObservation(
        rows(**mode), single.FilterObservation, filter_keys=["input_ids"]
    ),
}
ROWS_REFUSE: dict[str, tuple[Callable[[], Any], str | None]] = {
    "ClipAction": (lambda: vector.ClipAction(rows()), "requires a Box action space"),
    "GrayscaleObservation": (
        lambda: vector.GrayscaleObservation(rows(autoreset="next_step")),
        "requires a Box observation space",
    ),
    "JaxToNumpy": (lambda: vector.JaxToNumpy(rows()), None),
    "JaxToTorch": (lambda: vector.JaxToTorch(rows()), None),
    "RescaleAction": (lambda: vector.RescaleAction(rows(), 0, 1), "requires a Box action space"),
    "ResizeObservation": (
        lambda: vector.ResizeObservation(rows(autoreset="next_step"), (3, 3)),
        "requires a Box observation space|opencv",
    ),
}
TENSORS = ("ArrayConversion", "NumpyToTorch")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(gym.logger, "min_level", gym.logger.ERROR)


def require(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} needs {NEEDS[name]}; make test-clients has it")


@pytest.mark.parametrize("name", PLAYS)
def test_single(name: str, tmp_path: Path) -> None:
    require(name)
    env = PLAYS[name](tmp_path)
    env.reset(seed=0)
    ends = 0
    for action in random_actions(15, 1)[:, 0]:
        observation, _, terminated, truncated, _ = env.step(
            torch.as_tensor(action) if name in TENSORS else action
        )
        over = bool(terminated or truncated)
        ends += over
        if over and name != "Autoreset":
            env.reset()
    if name not in TENSORS:
        assert env.observation_space.contains(observation)
    env.close()
    assert ends > 1


@pytest.mark.parametrize("name", REFUSES)
def test_single_refuses(name: str) -> None:
    make_it, message = REFUSES[name]
    with pytest.raises(Exception, match=message):
        make_it().reset()


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
@pytest.mark.parametrize("name", [*IN_EVERY_MODE, *NOT_IN_SAME_STEP])
def test_rows(name: str, autoreset: str, tmp_path: Path) -> None:
    require(name)
    every = {**IN_EVERY_MODE, **NOT_IN_SAME_STEP}
    if autoreset == "same_step" and name in NOT_IN_SAME_STEP:
        words = "DLPack" if name in TENSORS else "Expected autoreset_mode to be"
        with pytest.raises(Exception, match=words):
            play(every[name](tmp_path, autoreset=autoreset), name)
        return
    play(every[name](tmp_path, autoreset=autoreset), name)


def play(envs: Any, name: str) -> None:
    envs.reset(seed=0)
    ends = 0
    for actions in random_actions(15, 2):
        observation, rewards, terminated, truncated, info = envs.step(
            torch.as_tensor(actions) if name in TENSORS else actions
        )
        assert len(rewards) == 2 and (name != "DictInfoToList" or len(info) == 2)
        ends += int((terminated | truncated).sum())
    if name not in TENSORS:
        assert envs.observation_space.contains(observation)
    envs.close()
    assert ends > 1


@pytest.mark.parametrize("name", ROWS_REFUSE)
def test_rows_refuse(name: str) -> None:
    make_it, message = ROWS_REFUSE[name]
    with pytest.raises(Exception, match=message):
        make_it().reset()


def test_what_a_list_of_infos_says() -> None:
    """The same as the single environments, with final_obs and final_info in the rows that ended alone."""
    envs = vector.DictInfoToList(rows())
    _, infos = envs.reset(seed=0)
    assert [set(info) for info in infos] == [{"key", "episode_id", "prompt_index", "active"}] * 2  # type: ignore[arg-type]
    end = envs.unwrapped.tokenizer.eos_token_id  # type: ignore[attr-defined]
    infos = envs.step([end, 0])[-1]
    assert set(infos[0]) - set(infos[1]) == {"final_obs", "final_info", "episode"}  # type: ignore[arg-type]
    assert infos[0]["final_info"]["episode"]["l"] == infos[0]["episode"]["l"] == 1
    assert infos[0]["final_info"]["episode_id"] == 0 and infos[0]["episode_id"] == 1


def test_the_page_names_every_wrapper() -> None:
    page = sections_of("docs/works_with.md")["Gymnasium's wrappers"]
    names = set(re.findall(r"`(\w+)`", page))
    assert {*PLAYS, *REFUSES} == {*single.__all__} - {"vector"} <= names
    assert {*IN_EVERY_MODE, *NOT_IN_SAME_STEP, *ROWS_REFUSE} == {*vector.__all__} <= names
