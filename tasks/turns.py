"""The arguments of episodes with a partner, from the caller and from the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textenv.partners.registry import PartnerSpec, make_partner
from textenv.prompts.prompt_set import PromptSet
from textenv.tasks.prompts import load_tokenizer
from textenv.tasks.registry import make_task, task_names
from textenv.tasks.source import EnvSource
from textenv.utils.checks import check_at_least
from textenv.utils.specs import split_spec


def partner_source(
    partner: Any, task: Any, prompts: Any, tokenizer: Any, task_kwargs: Any = None
) -> tuple[Any, Any, Any]:
    """Task, prompts and task arguments of an environment that was given a partner and neither of them.

    A partner with the name of a task is that task's, and its arguments are those of the task, as far as the
    task has them. Another one starts its episodes itself, after the tokenizer's BOS (or EOS).

    Raises:
        ValueError: if there is no tokenizer, or it has neither BOS nor EOS.
    """
    if partner is None or task is not None or prompts is not None:
        return task, prompts, task_kwargs
    name, arguments = split_spec(partner) or (None, {})
    if name in task_names():
        known = make_task(name).arguments
        own = {key: value for key, value in arguments.items() if key in known}
        return name, None, {**own, **(task_kwargs or {})}
    make_partner(partner)  # a misspelt name is an error of its own, before the tokenizer is missed
    if tokenizer is None:
        raise ValueError("a partner without a task or prompts needs tokenizer=, got None")
    loaded = load_tokenizer(tokenizer)
    first = loaded.eos_token_id if loaded.bos_token_id is None else loaded.bos_token_id
    if first is None:
        raise ValueError("a partner without prompts needs a tokenizer with a BOS or EOS token; give prompts=")
    return None, PromptSet([[first]]), task_kwargs


def turn_arguments(
    source: EnvSource,
    partner: Any,
    max_turns: int | None,
    max_turn_tokens: int | None,
    max_length: int | None,
    waiting: str,
) -> dict[str, Any]:
    """Arguments of ``TextVectorEnv``: those given, or else the task's."""
    found: PartnerSpec | None = None
    partner = source.value("partner", partner, None)
    if partner is not None:
        found = make_partner(partner)
    given = {"max_turns": max_turns, "max_turn_tokens": max_turn_tokens, "max_length": max_length}
    for name, value in given.items():
        if value is not None:
            check_at_least(name, value, 1)
    budgets = {name: source.value(name, value, None) for name, value in given.items()}
    if other_turns(max_turns, max_turn_tokens):
        budgets["max_length"] = max_length
    return {"partner": found, **budgets, "waiting": waiting, "chat": source.chat}


def other_turns(max_turns: int | None, max_turn_tokens: int | None) -> bool:
    """Whether the turns are not the task's, so that its limits of whole episodes do not fit them."""
    return max_turns is not None or max_turn_tokens is not None


def turn_budget(
    source: EnvSource,
    turns: Mapping[str, Any],
    max_new_tokens: int | None,
    other: int | None,
    *,
    own: bool,
) -> int | None:
    """The token budget that was given, or that of all turns at full length if they are not the task's.

    Args:
        source: of the environment.
        turns: from ``turn_arguments``.
        max_new_tokens: the budget that was given.
        other: the same under another name.
        own: see ``other_turns``.
    """
    counts = turns["max_turns"], turns["max_turn_tokens"]
    unknown = source.data is None or own
    if max_new_tokens is None and other is None and unknown and None not in counts:
        return int(counts[0] * counts[1])
    return max_new_tokens
