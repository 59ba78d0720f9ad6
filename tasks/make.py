"""Entry points of ``TextRLHF-v0``: make an environment with rewards from a task.

``gym.make`` calls ``make_env`` and ``gym.make_vec`` calls ``make_vec_env``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from textenv.envs.text_env import TextEnv
from textenv.envs.vector_env import TextVectorEnv
from textenv.rewards.registry import make_reward, normalize_reward_specs, reward_list
from textenv.rewards.term import RewardTerm
from textenv.rewards.wrappers import wrap_reward
from textenv.tasks.source import EnvSource, make_source
from textenv.tasks.task import Task, TaskData
from textenv.tasks.turns import other_turns, partner_source, turn_arguments, turn_budget
from textenv.utils.names import nearest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class _Made:
    """Attributes of environments made here: the source of the prompts, and the spec."""

    source: EnvSource | None = None
    """Prompts, tokenizer and the task's data."""
    default_stop_tokens: bool = True
    """Whether the stop tokens are the default ones."""
    _spec: EnvSpec | None = None

    @property
    def task_data(self) -> TaskData | None:
        """Data of its task; None if it was made from a ready PromptSet."""
        return None if self.source is None else self.source.data

    @property
    def spec(self) -> EnvSpec | None:
        """Description from which this environment can be made again; JSON values if all arguments are."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None:
            spec.kwargs = {name: _written(name, value) for name, value in spec.kwargs.items()}
        self._spec = spec


class MadeTextEnv(_Made, TextEnv):
    """A ``TextEnv`` that remembers its task."""


class MadeTextVectorEnv(_Made, TextVectorEnv):
    """A ``TextVectorEnv`` that remembers its task."""


def make_vec_env(
    num_envs: int = 1,
    task: str | Task | None = None,
    task_kwargs: Mapping[str, Any] | None = None,
    split: str = "train",
    rewards: Any = None,
    prompts: Any = None,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    max_new_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
    max_episode_steps: int | None = None,
    truncation_side: str = "left",
    chat_template: bool = False,
    stop_token_ids: Sequence[int] | None = None,
    model_stop_token_ids: Sequence[int] | None = None,
    stop_strings: Sequence[str] | None = None,
    min_new_tokens: int | None = None,
    suppressed_tokens: Sequence[int] | None = None,
    samples_per_prompt: int = 1,
    shuffle: bool = True,
    autoreset: str | AutoresetMode = "same_step",
    device: str | torch.device = "cpu",
    arrays: str = "torch",
    render_mode: str | None = None,
    episode_statistics: bool = True,
    partner: Any = None,
    max_turns: int | None = None,
    max_turn_tokens: int | None = None,
    max_length: int | None = None,
    waiting: str = "block",
    **unknown: Any,
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Make a vector environment of ``num_envs`` texts, with reward wrappers around it.

    Arguments that are None take the task's value.

    Args:
        num_envs: N, texts generated in parallel.
        task: a task's name; by default "prompts" if ``prompts`` are given, else "random-walks".
        task_kwargs: the task's own arguments.
        split: name of the part of the task's prompts, such as "train".
        rewards: a reward spec or a list of them, each "name", ["name", {arguments}], a term or a function;
            "task" stands for the task's rewards among others; [] is no reward.
        prompts: use these instead of the task's: a list of texts or messages, a file, a hub id, whatever
            ``textenv.data.load_columns`` reads, a ``PromptSet``, or an ``EnvSource``.
        tokenizer: a name, a folder or an object, for your own prompts and for tasks without a tokenizer.
        max_new_tokens: token budget of a response.
        max_prompt_tokens: longer prompts are cut.
        max_episode_steps: Gymnasium's name of ``max_new_tokens``; if both are given they must be equal.
        truncation_side: "left" drops the beginning of a long prompt, "right" its end, "error" refuses it.
        chat_template: render prompts with the tokenizer's chat template.
        stop_token_ids: tokens that end an episode, by default the tokenizer's EOS, the chat template's end of
            turn (for chats), and ``model_stop_token_ids``.
        model_stop_token_ids: further stop tokens of a model, ``textenv.tasks.stop_tokens.generation_ends``.
        stop_strings: strings that end an episode.
        min_new_tokens: stop tokens are illegal before this number of tokens.
        suppressed_tokens: tokens that are never legal.
        samples_per_prompt: consecutive episodes that share a prompt.
        shuffle: new random order of the prompts in every epoch.
        autoreset: "same_step", "next_step" or "disabled", or a ``gymnasium.vector.AutoresetMode``.
        device: where the environment's state and observations are.
        arrays: "torch" or "numpy".
        render_mode: None, "ansi", "rgb_array" or "human".
        episode_statistics: put return, length and time into ``info["episode"]``.
        partner: replies when a turn of the policy ends: a name, ["name", {arguments}], or a ``Partner``; by
            default the task's. Without a task it may have its own prompts (and needs ``tokenizer``).
        max_turns: maximum number of the policy's turns in an episode with a partner.
        max_turn_tokens: maximum number of tokens of a turn.
        max_length: maximum number of tokens of an episode with a partner, prompt and replies included.
        waiting: "block" waits within a step for slow partners; "step" lets the other rows go on.
        unknown: arguments that do not exist; the error names the nearest one.

    Raises:
        TypeError: if an argument is unknown.
        ValueError: if a value is out of range, a name is unknown, or the arguments do not fit together.
    """
    _refuse_unknown(unknown, make_vec_env)
    task, prompts, task_kwargs = partner_source(partner, task, prompts, tokenizer, task_kwargs)
    source = make_source(
        task,
        prompts,
        task_kwargs=task_kwargs,
        split=split,
        tokenizer=tokenizer,
        max_prompt_tokens=max_prompt_tokens,
        truncation_side=truncation_side,
        chat_template=chat_template,
    )
    ends = source.stop_token_ids(stop_token_ids, model_stop_token_ids)
    turns = turn_arguments(source, partner, max_turns, max_turn_tokens, max_length, waiting)
    own = other_turns(max_turns, max_turn_tokens)
    budget = turn_budget(source, turns, max_new_tokens, max_episode_steps, own=own)
    budget = source.token_budget(budget, max_episode_steps)
    terms = [make_reward(spec) for spec in source.reward_specs(rewards)]
    env = MadeTextVectorEnv(
        num_envs,
        prompts=source.prompts,
        tokenizer=source.tokenizer,
        max_new_tokens=budget,
        stop_token_ids=ends,
        stop_strings=source.value("stop_strings", stop_strings, ()),
        min_new_tokens=source.value("min_new_tokens", min_new_tokens, 0),
        suppressed_tokens=source.value("suppressed_tokens", suppressed_tokens, ()),
        samples_per_prompt=samples_per_prompt,
        shuffle=shuffle,
        autoreset=autoreset,
        device=device,
        arrays=arrays,
        render_mode=render_mode,
        episode_statistics=episode_statistics,
        **turns,
    )
    return _rewarded(env, terms, source, default_stop_tokens=stop_token_ids is None)


