"""A plain function of texts as a reward term. Shape letters: B episodes."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textenv.episodes.batch import EpisodeBatch
from textenv.episodes.conversations import (
    TURN_EXTRAS,
    completion_messages,
    generation_prompts,
    is_chat,
    prompt_messages,
)
from textenv.prompts.conversations import MESSAGES
from textenv.rewards.awaiting import awaited
from textenv.rewards.term import RewardTerm
from textenv.scoring import FLOAT32_MAX, RewardError, quote
from textenv.utils.names import nearest

_TEXT_INPUTS = ("prompts", "completions", "completion_ids")
_OPENED = "generation_prompts"
"""Another input, for functions that name it."""


@dataclass(frozen=True)
class FunctionOptions:
    """Format of the prompts and completions for a reward function; see ``register_reward``."""

    messages: bool | None = None
    """True: as messages; False: as texts; None: as messages where the prompts were given as messages."""
    special_tokens: bool = False
    """Whether texts keep special tokens."""


class FunctionReward(RewardTerm):
    """A reward from ``fn(prompts, completions, **columns) -> list[float | None]``, called with keywords.

    The function receives copies of those inputs that its signature names, or of all if it takes ``**kwargs``:
    ``prompts`` and ``completions`` (lists of B strings), ``completion_ids`` (B lists of ids) and the task's
    columns (lists of B values). If it names ``generation_prompts``, it receives the text with which the chat
    template opens each assistant turn (B strings, which may end in ``<think>``; empty without a template). If
    prompts were given as messages, each prompt is a list of messages and each completion is
    ``[{"role": "assistant", "content": text}]``.

    None in the result means "not applicable" and counts as 0; True and False are 1 and 0. The function may be
    ``async``, or return a list of awaitables, which are awaited together.

    Args:
        function: the function.
        name: its name in metrics and errors.
        arguments: constants passed to the function, e.g. from YAML.

    Raises:
        ValueError: if the function does not take an argument, or the library provides it.

    Warns:
        UserWarning: if the name of an argument for ``**kwargs`` is similar to that of another argument, or if
            the environment has chat prompts and the function does not declare whether it reads messages.

    Example:
        >>> def short(completions, limit=3):
        ...     return [None if not text else float(len(text) <= limit) for text in completions]
        >>> FunctionReward(short, limit=2).call({"prompts": ["a", "b"], "completions": ["xx", "xxx"]})
        [1.0, 0.0]
    """

    options = FunctionOptions()
    """Format of prompts and completions; ``register_reward`` sets it."""

    def __init__(self, function: Callable[..., Any], name: str | None = None, /, **arguments: Any) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self._constants = arguments
        self._warned = False
        try:
            parameters = dict(inspect.signature(function).parameters)
        except (TypeError, ValueError):  # a builtin without a signature: pass everything
            parameters = {}
            self._takes_all = True
        else:
            self._takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        self._parameters = {p.name: p for p in parameters.values() if p.kind not in variadic}
        for p in self._parameters.values():
            if p.kind is inspect.Parameter.POSITIONAL_ONLY:
                raise ValueError(
                    f"reward {self.name!r} is called with keywords, but {p.name!r} is positional-only"
                )
        for key in arguments:
            if key in _TEXT_INPUTS:
                raise ValueError(
                    f"reward {self.name!r}: {key!r} is filled in for each batch and can't be an argument"
                )
            if key not in self._parameters and not self._takes_all:
                raise ValueError(
                    f"reward {self.name!r} has no argument {key!r}; {nearest(key, self._parameters)}"
                )
            free = [p.name for p in self._parameters.values() if p.name not in arguments]
            meant = difflib.get_close_matches(key, free, n=1, cutoff=0.75)
            if key not in self._parameters and meant:
                warnings.warn(
                    f"reward {self.name!r} names no argument {key!r}, so it goes into its **keywords; "
                    f"did you mean {meant[0]!r}?",
                    stacklevel=2,
                )

    def arguments(self) -> dict[str, Any]:
        """The constant arguments."""
        return dict(self._constants)

    def __repr__(self) -> str:
        return f"FunctionReward({self.name}, {self._constants})"

    def bind(self, env: Any) -> None:
        """Bind to an environment; an error if the task lacks a column that the function requires."""
        super().bind(env)
        turns = TURN_EXTRAS if getattr(env, "has_partner", False) else ()
        self._check_columns({**env.prompts.columns, **dict.fromkeys(turns)})
        reads = self._takes("prompts") or self._takes("completions")
        if self.options.messages is None and MESSAGES in env.prompts.columns and reads and not self._warned:
            self._warned = True
            warnings.warn(
                f"reward {self.name!r} is given prompts and completions as lists of messages, because the "
                "prompts are; register it with messages=True to say that it reads them, or with "
                "messages=False to give it texts",
                stacklevel=2,
            )

    def score(self, episodes: EpisodeBatch) -> Tensor:
        """(B,): the function's values, 0 for None.

        Raises:
            RewardError: if the function fails, or returns a wrong number of values or a value that is not a
                finite number; with the prompt and completion that caused it, if one did.
        """
        inputs = self._inputs(episodes)
        try:
            given = self.call(inputs)
        except (Exception, SystemExit) as error:  # a function must not end the training without an error
            raise RewardError(self._blame(inputs, error)) from error
        values = self._as_list(given)
        if len(values) != len(episodes):
            raise RewardError(
                f"reward {self.name!r} must give one value for each of {len(episodes)} completions, "
                f"got {len(values)}"
            )
        return torch.tensor(
            [self._number(value, episodes, row) for row, value in enumerate(values)],
            dtype=torch.float32,
            device=episodes.device,
        )

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """Call the function with copies of the inputs that it takes, and wait for it if it is async."""
        taken = {key: copied(value) for key, value in inputs.items() if self._takes(key)}
        return awaited(self.function(**taken, **copied(self._constants)))

    # -- internals -----------------------------------------------------------------------------------------

    def _takes(self, key: str) -> bool:
        return key not in self._constants and (self._takes_all or key in self._parameters)

    def _check_columns(self, columns: Mapping[str, Any]) -> None:
        for p in self._parameters.values():
            known = p.name in (*_TEXT_INPUTS, _OPENED) or p.name in columns or p.name in self._constants
            if not known and p.default is inspect.Parameter.empty:
                offered = ", ".join((*_TEXT_INPUTS, *columns))
                raise ValueError(
                    f"reward {self.name!r} requires {p.name!r}, but the task offers only {offered}"
                )

    def _inputs(self, episodes: EpisodeBatch) -> dict[str, Any]:
        self._check_columns(episodes.extras)
        inputs: dict[str, Any] = {key: list(column) for key, column in episodes.extras.items()}
        skip = not self.options.special_tokens
        messages = is_chat(episodes) if self.options.messages is None else self.options.messages
        takes_prompts, takes_completions = self._takes("prompts"), self._takes("completions")
        pairs = []
        if takes_completions or (takes_prompts and not messages):
            pairs = episodes.texts(self.tokenizer, skip_special_tokens=skip)
        if takes_prompts:
            inputs["prompts"] = (
                prompt_messages(episodes, self.tokenizer) if messages else [prompt for prompt, _ in pairs]
            )
        if takes_completions:
            texts = [completion for _, completion in pairs]
            inputs["completions"] = completion_messages(episodes, texts) if messages else texts
        if _OPENED in self._parameters and _OPENED not in (*inputs, *self._constants):
            inputs[_OPENED] = generation_prompts(episodes, self.tokenizer)
        if self._takes("completion_ids"):
            starts, ends = episodes.prompt_lengths.tolist(), episodes.lengths.tolist()
            rows = episodes.input_ids.tolist()
            inputs["completion_ids"] = [row[a:b] for row, a, b in zip(rows, starts, ends, strict=True)]
        return inputs

    def _blame(self, inputs: Mapping[str, Any], error: BaseException) -> str:
        """Error message that names the sample on which the function fails."""
        what = f"{type(error).__name__}: {error}"
        count = max((len(column) for column in inputs.values()), default=0)
        for row in range(count):
            sample = {key: column[row : row + 1] for key, column in inputs.items()}
            try:
                self.call(sample)
            except (Exception, SystemExit) as alone:
                shown = ", ".join(f"{key.removesuffix('s')} {value[0]!r}" for key, value in sample.items())
                hint = ""
                if self.options.messages is None and MESSAGES in inputs:
                    hint = " (prompts and completions are lists of messages, because the prompts were; texts "
                    hint += "are given to rewards registered with messages=False)"
                return f"reward {self.name!r} raised {type(alone).__name__}: {alone} for {shown}{hint}"
        return (
            f"reward {self.name!r} raised {what} for a batch of {count} episodes, but for none of them alone"
        )

    def _as_list(self, given: Any) -> list[Any]:
        if isinstance(given, Tensor) or hasattr(given, "tolist"):
            given = given.tolist()
        if not isinstance(given, list | tuple):
            raise RewardError(f"reward {self.name!r} must give a list of numbers, got {type(given).__name__}")
        return list(given)

    def _number(self, value: Any, episodes: EpisodeBatch, row: int) -> float:
        if value is None:
            return 0.0
        if isinstance(value, Tensor) or (hasattr(value, "item") and not isinstance(value, numbers.Real)):
            value = value.item()
        if not isinstance(value, numbers.Real):
            raise RewardError(
                f"reward {self.name!r} gave {value!r}, not a number, for {quote(episodes, row, self)}"
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not abs(number) <= FLOAT32_MAX:
            finite = not isinstance(value, float) or math.isfinite(value)
            shown = str(value) if isinstance(value, float) else "a number"  # an int may be too long to show
            shown += ", beyond float32," if finite else ""
            raise RewardError(f"reward {self.name!r} gave {shown} for {quote(episodes, row, self)}")
        return number


def copied(value: Any) -> Any:
    """A deep copy of lists, dictionaries, sets and arrays; other objects are shared."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    if isinstance(value, Tensor):
        return value.clone()
    return value.copy() if isinstance(value, set | np.ndarray) else value
