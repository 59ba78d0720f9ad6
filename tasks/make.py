"""The entry points of ``TextRLHF-v0``: a task, made into an environment that pays its rewards.

``gym.make`` calls ``make_env`` and ``gym.make_vec`` calls ``make_vec_env``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from textenv.envs.text_env import TextEnv
from textenv.envs.vector_env import TextVectorEnv
from textenv.prompts.prompt_set import PromptSet
from textenv.rewards.registry import OF_TASK, make_reward, normalize_reward_specs, reward_list
from textenv.rewards.term import RewardTerm
from textenv.rewards.wrappers import wrap_reward
from textenv.tasks.prompts import build_prompts, load_tokenizer, with_prompts
from textenv.tasks.registry import make_task
from textenv.tasks.stop_tokens import stop_tokens
from textenv.tasks.task import Task, TaskData
from textenv.utils.checks import check_at_least, check_flag
from textenv.utils.names import nearest, shown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

DEFAULT_TASK = "random-walks"


class _Made:
    """What an environment made from a task also knows: the task's data, its own arguments in JSON values."""

    task_data: TaskData | None = None
    """The pieces that it was made from; None if it was made from a ready PromptSet."""
    _written: Mapping[str, Any] = {}
    _source: _Source | None = None
    _spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """How to make this environment again; JSON can hold it if every argument can be written down."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None:
            spec.kwargs = {name: self._written.get(name, value) for name, value in spec.kwargs.items()}
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
    **unknown: Any,
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Make ``num_envs`` texts that are written in parallel, with reward wrappers around them.

    Arguments that are None take the task's value.

    Args:
        num_envs: N, rows played in parallel.
        task: a task's name; by default "prompts" if ``prompts`` are given, else "random-walks".
        task_kwargs: the task's own arguments.
        split: which part of the task's prompts.
        rewards: a reward spec or a list of them, each "name", ["name", {arguments}], a term or a function;
            "task" stands for the task's own beside others; [] pays nothing.
        prompts: use these instead of the task's: a list of texts or messages, a file, a hub id, whatever
            ``textenv.data.load_columns`` reads, or a ``PromptSet``.
        tokenizer: a name, a folder or an object, for prompts of one's own and tasks that leave the choice.
        max_new_tokens: token budget of a response.
        max_prompt_tokens: longer prompts are cut.
        max_episode_steps: Gymnasium's word for ``max_new_tokens``; if both are given they must agree.
        truncation_side: "left" drops the beginning of a long prompt, "right" its end, "error" refuses it.
        chat_template: render prompts by the tokenizer's chat template.
        stop_token_ids: tokens that end an episode, by default the tokenizer's EOS, the chat template's end of
            turn (for chats), and ``model_stop_token_ids``.
        model_stop_token_ids: further ends of a model's own, ``textenv.tasks.stop_tokens.generation_ends``.
        stop_strings: strings that end an episode.
        min_new_tokens: stop tokens are illegal before this many.
        suppressed_tokens: tokens that are never legal.
        samples_per_prompt: consecutive episodes that share a prompt.
        shuffle: deal prompts in a fresh random order every epoch.
        autoreset: "same_step", "next_step" or "disabled", or a ``gymnasium.vector.AutoresetMode``.
        device: where the state lives.
        arrays: "torch" or "numpy".
        render_mode: None, "ansi", "rgb_array" or "human".
        episode_statistics: put return, length and time into ``info["episode"]``.
        unknown: always an error, which names the nearest argument.

    Raises:
        TypeError: if an argument is unknown.
        ValueError: if a value is out of range, a name is unknown, or the pieces do not fit.
    """
    _refuse_unknown(unknown, make_vec_env)
    arguments = {name: value for name, value in locals().items() if name in _SHARED}
    source = _source(arguments)
    env_kwargs, terms = _assemble(arguments, source)
    made = MadeTextVectorEnv(num_envs, autoreset=autoreset, arrays=arrays, **env_kwargs)
    return _finish(made, terms, source, arguments)


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
    **unknown: Any,
) -> gym.Env[Any, Any]:
    """Make one text with reward wrappers around it; see ``make_vec_env`` for the arguments.

    ``gym.make(..., max_episode_steps=n)`` never reaches this function: Gymnasium puts a TimeLimit around the
    environment instead. Say ``max_new_tokens=n`` there.
    """
    _refuse_unknown(unknown, make_env)
    arguments = {name: value for name, value in locals().items() if name in _SHARED}
    source = _source(arguments)
    env_kwargs, terms = _assemble(arguments, source)
    return _finish(MadeTextEnv(**env_kwargs), terms, source, arguments)


# Where Gymnasium looks before it calls: "rgb_array_list" and "ansi_list" become its own RenderCollection.
make_env.metadata = TextEnv.metadata  # type: ignore[attr-defined]

_SHARED = tuple(name for name in inspect.signature(make_env).parameters if name != "unknown")
_PASSED_ON = (
    "stop_token_ids",
    "samples_per_prompt",
    "shuffle",
    "device",
    "render_mode",
    "episode_statistics",
)


@dataclass(frozen=True)
class _Source:
    """Prompts, tokenizer and the task's data, if there is a task."""

    given: Any
    """The argument ``prompts``."""
    prompts: PromptSet
    tokenizer: PreTrainedTokenizerBase
    data: TaskData | None
    chat: bool = False


def shared_prompts(envs: Any) -> Any:
    """The prompts of an environment, as the argument ``prompts`` of another one of the same task and cut.

    Nothing is read or tokenised again, and both hold the same memory.
    """
    return envs.unwrapped._source


