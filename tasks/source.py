"""`EnvSource`: the prompts, the tokenizer and the task's data that an environment is made from."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from textenv.prompts.prompt_set import PromptSet
from textenv.rewards.registry import OF_TASK, reward_list
from textenv.tasks.prompts import build_prompts, load_tokenizer, with_prompts
from textenv.tasks.registry import make_task
from textenv.tasks.stop_tokens import stop_tokens
from textenv.tasks.task import Task, TaskData
from textenv.utils.checks import check_at_least, check_flag
from textenv.utils.names import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_TASK = "random-walks"


@dataclass(frozen=True)
class EnvSource:
    """Tokenized prompts, their tokenizer and the task's data, from which environments are made.

    ``make_vec_env`` takes one as ``prompts``. Environments made from the same source share its memory, and
    nothing is read or tokenized again.
    """

    given: Any
    """The argument ``prompts`` that it was made from; None if the prompts are the task's own."""
    prompts: PromptSet
    """P tokenized prompts with their columns."""
    tokenizer: PreTrainedTokenizerBase
    """Tokenizer of prompts and responses."""
    data: TaskData | None
    """The task's data; None if there is no task and the prompts were given as a ``PromptSet``."""
    chat: bool = False
    """Whether the prompts were rendered by the chat template."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``make_source`` that it was made with."""

    @classmethod
    def of(
        cls,
        data: TaskData,
        given: Any = None,
        *,
        max_prompt_tokens: int | None = None,
        truncation_side: str = "left",
        chat_template: bool = False,
    ) -> Self:
        """Tokenize the prompts of a task's data.

        Args:
            data: the task's data.
            given: the argument ``prompts`` that these prompts are from.
            max_prompt_tokens: see ``TaskData.prompt_set``, as for the rest.
            truncation_side: which end of a long prompt is cut.
            chat_template: whether to render texts by the chat template.
        """
        prompts = data.prompt_set(
            max_prompt_tokens=max_prompt_tokens, truncation_side=truncation_side, chat_template=chat_template
        )
        chat = bool(chat_template) or not isinstance(data.prompts[0], str)
        return cls(given, prompts, data.tokenizer, data, chat)

    def check_arguments(self, given: Mapping[str, Any]) -> None:
        """Refuse arguments of ``make_source`` that are neither its defaults nor those of this source.

        Raises:
            ValueError: naming the argument.
        """
        parameters = inspect.signature(make_source).parameters
        for name, value in given.items():
            default = parameters[name].default
            own = self.arguments.get(name, default)
            if value is not own and value != default and value != own:
                raise ValueError(
                    f"{name} must be given when the EnvSource is made; it was made with {shown(own)}, "
                    f"got {shown(value)}"
                )

    def token_budget(self, max_new_tokens: int | None = None, max_episode_steps: int | None = None) -> int:
        """Token budget of a response: the one given, or else the task's.

        Args:
            max_new_tokens: the budget, if it is given.
            max_episode_steps: another name for it.

        Raises:
            ValueError: if both are given and differ, one is less than 1, or there is neither one nor a task.
        """
        given = {"max_new_tokens": max_new_tokens, "max_episode_steps": max_episode_steps}
        if None not in given.values() and max_new_tokens != max_episode_steps:
            raise ValueError(
                "max_new_tokens and max_episode_steps must be equal, "
                f"got {max_new_tokens} and {max_episode_steps}"
            )
        for name, value in given.items():
            if value is not None:
                check_at_least(name, value, 1)
                return int(value)
        if self.data is None:
            raise ValueError("max_new_tokens must be given for a PromptSet without a task")
        return self.data.max_new_tokens

    def stop_token_ids(self, given: Sequence[int] | None, model_ends: Sequence[int] | None) -> Sequence[int]:
        """Tokens that end an episode: those given, or else the default ones with those of the model."""
        if given is not None:
            return given
        return stop_tokens(self.tokenizer, chat=self.chat, model_ends=model_ends)

    def value(self, name: str, given: Any, default: Any) -> Any:
        """The value that was given for a field of the task's data, or else the task's, or the default."""
        if given is not None:
            return given
        return default if self.data is None else getattr(self.data, name)

    def reward_specs(self, given: Any) -> list[Any]:
        """The environment's reward specs; "task" among those given stands for the task's own.

        Args:
            given: a reward spec or a list of them; None is the task's own.

        Raises:
            ValueError: if "task" is given and there are no rewards of a task.
        """
        own = [] if self.data is None else reward_list(self.data.rewards)
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


