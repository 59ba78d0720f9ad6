"""Environments of other libraries as partners, and environments with a partner as games of strings.

``from_step`` takes any object with ``reset`` and ``step`` by the shape of what they return: Gymnasium and GEM
(tuples), SkyRL-Gym (dictionaries with "observations"), OpenEnv (objects with ``observation``, ``reward`` and
``done``). ``TurnEnv`` plays an environment with a partner turn by turn: its actions are texts.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from textenv.envs.text_env import TextEnv
from textenv.partners.global_random import GlobalRandom
from textenv.partners.partner import Opening, Partner, Reply
from textenv.prompts.continuations import encode_continuations
from textenv.utils.names import shown

_TEXT_KEYS = ("text", "content", "observation", "prompt", "message")


class StepPartner(Partner):
    """Plays the object that ``make_env`` returns; see ``from_step``."""

    max_reply_tokens = 256

    def __init__(
        self,
        make_env: Callable[[], Any],
        *,
        action: Callable[[str], Any] | None = None,
        observation: Callable[[Any], str] | None = None,
    ) -> None:
        if not callable(make_env):
            raise TypeError(f"make_env must be a function that returns an environment, got {shown(make_env)}")
        self._make, self._action, self._observation = make_env, action, observation
        self._env: Any = None
        self._random = GlobalRandom(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> StepPartner:
        twin = copy.copy(self)
        twin._env = copy.deepcopy(self._env, memo)
        twin._random = copy.deepcopy(self._random, memo)
        return twin

    def begin(self, rng: np.random.Generator) -> Opening:
        """Reset the environment with a seed from ``rng``, and return its first observation."""
        seed = int(rng.integers(2**31))
        self._random = GlobalRandom(seed)
        with self._random:
            if self._env is None:
                self._env = self._make()
            reset = getattr(self._env, "reset", None) or getattr(self._env, "init", None)
            if reset is None or not hasattr(self._env, "step"):
                raise TypeError(f"make_env must return an object with reset and step, got {shown(self._env)}")
            found = reset(seed=seed) if "seed" in inspect.signature(reset).parameters else reset()
        first = found[0] if isinstance(found, tuple) else getattr(found, "observation", found)
        return self._text(first)

    def reply(self, text: str) -> Reply:
        """Play a turn."""
        action = text if self._action is None else self._action(text)
        with self._random:
            found = self._env.step(action)
        observation, reward, done = _parts(found)
        return Reply(self._text(observation), reward=float(reward), done=done)

    def close(self) -> None:
        """Close the environment."""
        if self._env is not None and hasattr(self._env, "close"):
            self._env.close()
        self._env = None

    def _text(self, observation: Any) -> str:
        if self._observation is not None:
            observation = self._observation(observation)
        found = _as_text(observation)
        if found is None:
            raise TypeError(
                f"observations must be texts, messages or have one of {_TEXT_KEYS}; got "
                f"{shown(observation)}; give observation=, a function that makes a text of one"
            )
        return found


def from_step(
    make_env: Callable[[], Any],
    *,
    action: Callable[[str], Any] | None = None,
    observation: Callable[[Any], str] | None = None,
) -> StepPartner:
    """A partner that plays an environment of another library, in this process.

    Its random numbers come from the seed of the episode: ``reset(seed=...)`` where it has that argument, and
    the global generators of `random` and numpy, which have a state of their own during its calls.

    Args:
        make_env: returns a new environment; called once per row.
        action: makes an action of a turn's text; None gives the text itself.
        observation: makes a text of an observation; None reads texts, messages, and objects or dictionaries
            with a text.

    Raises:
        TypeError: if ``make_env`` is not callable, or (at reset and step) the environment returns something
            that is none of the known shapes.

    Example:
        >>> class Countdown:
        ...     def reset(self, seed=None):
        ...         self.left = 2
        ...         return "go", {}
        ...     def step(self, action):
        ...         self.left -= 1
        ...         return f"{self.left} left", 0.5, self.left == 0, False, {}
        >>> partner = from_step(Countdown)
        >>> partner.begin(np.random.default_rng(0)), partner.reply("next").text, partner.reply("next").done
        ('go', '1 left', True)
    """
    return StepPartner(make_env, action=action, observation=observation)


def _parts(found: Any) -> tuple[Any, float, bool]:
    """Observation, reward and whether the episode ended, from what ``step`` returned."""
    if isinstance(found, tuple) and len(found) == 5:  # Gymnasium, GEM
        return found[0], found[1], bool(found[2]) or bool(found[3])
    if isinstance(found, tuple) and len(found) == 4:  # Gym before 0.26
        return found[0], found[1], bool(found[2])
    if isinstance(found, Mapping) and "done" in found:  # SkyRL-Gym
        observation = found.get("observations", found.get("observation"))
        return observation, found.get("reward") or 0.0, bool(found["done"])
    if hasattr(found, "observation") and hasattr(found, "done"):  # OpenEnv
        return found.observation, getattr(found, "reward", None) or 0.0, bool(found.done)
    raise TypeError(
        "step must return (observation, reward, terminated, truncated, info), a dict with 'observations', "
        f"'reward' and 'done', or an object with these attributes; got {shown(found)}"
    )


def _as_text(observation: Any) -> str | None:
    """The text of an observation, None if it has none."""
    if observation is None:
        return ""
    if isinstance(observation, str):
        return observation
    if isinstance(observation, Mapping):
        keys = [key for key in _TEXT_KEYS if key in observation]
        return _as_text(observation[keys[0]]) if keys else None
    if isinstance(observation, Sequence) and all(isinstance(item, Mapping) for item in observation):
        texts = [_as_text(item) for item in observation]
        return None if None in texts else "\n".join(text for text in texts if text)
    names = [name for name in _TEXT_KEYS if isinstance(getattr(observation, name, None), str)]
    return getattr(observation, names[0]) if names else None


class TurnEnv(gym.Env[str, str]):
    """An environment with a partner as a game of strings: one step is one turn.

    Observations are the texts of the partner, actions the texts of the policy, as players that are no
    token-level policies use them (scripts, language models behind an API). The token-level environment
    underneath decides everything: ``env.unwrapped.finished_with_rewards`` is the record.

    Args:
        env: a single environment with a partner: ``gym.make("TextRLHF-v0", partner=...)``.
        max_chars: longest text of the spaces.

    Raises:
        TypeError: if it is no single environment of this library.
        ValueError: if it has no partner.
    """

    metadata = TextEnv.metadata

    def __init__(self, env: gym.Env[Any, Any], *, max_chars: int = 100_000) -> None:
        base = env.unwrapped
        if not isinstance(base, TextEnv):
            raise TypeError(f"env must be a single environment (gym.make), got {type(base).__name__}")
        if not base.has_partner:
            raise ValueError("env must have a partner: gym.make(..., partner=...)")
        self.env, self._base = env, base
        charset = frozenset(map(chr, range(32, 0x2FFF))) | {"\n", "\t"}
        self.observation_space = spaces.Text(max_chars, min_length=0, charset=charset)
        self.action_space = spaces.Text(max_chars, min_length=0, charset=charset)
        self.render_mode = base.render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start the next episode: the prompt with the partner's opening as text."""
        super().reset(seed=seed)
        obs, info = self.env.reset(seed=seed, options=options)
        return self._decoded(obs["input_ids"][: int(obs["prompt_length"])]), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play a turn.

        Args:
            action: its text; the stop token is added.

        Returns:
            The partner's reply, the turn's reward, terminated, truncated and info.

        Raises:
            TypeError: if the action is no string.
            ValueError: if the turn has more tokens than ``max_turn_tokens`` allows, or holds a token or
                string that ends a turn before its end.
        """
        if not isinstance(action, str):
            raise TypeError(f"action must be a string, got {shown(action)}")
        tokenizer, stops = self._base.tokenizer, self._base.legality.stop_token_ids
        ids = encode_continuations(["\n"], [action], tokenizer)[0]
        total, turns = 0.0, len(self._turns())
        for place, token in enumerate([*ids, *stops[:1]]):
            _, reward, terminated, truncated, info = self.env.step(token)
            total += float(reward)
            over = terminated or truncated or len(self._turns()) > turns
            if over and place < len(ids) - 1:
                raise ValueError(
                    f"action must be one turn of at most {self._base.max_turn_tokens} tokens, and no part of "
                    f"it may end a turn; got {len(ids)} tokens, and the turn ended after {place + 1}: "
                    f"{shown(action)}"
                )
            if over:
                replies = self._base.conversation(0).replies
                reply = replies[-1]["text"] if replies else ""
                return reply, total, terminated, truncated, info
        raise ValueError(f"the turn did not end: the environment has no stop token, got {shown(action)}")

    def render(self) -> Any:
        """See the environment underneath."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment underneath."""
        self.env.close()

    def _turns(self) -> list[str]:
        turns: list[str] = self._base.conversation(0).turns
        return turns

    def _decoded(self, ids: Any) -> str:
        return str(self._base.tokenizer.decode(ids.tolist(), skip_special_tokens=True))
