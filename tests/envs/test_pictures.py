"""`render_mode="rgb_array"`: a text as a picture, and those who ask for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import AddRenderObservation, RecordVideo, RenderCollection
from gymnasium.wrappers import vector as vector_wrappers

from tests.helpers.env_helpers import EOS, MADE, make, make_vec
from textenv.envs.picture import (
    COLUMNS,
    HEADER,
    HEIGHT,
    LINES,
    PAPER,
    PROMPT,
    REPLY,
    RESPONSE,
    WIDTH,
    draw,
    layout,
    wrap,
)

FRAME = (HEIGHT, WIDTH, 3)


def plain(lines: list[Any]) -> list[str]:
    return ["".join(piece for piece, _ in line) for line in lines]


class TestLayout:
    def test_prompt_and_response_share_a_line(self) -> None:
        lines = layout("[3] (over)", "ab", "cd", "r=+1.000")
        assert lines == [
            [("[3] (over)", HEADER)],
            [("ab", PROMPT), ("cd", RESPONSE)],
            [("r=+1.000", HEADER)],
        ]

    @pytest.mark.parametrize("prompt", [0, 1, COLUMNS - 1, COLUMNS, COLUMNS + 1, 3 * COLUMNS])
    @pytest.mark.parametrize("response", [0, 1, COLUMNS, 2 * COLUMNS + 5])
    def test_lines_are_full_and_nothing_is_lost(self, prompt: int, response: int) -> None:
        lines = plain(wrap([("p" * prompt, PROMPT), ("r" * response, RESPONSE)]))
        assert "".join(lines) == "p" * prompt + "r" * response
        assert all(len(line) == COLUMNS for line in lines[:-1]) and len(lines[-1]) <= COLUMNS

    def test_what_is_too_long_shows_its_end(self) -> None:
        text = "".join(chr(ord("a") + i % 26) for i in range(COLUMNS * LINES * 2))
        lines = plain(layout("[0]", text, "THE END", "x" * COLUMNS * 9))
        assert len(lines) == LINES
        assert lines[0] == "[0]" and lines[1] == "..." and lines[-5].endswith("THE END")
        assert lines[-4:] == ["x" * COLUMNS] * 4
        assert "".join(lines[2:-4]) == (text + "THE END")[-len("".join(lines[2:-4])) :]


class TestFrames:
    def test_ink_is_where_the_text_is(self) -> None:
        frame = draw("[0]", "aaaa", "bb", "")
        assert frame.shape == FRAME and frame.dtype == np.uint8 and frame.flags.writeable
        ink = (frame != PAPER).any(-1)
        line = HEIGHT // LINES
        assert ink[:line].any() and ink[line : 2 * line].any() and not ink[2 * line :].any()
        assert not ink[line : 2 * line, WIDTH // 8 :].any()  # six of 64 characters
        assert (draw("", "", "", "") == 255).all()

    def test_the_widest_line_fits(self) -> None:
        ink = (draw("", "W" * COLUMNS * (LINES - 1), "", "") != PAPER).any(-1)
        assert not ink[:, :2].any() and not ink[:, -2:].any()

    @pytest.mark.parametrize("text", ["", "日本語 🙂 عربى", "é\u0301" * 30, "\ufffd\ud800"])
    def test_any_text_is_drawn(self, text: str) -> None:
        assert draw(text, text, text, text).shape == FRAME

    def test_the_single_environment(self) -> None:
        env = make(render_mode="rgb_array")
        env.reset(seed=0)
        before: Any = env.render()
        assert before.shape == FRAME and np.array_equal(before, env.render())
        env.step(1)
        after: Any = env.render()
        assert not np.array_equal(before, after)
        env.step(EOS)
        assert env.render().shape == FRAME  # type: ignore[union-attr]
        assert {"ansi", "human", "rgb_array"} == set(env.metadata["render_modes"])

    def test_the_vectorized_one_gives_a_frame_a_row(self) -> None:
        """As SyncVectorEnv of the same rows does."""
        native = make_vec(3, render_mode="rgb_array")
        upstream = make_vec(3, "sync", render_mode="rgb_array")
        for envs in (native, upstream):
            envs.reset(seed=1)
            envs.step(np.array([1, 2, 3]))
        ours, theirs = native.render(), upstream.render()
        assert isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == 3
        for mine, other in zip(ours, theirs, strict=True):
            assert np.array_equal(mine, other)
        assert not np.array_equal(ours[0], ours[1])

    def test_a_parked_row_says_so(self) -> None:
        envs = make_vec(2, render_mode="rgb_array")
        envs.reset(seed=0, options={"episodes": 1})
        assert np.array_equal(envs.render()[1], draw("(no episode)", "", "", ""))


class TestWhoAsks:
    def test_sb3_makes_it_by_id(self) -> None:
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env

        rows = make_vec_env("TextRLHF-v0", n_envs=2, env_kwargs=MADE)
        rows.reset()
        assert rows.render_mode == "rgb_array"
        assert [image.shape for image in rows.get_images()] == [FRAME] * 2  # type: ignore[union-attr]
        learner = PPO("MultiInputPolicy", "TextRLHF-v0", n_steps=8, batch_size=8, n_epochs=1, device="cpu")
        assert learner.learn(8).num_timesteps == 8

    def test_gymnasiums_wrappers(self) -> None:
        frames = RenderCollection(make(render_mode="rgb_array"))
        frames.reset(seed=0)
        frames.step(1)
        assert [frame.shape for frame in frames.render()] == [FRAME] * 2  # type: ignore[union-attr]
        pixels = AddRenderObservation(make(render_mode="rgb_array"))
        assert pixels.reset(seed=0)[0].shape == FRAME
        collected = gym.make("TextRLHF-v0", render_mode="rgb_array_list", **MADE)
        collected.reset(seed=0)
        assert len(collected.render()) == 1  # type: ignore[arg-type]

    def test_videos(self, tmp_path: Path) -> None:
        pytest.importorskip("moviepy", reason="Gymnasium writes videos with moviepy")
        env = RecordVideo(make(render_mode="rgb_array"), str(tmp_path / "single"))
        env.reset(seed=0)
        for action in (1, 2, EOS):
            env.step(action)
        env.close()
        envs = make_vec(2, render_mode="rgb_array", arrays="numpy", autoreset="next_step")
        envs = vector_wrappers.RecordVideo(envs, str(tmp_path / "rows"))
        envs.reset(seed=0)
        for action in (1, 2, EOS):
            envs.step([action] * 2)
        envs.close()
        for folder in ("single", "rows"):
            assert (tmp_path / folder / "rl-video-episode-0.mp4").stat().st_size > 0


def test_turns_begin_lines_and_have_colours() -> None:
    lines = layout("[0]", "ab", "", "", [("policy: 1", True), ("user: lower", False), ("policy: 2", True)])
    assert plain(lines) == ["[0]", "ab", "policy: 1", "user: lower", "policy: 2"]
    assert [line[0][1] for line in lines[1:]] == [PROMPT, RESPONSE, REPLY, RESPONSE]
