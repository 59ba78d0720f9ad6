"""Values of options on a command line, before the parser reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import yaml

from textenv.agents.cli.errors import UsageError
from textenv.utils.names import strings_in


def option_values(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of every option that has a value, dashes in names as underscores.

    >>> list(option_values(["ppo", "--task", "x", "--env.max-new-tokens=3", "--resume"]))
    [('task', 'x'), ('env.max_new_tokens', '3')]
    """
    for i, token in enumerate(argv):
        if not token.startswith("--"):
            continue
        name, equals, value = token[2:].partition("=")
        name = name.removesuffix("+").replace("-", "_")
        if equals:
            yield name, value
        elif i + 1 < len(argv) and not argv[i + 1].startswith("--"):
            yield name, argv[i + 1]


def named_in(text: str) -> set[str]:
    """Every string in a value, whole: a value of YAML is read, whatever else is one string.

    >>> sorted(named_in("[length, [a.py:f, {of: b:g}]]"))
    ['a.py:f', 'b:g', 'length']
    >>> named_in("a:b:c"), named_in("[")
    ({'a:b:c'}, {'['})
    """
    try:
        return set(strings_in(yaml.safe_load(text))) or {text}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {text}


def check_no_repeats(node: yaml.Node | None, place: str) -> None:
    """Refuse a mapping with a repeated key; YAML would silently keep the last one.

    Args:
        node: what ``yaml.compose`` gave.
        place: the file or option, for the error.

    Raises:
        UsageError: naming place, line and key.
    """
    seen: set[int] = set()
    waiting = [] if node is None else [node]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:  # an anchor's node stands in several places, or in itself
            continue
        seen.add(id(found))
        if isinstance(found, yaml.SequenceNode):
            waiting += found.value
        elif isinstance(found, yaml.MappingNode):
            first: dict[tuple[str, str], int] = {}
            for key, value in found.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise UsageError(f"{place}, line {line}: a key must be a name, got a list or a mapping")
                name = key.tag, key.value
                if name in first:
                    raise UsageError(
                        f"{place}, line {line}: the key {key.value!r} is given twice, "
                        f"first in line {first[name]}"
                    )
                first[name] = line
                waiting.append(value)