def make_source(
    task: str | Task | None = None,
    prompts: Any = None,
    *,
    task_kwargs: Mapping[str, Any] | None = None,
    split: str | None = "train",
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
    max_prompt_tokens: int | None = None,
    truncation_side: str = "left",
    chat_template: bool = False,
) -> EnvSource:
    """Build the task, if there is one, and tokenize the prompts; see ``make_vec_env`` for the arguments.

    An ``EnvSource`` as ``prompts`` is returned as it is. Other arguments must then be the defaults or those
    that it was made with.

    Raises:
        TypeError: if ``task_kwargs`` is no dict, or ``chat_template`` no bool.
        ValueError: if a name is unknown, the pieces do not fit, or an argument is not the one that the
            ``EnvSource`` was made with.
    """
    if task_kwargs is not None and not isinstance(task_kwargs, Mapping):
        raise TypeError(f"task_kwargs must be a dict of the task's arguments, got {shown(task_kwargs)}")
    check_flag("chat_template", chat_template)
    if task is None and prompts is not None and task_kwargs:
        raise ValueError(f"task_kwargs {sorted(task_kwargs)} need a task; prompts alone have none")
    arguments: dict[str, Any] = {
        "task": task,
        "task_kwargs": task_kwargs,
        "split": split,
        "tokenizer": tokenizer,
        "max_prompt_tokens": max_prompt_tokens,
        "truncation_side": truncation_side,
        "chat_template": chat_template,
    }
    if isinstance(prompts, EnvSource):
        prompts.check_arguments(arguments)
        return prompts
    source = _new_source(prompts, **arguments)
    return replace(source, arguments=arguments)


def _new_source(
    prompts: Any,
    *,
    task: str | Task | None,
    task_kwargs: Mapping[str, Any] | None,
    split: str | None,
    tokenizer: Any,
    **cut: Any,
) -> EnvSource:
    """Build the task and tokenize the prompts; ``cut`` is how long prompts and chats are treated."""
    kwargs = dict(task_kwargs or {})
    data: TaskData | None = None
    if task is not None or prompts is None:
        chosen = make_task(DEFAULT_TASK if task is None else task)
        if tokenizer is not None:
            if "tokenizer" in kwargs:
                raise ValueError("tokenizer was given twice, as an argument and in task_kwargs")
            if not chosen.takes("tokenizer"):
                raise ValueError(f"task {chosen.name!r} has its own tokenizer and takes no other")
            kwargs["tokenizer"] = tokenizer
        own_data = chosen.builder is build_prompts and not isinstance(prompts, PromptSet | None)
        if own_data:  # the data of the task "prompts", given as an argument of the environment
            kwargs = with_prompts(kwargs, prompts)
        data = chosen.build(split, **kwargs)
        if prompts is None or own_data:
            return EnvSource.of(data, prompts, **cut)

    if isinstance(prompts, PromptSet):
        if data is not None:
            return EnvSource(prompts, prompts, data.tokenizer, data)
        if tokenizer is None:
            raise ValueError("a PromptSet needs its tokenizer: pass tokenizer=")
        return EnvSource(prompts, prompts, load_tokenizer(tokenizer), None)
    own = build_prompts(
        split=split if data is None else None,  # else the split is the task's
        data=prompts,
        tokenizer=tokenizer if data is None else data.tokenizer,
        validation=0,  # prompts that were given are all of them
    )
    found = EnvSource.of(own, prompts, **cut)
    return found if data is None else replace(found, data=data)
