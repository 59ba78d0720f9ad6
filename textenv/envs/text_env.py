"""`TextEnv`: one text at a time, a numpy view of a one-row `TextVectorEnv`, so the two can't differ."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from textenv.envs.hooks import EnvHooks
from textenv.envs.observation_source import remember_source
from textenv.envs.rendering import RENDER_FPS, RENDER_MODES
from textenv.envs.vector_env import TextVectorEnv
from textenv.utils.checks import check_seed
from textenv.utils.deprecation import warn_renamed
from textenv.utils.names import shown

SHARED_ATTRIBUTES = frozenset(
    {name for name in dir(EnvHooks) if not name.startswith("_")}
    | {"prompts", "tokenizer", "max_new_tokens", "max_length", "legality", "stop_strings", "device"}
    | {"samples_per_prompt", "shuffle", "episode_statistics", "host_mirror"}
    | {"scored_by", "refuse_while_scored"}
)
"""Attributes of the one-row vectorized environment that a single environment has, too."""


class TextEnv(gym.Env[dict[str, Any], Any]):
    """One episode of text generation at a time, token by token.

    Takes the arguments of ``TextVectorEnv`` except ``num_envs``, ``autoreset`` and ``arrays``.
    Observations are numpy arrays, info holds numpy scalars. ``reset`` without a seed starts the
    next episode of the stream. The methods of ``EnvHooks`` are those of the one-row environment underneath.

    Example:
        >>> from textenv.prompts.prompt_set import PromptSet
        >>> from textenv.tasks.letters import letter_tokenizer
        >>> tokenizer = letter_tokenizer("abc")
        >>> env = TextEnv(prompts=PromptSet([[0]]), tokenizer=tokenizer, max_new_tokens=3, render_mode="ansi")
        >>> obs, info = env.reset(seed=0)
        >>> obs, reward, terminated, truncated, info = env.step(2)
        >>> obs["input_ids"].tolist(), int(obs["prompt_length"]), env.render()
        ([0, 2, 5, 5], 1, '[0] a | c')
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": RENDER_FPS}  # noqa: RUF012 - Gymnasium's way

    def __init__(self, **kwargs: Any) -> None:
        self.rows = TextVectorEnv(1, autoreset="disabled", arrays="numpy", **kwargs)
        """The one-row environment underneath, which reward terms and policies use."""
        self.observation_space = self.rows.single_observation_space
        self.action_space = self.rows.single_action_space
        self.render_mode = self.rows.render_mode
        self._info: dict[str, Any] = {}
        self._over: bool | None = None

    def __getattr__(self, name: str) -> Any:
        # No attribute of vectorized environments may come through (num_envs, autoreset_mode, ...): libraries
        # take an environment that has one for a batch.
        if name not in SHARED_ATTRIBUTES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.rows, name)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the next episode, or with a seed the first one of that stream.

        Raises:
            ValueError: if options are given; they belong to the vector environment.
        """
        if seed is not None:
            seed = check_seed("seed", seed)
        if options:
            raise ValueError(f"options must be empty for a single environment, got {shown(options)}")
        super().reset(seed=seed)
        if seed is None and self.rows.stream_seed is None:
            seed = int(self.np_random.integers(2**31))
        observation, info = self.rows.reset(seed=seed)
        self._over = False
        self._info = _first(info)
        return remember_source(self.rows, _first(observation)), self._info

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Append one token.

        Args:
            action: a token id in [0, V).

        Raises:
            ResetNeeded: before the first reset, or when the episode is over.
            TypeError: if the action is not an integer.
            ValueError: if it is not a single legal token id.
        """
        if self._over is None:
            raise ResetNeeded("step() was called before reset(); call env.reset(seed=...) first")
        if self._over:
            raise ResetNeeded("the episode is over; call env.reset() to start the next one")
        array = action.cpu().numpy() if hasattr(action, "cpu") else np.asarray(action)
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"action must be an integer (a token id), got {action!r}")
        if array.size != 1:
            raise ValueError(f"action must be one token id, got shape {array.shape}")
        observation, reward, terminated, truncated, info = self.rows.step(array.reshape(1))
        self._over = bool(terminated[0] or truncated[0])
        self._info = _first(info)
        obs = remember_source(self.rows, _first(observation))
        return obs, float(reward[0]), bool(terminated[0]), bool(truncated[0]), self._info

    def pay(self, name: str, values: Any) -> None:
        """Old name of ``add_reward``."""
        warn_renamed("pay", "add_reward")
        self.add_reward(name, values)

    def add_reward(self, name: str, values: Any) -> None:
        """Add a reward term for the last step, see ``EnvHooks.add_reward``."""
        self.rows.add_reward(name, values)
        ended = self.rows.finished_episodes
        if ended is not None and "episode" in self._info:
            self._info["episode"]["r"] = ended.returns.cpu().numpy()[0]

    def action_masks(self) -> np.ndarray:
        """Which tokens are legal now: (V,) bool, under the name that sb3-contrib asks for.

        ``env.action_space.sample(mask=env.action_masks().astype("int8"))`` draws a legal token.
        """
        masks: np.ndarray = self.rows.action_masks()
        return masks[0]

    def render(self) -> Any:
        """The text so far: a string ("ansi"), (H, W, 3) uint8 ("rgb_array"), or None, printed ("human")."""
        frames = self.rows.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Release the environment."""
        self.rows.close()


def _first(batched: dict[str, Any]) -> dict[str, Any]:
    """Row 0 of batched numpy values, without the ``_key`` masks."""
    firsts: dict[str, Any] = {}
    for name, value in batched.items():
        if name.startswith("_"):
            continue
        first = _first(value) if isinstance(value, dict) else value[0]
        # Gymnasium's vectorizers keep Python's bool in a bool array and numpy's in an object array.
        firsts[name] = bool(first) if isinstance(first, np.bool_) else first
    return firsts
