"""Repeated options and values "none" are rewritten for the parser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from textenv.agents.cli.errors import UsageError
from textenv.agents.cli.kinds import repeatable, takes_none

AS_OFTEN = ("config", "help", "print_config")
"""Options that may be given any number of times."""


def with_one_of_each(argv: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """Join the values of an option that is a list, and refuse another one that is given twice.

    Args:
        argv: the command line, dashes in names as underscores.
        hints: option -> its type, as the settings have it.

    Raises:
        UsageError: naming the option and its values.

    >>> with_one_of_each(["ppo", "--reward", "length", "--reward=[[brevity, {coef: 2}]]"], {"reward": Any})
    ['ppo', '--reward=[length, [brevity, {coef: 2}]]']
    >>> with_one_of_each(["--reward=kl", "--reward=[length, {name: regex, pattern: a}]"], {"reward": Any})
    ['--reward=[kl, length, {name: regex, pattern: a}]']
    """
    found: dict[str, list[str]] = {}
    rest: list[tuple[str, str | None]] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        name, equals, value = token[2:].partition("=")
        if not token.startswith("--") or name not in hints or name in AS_OFTEN:
            rest.append((token, None))
            continue
        if not equals:
            value = tokens.pop(0) if tokens and not tokens[0].startswith("--") else ""
        values = found.setdefault(name, [])
        if not values:
            rest.append((token if equals or not value else f"{token}={value}", name))
        values.append(value)
    return [
        token
        if name is None or len(found[name]) == 1
        else f"--{name}={_joined(name, found[name], hints[name])}"
        for token, name in rest
    ]


def with_null(argv: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """Replace none by null where an option accepts null.

    >>> with_null(["--max_grad_norm", "None", "--task=none"], {"max_grad_norm": float | None, "task": str})
    ['--max_grad_norm', 'null', '--task=none']
    """
    made = list(argv)
    for i, token in enumerate(argv):
        name, equals, value = token[2:].partition("=")
        if not token.startswith("--") or not takes_none(hints.get(name)):
            continue
        if equals and value.lower() == "none":
            made[i] = f"--{name}=null"
        elif not equals and i + 1 < len(argv) and argv[i + 1].lower() == "none":
            made[i + 1] = "null"
    return made


def _joined(name: str, values: Sequence[str], hint: Any) -> str:
    item = repeatable(hint)
    if item is None:
        shown = " and ".join(value or "no value" for value in values)
        raise UsageError(f"--{name} is given {_times(len(values))}, as {shown}; give it once")
    made = [_items(value, item) for value in values]
    return f"[{', '.join(text for text in made if text)}]"


def _items(text: str, item: Any) -> str:
    """The items of a value, written as items of a YAML list."""
    from textenv.rewards.registry import is_pair  # late: it needs torch, and few options are repeated

    found = _read(text)
    if isinstance(found, list) and not is_pair(found):
        return text.strip()[1:-1].strip().rstrip(",")
    return json.dumps(text) if item is str else text


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:  # a string that is not YAML, such as "[INST] hello"
        return text


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"