def _assemble(arguments: Mapping[str, Any], source: _Source) -> tuple[dict[str, Any], list[RewardTerm]]:
    """The environment's arguments and its reward terms."""
    data = source.data
    env_kwargs = {name: arguments[name] for name in _PASSED_ON}
    env_kwargs |= {"prompts": source.prompts, "tokenizer": source.tokenizer}
    if env_kwargs["stop_token_ids"] is None:
        ends = stop_tokens(source.tokenizer, chat=source.chat, model_ends=arguments["model_stop_token_ids"])
        env_kwargs["stop_token_ids"] = ends
    env_kwargs["max_new_tokens"] = _token_budget(arguments, data)
    for name, default in (("stop_strings", ()), ("min_new_tokens", 0), ("suppressed_tokens", ())):
        of_task = default if data is None else getattr(data, name)
        env_kwargs[name] = of_task if arguments[name] is None else arguments[name]
    return env_kwargs, [make_reward(spec) for spec in _reward_specs(arguments["rewards"], data)]


def _reward_specs(given: Any, data: TaskData | None) -> list[Any]:
    """The environment's reward specs; "task" among those given stands for the task's own."""
    own = [] if data is None else reward_list(data.rewards)
    if given is None:
        return own
    specs = []
    for spec in reward_list(given):
        if spec not in (OF_TASK, [OF_TASK], [OF_TASK, {}], {"name": OF_TASK}):
            specs.append(spec)
            continue
        if not own:
            raise ValueError(f"reward {OF_TASK!r} stands for the task's own rewards, and there are none")
        specs += own
    return specs


def _source(arguments: Mapping[str, Any]) -> _Source:
    prompts, tokenizer, task = arguments["prompts"], arguments["tokenizer"], arguments["task"]
    cut = {name: arguments[name] for name in ("max_prompt_tokens", "truncation_side", "chat_template")}
    given = arguments["task_kwargs"]
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"task_kwargs must be a dict of the task's arguments, got {shown(given)}")
    task_kwargs = dict(given or {})
    check_flag("chat_template", arguments["chat_template"])
    if task is None and prompts is not None and task_kwargs:
        raise ValueError(f"task_kwargs {sorted(task_kwargs)} need a task; prompts alone have none")

    if isinstance(prompts, _Source):
        return prompts
    data: TaskData | None = None
    if task is not None or prompts is None:
        chosen = make_task(DEFAULT_TASK if task is None else task)
        if tokenizer is not None:
            if "tokenizer" in task_kwargs:
                raise ValueError("tokenizer was given twice, as an argument and in task_kwargs")
            if not chosen.takes("tokenizer"):
                raise ValueError(f"task {chosen.name!r} has a tokenizer of its own and takes no other")
            task_kwargs["tokenizer"] = tokenizer
        own_data = chosen.builder is build_prompts and not isinstance(prompts, PromptSet | None)
        if own_data:  # the task's data, under the name that they have without it
            task_kwargs = with_prompts(task_kwargs, prompts)
        data = chosen.build(arguments["split"], **task_kwargs)
        if prompts is None or own_data:
            return _Source(prompts, data.prompt_set(**cut), data.tokenizer, data, _is_chat(data, arguments))

    if isinstance(prompts, PromptSet):
        if data is None and tokenizer is None:
            raise ValueError("a PromptSet needs its tokenizer: pass tokenizer=")
        return _Source(prompts, prompts, load_tokenizer(tokenizer) if data is None else data.tokenizer, data)
    own = build_prompts(
        split=arguments["split"] if data is None else None,  # else the split is the task's
        data=prompts,
        tokenizer=tokenizer if data is None else data.tokenizer,
        validation=0,  # prompts that were given are all of them
    )
    chat = _is_chat(own, arguments)
    return _Source(prompts, own.prompt_set(**cut), own.tokenizer, own if data is None else data, chat)


def _is_chat(data: TaskData, arguments: Mapping[str, Any]) -> bool:
    return bool(arguments["chat_template"]) or not isinstance(data.prompts[0], str)


def _token_budget(arguments: Mapping[str, Any], data: TaskData | None) -> int:
    tokens, steps = arguments["max_new_tokens"], arguments["max_episode_steps"]
    if tokens is not None and steps is not None and tokens != steps:
        raise ValueError(f"max_new_tokens and max_episode_steps must be equal, got {tokens} and {steps}")
    for name in ("max_new_tokens", "max_episode_steps"):
        if arguments[name] is not None:
            check_at_least(name, arguments[name], 1)
            return int(arguments[name])
    if data is None:
        raise ValueError("max_new_tokens must be given for a PromptSet without a task")
    return data.max_new_tokens


def _finish(made: Any, terms: Sequence[RewardTerm], source: _Source, arguments: Mapping[str, Any]) -> Any:
    """Put the rewards around the environment, the first one innermost."""
    made.task_data, made._source = source.data, source
    arguments = {**arguments, "prompts": source.given}
    made._written = {name: _plain(value) for name, value in arguments.items() if name != "rewards"}
    if arguments["rewards"] is not None:
        made._written["rewards"] = [_written_reward(spec) for spec in reward_list(arguments["rewards"])]
    env = made
    for term in terms:
        env = wrap_reward(env, term)
    return env


def _written_reward(spec: Any) -> Any:
    """The canonical list; objects that can't be written down stay as they are."""
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
        # Python's own words: TorchRL drops an argument of its own where an error says them.
        raise TypeError(
            f"{function.__name__}() got an unexpected keyword argument {name!r}; {nearest(name, known)}"
        )