def make_env(
    task: str | Task | None = None,
    task_kwargs: Mapping[str, Any] | None = None,
    split: str = "train",
    rewards: Any = None,
    prompts: Any = None,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    max_new_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
    max_episode_steps: int | None = None,
    truncation_side: str = "left",
    chat_template: bool = False,
    stop_token_ids: Sequence[int] | None = None,
    model_stop_token_ids: Sequence[int] | None = None,
    stop_strings: Sequence[str] | None = None,
    min_new_tokens: int | None = None,
    suppressed_tokens: Sequence[int] | None = None,
    samples_per_prompt: int = 1,
    shuffle: bool = True,
    device: str | torch.device = "cpu",
    render_mode: str | None = None,
    episode_statistics: bool = True,
    partner: Any = None,
    max_turns: int | None = None,
    max_turn_tokens: int | None = None,
    max_length: int | None = None,
    waiting: str = "block",
    **unknown: Any,
) -> gym.Env[Any, Any]:
    """Make an environment of one text, with reward wrappers; see ``make_vec_env`` for the arguments.

    ``gym.make(..., max_episode_steps=n)`` never reaches this function: Gymnasium puts a TimeLimit around the
    environment instead. Use ``max_new_tokens=n`` there.
    """
    _refuse_unknown(unknown, make_env)
    task, prompts, task_kwargs = partner_source(partner, task, prompts, tokenizer, task_kwargs)
    source = make_source(
        task,
        prompts,
        task_kwargs=task_kwargs,
        split=split,
        tokenizer=tokenizer,
        max_prompt_tokens=max_prompt_tokens,
        truncation_side=truncation_side,
        chat_template=chat_template,
    )
    ends = source.stop_token_ids(stop_token_ids, model_stop_token_ids)
    turns = turn_arguments(source, partner, max_turns, max_turn_tokens, max_length, waiting)
    own = other_turns(max_turns, max_turn_tokens)
    budget = turn_budget(source, turns, max_new_tokens, max_episode_steps, own=own)
    budget = source.token_budget(budget, max_episode_steps)
    terms = [make_reward(spec) for spec in source.reward_specs(rewards)]
    env = MadeTextEnv(
        prompts=source.prompts,
        tokenizer=source.tokenizer,
        max_new_tokens=budget,
        stop_token_ids=ends,
        stop_strings=source.value("stop_strings", stop_strings, ()),
        min_new_tokens=source.value("min_new_tokens", min_new_tokens, 0),
        suppressed_tokens=source.value("suppressed_tokens", suppressed_tokens, ()),
        samples_per_prompt=samples_per_prompt,
        shuffle=shuffle,
        device=device,
        render_mode=render_mode,
        episode_statistics=episode_statistics,
        **turns,
    )
    return _rewarded(env, terms, source, default_stop_tokens=stop_token_ids is None)


# Gymnasium reads the render modes here: it makes "rgb_array_list" and "ansi_list" with its RenderCollection.
make_env.metadata = TextEnv.metadata  # type: ignore[attr-defined]


def _rewarded(env: Any, terms: Sequence[RewardTerm], source: EnvSource, *, default_stop_tokens: bool) -> Any:
    """Put the rewards around the environment, the first one innermost."""
    env.source, env.default_stop_tokens = source, default_stop_tokens
    for term in terms:
        env = wrap_reward(env, term)
    return env


def _written(name: str, value: Any) -> Any:
    """An argument of the environment as JSON values as far as possible."""
    if name == "rewards":
        return None if value is None else [_written_reward(spec) for spec in reward_list(value)]
    return _plain(value.given if isinstance(value, EnvSource) else value)


def _written_reward(spec: Any) -> Any:
    """The spec in canonical form; objects without a spec stay as they are."""
    try:
        return normalize_reward_specs([spec])[0]
    except ValueError:
        return spec


def _plain(value: Any) -> Any:
    """Tuples as lists, paths, devices and tasks as strings; everything else stays as it is."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Task):
        return value.name
    return str(value) if type(value).__name__ == "device" else value


def _refuse_unknown(unknown: Mapping[str, Any], function: Any) -> None:
    if unknown:
        known = [name for name in inspect.signature(function).parameters if name != "unknown"]
        name = next(iter(unknown))
        # Python's wording: where TorchRL finds it, it retries without the argument that it added.
        raise TypeError(
            f"{function.__name__}() got an unexpected keyword argument {name!r}; {nearest(name, known)}"
        )
