"""`Task`, a named recipe for environments, and `TaskData`, what it is built into."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self

from textenv.prompts.columns import all_texts
from textenv.rewards.registry import reward_list
from textenv.utils.checks import check_at_least
from textenv.utils.names import nearest, shown

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from textenv.episodes.batch import EpisodeBatch
    from textenv.prompts.prompt_set import PromptSet
    from textenv.tasks.feedback import Feedback
    from textenv.tasks.preferences import PreferencePairs


SETTINGS_KEYS = ("settings", "start", "num_envs", "cannot")
"""Keys of what ``Task.settings`` gives."""
_FUNCTIONS = ("model_config", "make_demonstrations", "make_preferences", "make_feedback", "make_player")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A named recipe for environments: ``task.build(split, **kwargs)`` gives the pieces.

    Tasks are made by ``register_task`` and found by ``make_task``; a task of your own needs no subclass.
    """

    name: str
    """Name in ``make_task`` and in the ``task`` argument of the environment."""
    description: str
    """One line."""
    builder: Callable[..., TaskData]
    """``builder(split="train", **task_kwargs) -> TaskData``."""
    agent_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Agent -> what ``settings`` gives for it."""

    def settings(self, agent_name: str) -> dict[str, Any]:
        """Settings and start with which an agent learns this task: plain data, a copy.

        They are the defaults of the agent on this task in ``textenv train``, ``textenv.train``, studies and
        benchmarks. The user's values take precedence.

        Args:
            agent_name: a registered agent's name.

        Returns:
            ``settings``: fields of the agent's settings. ``start``: fields of ``sft``'s settings, for
            fine-tuning the task's own model on its demonstrations before the agent begins; without it the
            agent begins with random weights. ``num_envs``: texts generated in parallel. ``cannot``: why
            the agent can't learn here, as the end of a sentence. Each may be left out; {} if the task
            knows nothing of the agent.

        Raises:
            ValueError: if the task's data have another key.
        """
        found = copy.deepcopy(dict(self.agent_settings.get(agent_name, {})))
        for key in found:
            if key not in SETTINGS_KEYS:
                known = nearest(key, SETTINGS_KEYS)
                raise ValueError(f"task {self.name!r}: unknown key {key!r} of {agent_name!r}; {known}")
        return found

    @property
    def arguments(self) -> list[str]:
        """Names of the task's own arguments."""
        parameters = inspect.signature(self.builder).parameters.values()
        return [p.name for p in parameters if p.name != "split" and p.kind is not p.VAR_KEYWORD]

    def takes(self, argument: str) -> bool:
        """Whether the task has such an argument."""
        parameters = inspect.signature(self.builder).parameters.values()
        return argument in self.arguments or any(p.kind is p.VAR_KEYWORD for p in parameters)

    def build(self, split: str | None = "train", **task_kwargs: Any) -> TaskData:
        """Make the pieces.

        Args:
            split: which part of the task's prompts; tasks name the ones they have.
            task_kwargs: the task's own arguments.

        Raises:
            ValueError: if the split or an argument's value is unknown to the task.
            TypeError: if the task has no such argument.
        """
        for name in task_kwargs:
            if not self.takes(name):
                known = nearest(name, self.arguments)
                raise TypeError(f"task {self.name!r} has no argument {name!r}; {known}")
        data = self.builder(split=split, **task_kwargs)
        if not isinstance(data, TaskData):
            raise TypeError(f"task {self.name!r} must return a TaskData, got {type(data).__name__}")
        return data


