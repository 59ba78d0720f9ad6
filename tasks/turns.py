"""The arguments of episodes with a partner, from the caller and from the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textenv.partners.registry import PartnerSpec, make_partner
from textenv.prompts.prompt_set import PromptSet
from textenv.tasks.prompts import load_tokenizer
from textenv.tasks.registry import task_names
from textenv.tasks.source import EnvSource
from textenv.utils.checks import check_at_least


def partner_source(partner: Any, task: Any, prompts: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Task and prompts of an environment that was given a partner and neither of them.

    A partner with the name of a task is that task's. Another one starts its episodes itself, after the
    tokenizer's BOS (or EOS).

    Raises:
        ValueError: if there is no tokenizer, or it has neither BOS nor EOS.
    """
    if partner is None or task is not None or prompts is not None:
        return task, prompts
    name = partner[0] if isinstance(partner, list | tuple) and partner else partner
    name = partner.get("name") if isinstance(partner, Mapping) else name
    if isinstance(name, str) and name in task_names():
        return name, None
    if tokenizer is None:
        raise ValueError("a partner without a task or prompts needs tokenizer=, got None")
    loaded = load_tokenizer(tokenizer)
    first = loaded.eos_token_id if loaded.bos_token_id is None else loaded.bos_token_id
    if first is None:
        raise ValueError("a partner without prompts needs a tokenizer with a BOS or EOS token; give prompts=")
    return None, PromptSet([[first]])


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
    return {"partner": found, **budgets, "waiting": waiting, "chat": source.chat}


def turn_budget(
    source: EnvSource, turns: Mapping[str, Any], max_new_tokens: int | None, other: int | None
) -> int | None:
    """The token budget that was given; without a task, all turns at full length."""
    counts = turns["max_turns"], turns["max_turn_tokens"]
    if max_new_tokens is None and other is None and source.data is None and None not in counts:
        return int(counts[0] * counts[1])
    return max_new_tokens
