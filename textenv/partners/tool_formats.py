"""Calls of tools in the text of a turn: JSON in ``<tool_call>``, Llama 3's JSON, and calls as in Python.

The parsers are strict. A turn without a call is an answer; a turn that begins a call and does not finish it
as the format asks is an error, whose message says what was expected.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from textenv.partners.tool_schemas import Tool
from textenv.utils.names import shown

OPEN, CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
MARKS = (OPEN, CLOSE, PYTHON_TAG)
"""Texts that mark calls; tokenizers may have them as control tokens."""
EXPECTED = {
    "hermes": '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>',
    "llama3": '{"name": "...", "parameters": {...}}',
    "python": "name(argument, keyword=argument)",
}
"""Format -> what a call looks like."""
_UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError)
"""What the parsers of Python raise on texts that are too deep, too long or malformed."""


@dataclass(frozen=True)
class Call:
    """A call as the policy wrote it; names and types are not checked yet."""

    name: str
    arguments: Mapping[str, Any]


class MalformedCall(ValueError):
    """A turn that begins a call which cannot be parsed."""


def parse_calls(text: str, call_format: str, tools: Mapping[str, Tool]) -> list[Call]:
    """The calls in a turn; none if the turn is an answer. What comes before ``</think>`` does not count.

    Args:
        text: of the turn.
        call_format: "hermes", "llama3" or "python".
        tools: by name; Python calls need the names of parameters.

    Raises:
        MalformedCall: if a call is begun and not as expected.

    Example:
        >>> parse_calls('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', "hermes", {})
        [Call(name='f', arguments={'a': 1})]
        >>> parse_calls("It is 4.", "hermes", {})
        []
    """
    return _PARSERS[call_format](text.rpartition("</think>")[2].strip(), tools)


def calls_of_message(message: Any) -> list[Call]:
    """The calls of a message as ``tokenizer.parse_response`` returns it.

    Raises:
        MalformedCall: if a call has no name, or its arguments are no object.
    """
    found = []
    for call in (message or {}).get("tool_calls") or ():
        function = call.get("function") or call if isinstance(call, Mapping) else call
        found.append(_call(function, "the format of the chat template"))
    return found


def expected(call_format: str) -> str:
    """What a call looks like, for error messages."""
    return EXPECTED.get(call_format, "the format of the chat template")


def _malformed(call_format: str, problem: str) -> MalformedCall:
    return MalformedCall(f"malformed call, {problem}; expected {expected(call_format)}")


def _hermes(text: str, tools: Mapping[str, Tool]) -> list[Call]:
    if OPEN not in text:
        if CLOSE in text:
            raise _malformed("hermes", f"{CLOSE} without {OPEN}")
        return []
    calls = []
    for part in text.split(OPEN)[1:]:
        body, close, _ = part.partition(CLOSE)
        if not close:
            raise _malformed("hermes", f"{OPEN} without {CLOSE}")
        try:
            value = _json(body)
        except _UNREADABLE as error:
            raise _malformed("hermes", f"no JSON ({error})") from error
        calls.append(_call(value, "hermes"))
    return calls


def _llama3(text: str, tools: Mapping[str, Tool]) -> list[Call]:
    tagged = text.startswith(PYTHON_TAG)
    text = text.removeprefix(PYTHON_TAG).strip()
    if not tagged and not (text.startswith("{") and '"name"' in text):
        return []
    calls = []
    while text:
        try:
            value, end = _DECODER.raw_decode(text)
        except _UNREADABLE as error:
            raise _malformed("llama3", f"no JSON ({error})") from error
        calls.append(_call(value, "llama3"))
        text = text[end:].lstrip("; \n")
    if not calls:
        raise _malformed("llama3", "nothing follows the tag")
    return calls


def _python(text: str, tools: Mapping[str, Tool]) -> list[Call]:
    text = text.removeprefix(PYTHON_TAG).strip()
    if not re.match(r"\[?\s*[A-Za-z_][\w.]*\(", text):
        return []
    try:
        body = ast.parse(text, mode="eval").body
    except _UNREADABLE as error:
        problem = getattr(error, "msg", None) or str(error) or type(error).__name__
        raise _malformed("python", problem) from error
    nodes = body.elts if isinstance(body, ast.List) else [body]
    return [_python_call(node, text, tools) for node in nodes]


def _python_call(node: ast.expr, text: str, tools: Mapping[str, Tool]) -> Call:
    if not isinstance(node, ast.Call):
        raise _malformed("python", f"{shown(ast.unparse(node))} is no call")
    name = ast.unparse(node.func)
    parameters = tools[name].parameters if name in tools else {}
    if len(node.args) > len(parameters) and name in tools:
        raise _malformed("python", f"{name} takes {len(parameters)} arguments, got {len(node.args)}")
    given = [*zip(parameters, node.args, strict=False)]
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in dict(given):
            raise _malformed("python", f"{keyword.arg or '**'} is no further argument of {name}")
        given.append((keyword.arg, keyword.value))
    return Call(name, {key: _literal(value, parameters.get(key, {}), text) for key, value in given})


def _literal(node: ast.expr, schema: Mapping[str, Any], text: str) -> Any:
    """The value of an argument; where a string is due, other expressions are their own text."""
    try:
        value = ast.literal_eval(node)
    except _UNREADABLE:
        value = ...
    if schema.get("type") == "string" and not isinstance(value, str):
        return ast.get_source_segment(text, node)
    if value is ...:
        raise _malformed("python", f"{shown(ast.unparse(node))} is no literal")
    return value


def _call(value: Any, call_format: str) -> Call:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise _malformed(call_format, "no object with a name")
    keys = ("parameters", "arguments") if call_format == "llama3" else ("arguments", "parameters")
    arguments: Any = next((value[key] for key in keys if key in value), {})
    if isinstance(arguments, str):
        try:
            arguments = _json(arguments)
        except _UNREADABLE as error:
            raise _malformed(call_format, f"the arguments are no JSON ({error})") from error
    if not isinstance(arguments, Mapping):
        raise _malformed(call_format, f"the arguments are no object, but {shown(arguments)}")
    return Call(value["name"], arguments)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_PARSERS: dict[str, Callable[[str, Mapping[str, Tool]], list[Call]]] = {
    "hermes": _hermes,
    "llama3": _llama3,
    "python": _python,
}


def _json(text: str) -> Any:
    return _DECODER.decode(text.strip())