@dataclass(kw_only=True)
class TaskData:
    """The pieces of one task and split; ``make_env`` puts an environment together from them.

    Raises:
        ValueError: if there is no prompt, a column does not have a value for each, or a number is out of
            range.
    """

    prompts: Sequence[str | Sequence[Mapping[str, str]]]
    """P prompts: strings, or lists of messages for a chat template."""
    tokenizer: PreTrainedTokenizerBase
    """Its vocabulary is the action space."""
    rewards: Sequence[Any]
    """Reward specs, as ``make_reward`` reads them: names or ["name", {kwargs}]."""
    max_new_tokens: int
    """Token budget of a response."""
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """name -> P values: keyword arguments of reward functions, ``extras`` of episodes."""
    max_prompt_tokens: int | None = None
    """Longer prompts are cut (see ``truncation_side`` of the environment); None keeps them whole."""
    stop_strings: Sequence[str] = ()
    """Strings that end an episode."""
    suppressed_tokens: Sequence[int] = ()
    """Tokens that are never legal."""
    min_new_tokens: int = 0
    """Stop tokens are illegal before this many."""
    partner: Any = None
    """Replies when a turn of the policy ends: a spec of ``textenv.partners.make_partner``."""
    max_turns: int | None = None
    """Most turns of the policy in an episode with a partner."""
    max_turn_tokens: int | None = None
    """Most tokens of a turn; ``max_new_tokens`` is the budget of all turns."""
    max_length: int | None = None
    """Most tokens of an episode with a partner, prompt and replies included."""
    optimum: float | None = None
    """Best possible mean return, where it is known."""
    model_config: Callable[[], PretrainedConfig] | None = None
    """Gives the config of a small model that suits the task, for ``AutoModelForCausalLM.from_config``.

    So that environments can be pickled, this and the functions below are functions of a module, or
    ``functools.partial`` of such."""
    texts: Sequence[str] = ()
    """Plain texts for next-token pretraining, without EOS."""
    place_of: Callable[[int], str] | None = None
    """Where a prompt comes from ("file.jsonl:12"), by its number, for errors."""
    make_demonstrations: Callable[[], EpisodeBatch] | None = None
    """Makes ``demonstrations`` when they are first asked for."""
    make_preferences: Callable[[], PreferencePairs] | None = None
    """Makes ``preferences`` when they are first asked for."""
    make_feedback: Callable[[], Feedback] | None = None
    """Makes ``feedback`` when it is first asked for."""
    make_player: Callable[[], Callable[[Sequence[str], np.random.Generator], str]] | None = None
    """Makes ``player`` when it is first asked for."""

    def __post_init__(self) -> None:
        if len(self.prompts) == 0:
            raise ValueError("prompts must hold at least one prompt, got none")
        for name, column in self.columns.items():
            if len(column) != len(self.prompts):
                raise ValueError(
                    f"column {name!r} must have {len(self.prompts)} values, one a prompt, got {len(column)}"
                )
        if isinstance(self.rewards, str | bytes | Mapping) or not isinstance(self.rewards, Sequence):
            raise TypeError(f"rewards must be a list of reward specs, got {shown(self.rewards)}")
        self.rewards = reward_list(self.rewards)
        check_at_least("max_new_tokens", self.max_new_tokens, 1)
        if self.max_prompt_tokens is not None:
            check_at_least("max_prompt_tokens", self.max_prompt_tokens, 1)
        check_at_least("min_new_tokens", self.min_new_tokens, 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must lie in [0, {self.max_new_tokens}], got {self.min_new_tokens}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """State for pickle: an environment holds its task's data.

        Raises:
            TypeError: if one of the functions has no name in a module, as a lambda has none.
        """
        for name in _FUNCTIONS:
            function = getattr(self, name)
            while isinstance(function, partial):
                function = function.func
            spelling = getattr(function, "__qualname__", "")
            if "<lambda>" in spelling or "<locals>" in spelling:
                raise TypeError(
                    f"the environment cannot be pickled, because {name} of its TaskData is {spelling}; use a "
                    "function at the top of a module, or functools.partial of one"
                )
        return self.__dict__.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @cached_property
    def demonstrations(self) -> EpisodeBatch | None:
        """Finished episodes with rewards for offline agents, or None if the task has none."""
        return None if self.make_demonstrations is None else self.make_demonstrations()

    @cached_property
    def preferences(self) -> PreferencePairs | None:
        """Pairs of completions, one preferred to the other, or None if the task has none."""
        return None if self.make_preferences is None else self.make_preferences()

    @cached_property
    def feedback(self) -> Feedback | None:
        """Training data of a reward model and a judge, or None if the task has no human feedback."""
        return None if self.make_feedback is None else self.make_feedback()

    @cached_property
    def player(self) -> Callable[[Sequence[str], np.random.Generator], str] | None:
        """A scripted player that does the task well (see ``textenv.tasks.players``), or None.

        It is called with the words of an episode so far and a generator, and returns its next turn.
        """
        return None if self.make_player is None else self.make_player()

    def prompt_set(
        self,
        *,
        max_prompt_tokens: int | None = None,
        truncation_side: str = "left",
        chat_template: bool = False,
    ) -> PromptSet:
        """Tokenise the prompts; ``max_prompt_tokens`` None means the task's own limit.

        Messages are always rendered by the chat template, texts (as a user's message) if ``chat_template``.
        """
        from textenv.prompts.prompt_set import PromptSet

        limit = self.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens
        try:
            return PromptSet.from_texts(
                self.prompts,
                self.tokenizer,
                columns=self.columns,
                max_prompt_tokens=limit,
                truncation_side=truncation_side,
                chat_template=chat_template or not all_texts(self.prompts),
            )
        except (TypeError, ValueError) as error:
            found = re.match(r"prompts\[(\d+)\]", str(error))
            if found is None or self.place_of is None:
                raise
            raise type(error)(f"{self.place_of(int(found[1]))}: {error}") from error
