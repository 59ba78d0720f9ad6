"""Tools: functions with the JSON schema from their docstring and type hints, and names for them in specs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from textenv.partners.catalog import BUILTIN_TOOLS
from textenv.utils.names import check_name, nearest, shown

TOOLS: dict[str, Callable[..., Any]] = {}
"""Name -> a function, or a class of environments."""
NOT_TOOLS = ("reset", "get_reward")
"""Public methods of an environment class that the policy can't call."""
_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (Mapping,),
    "null": (type(None),),
}

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Tool:
    """A function that the policy can call."""

    name: str
    function: Callable[..., Any]
    """May be a coroutine function."""
    schema: Mapping[str, Any]
    """``{"type": "function", "function": {"name", "description", "parameters"}}``."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Name -> JSON schema of each parameter, in order."""
        found: Mapping[str, Any] = self.schema["function"]["parameters"]["properties"]
        return found

    def checked(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call; a number without fraction is converted to an integer where one is due.

        Raises:
            ValueError: if an argument is unknown, missing or has the wrong type.
        """
        for name in arguments:
            if name not in self.parameters:
                raise ValueError(
                    f"{self.name} has no argument {name!r}; {nearest(name, list(self.parameters))}"
                )
        for name in self.schema["function"]["parameters"].get("required", ()):
            if name not in arguments:
                raise ValueError(f"{self.name} needs the argument {name!r}")
        return {
            name: _converted(value, self.parameters[name], f"{self.name}: {name}")
            for name, value in arguments.items()
        }


def register_tool(name: str, *, override: bool = False) -> Callable[[F], F]:
    """Register a function, or a class of environments, so that specs can name it: a decorator.

    Args:
        name: letters, digits and ``. _ -``.
        override: replace another tool of that name. Registering the same function again is always allowed.

    Raises:
        ValueError: if the name is malformed or belongs to another tool.
        TypeError: if the object cannot be called.

    Example:
        >>> @register_tool("double-example")
        ... def double(number: int) -> int:
        ...     '''Double a number.
        ...
        ...     Args:
        ...         number: the number.
        ...     '''
        ...     return 2 * number
        >>> find_tool("double-example") is TOOLS.pop("double-example")
        True
    """
    check_name("tool", name)

    def register(function: F) -> F:
        if not callable(function):
            raise TypeError(f"tool {name!r} must be a function or a class, got {shown(function)}")
        taken = TOOLS.get(name)
        if taken is not None and not override and _origin(taken) != _origin(function):
            raise ValueError(
                f"tool {name!r} is already registered as {_origin(taken)}; "
                "choose another name or pass override=True"
            )
        TOOLS[name] = function
        return function

    return register


def find_tool(spec: Any, *, allow_imports: bool = False) -> Callable[..., Any]:
    """A function or class that was given as an object or by name.

    Args:
        spec: a registered name, ``"module:function"``, or the object.
        allow_imports: import ``"module:function"``. Do not use it for specs that you do not trust.

    Raises:
        ValueError: if the name is unknown, can't be imported, or must not be.
        TypeError: if it cannot be called.
    """
    if not isinstance(spec, str):
        if not callable(spec):
            raise TypeError(f"a tool must be a function or its name, got {shown(spec)}")
        found: Callable[..., Any] = spec
        return found
    if spec in BUILTIN_TOOLS and spec not in TOOLS:
        import_module(BUILTIN_TOOLS[spec])
    if spec in TOOLS:
        return TOOLS[spec]
    if ":" not in spec:
        raise ValueError(f"unknown tool {spec!r}; {nearest(spec, sorted({*TOOLS, *BUILTIN_TOOLS}))}")
    if not allow_imports:
        raise ValueError(
            f"tool {spec!r} names a function to import; give the function, register it with register_tool, "
            "or use make_partner(spec, allow_imports=True) if you trust where the spec comes from"
        )
    module, _, attribute = spec.partition(":")
    try:
        target = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"tool {spec!r} can't be imported: {error}") from error
    if not callable(target):
        raise TypeError(f"tool {spec!r} must be a function or a class, got {type(target).__name__}")
    imported: Callable[..., Any] = target
    return imported


def make_tools(functions: Iterable[Callable[..., Any]]) -> dict[str, Tool]:
    """Functions as tools by name.

    Args:
        functions: with type hints, and docstrings in Google's format that describe every argument, as
            ``transformers.utils.get_json_schema`` reads them.

    Raises:
        TypeError: if one is no function.
        ValueError: if a docstring or type hint is missing, or two have the same name.
    """
    from transformers.utils import get_json_schema
    from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

    tools: dict[str, Tool] = {}
    for function in functions:
        if not (inspect.isfunction(function) or inspect.ismethod(function)):
            raise TypeError(f"a tool must be a function or a method, got {shown(function)}")
        try:
            schema = get_json_schema(function)
        except (DocstringParsingException, TypeHintParsingException) as error:
            raise ValueError(f"tool {function.__name__!r} has no schema: {error}") from error
        name = schema["function"]["name"]
        if name in tools:
            raise ValueError(f"tools must have distinct names, got {name!r} twice")
        tools[name] = Tool(name, function, schema)
    return tools


def methods_of(environment: Any) -> list[Callable[..., Any]]:
    """The public methods of an environment object, which are its tools; they are in the order of names."""
    methods = inspect.getmembers(environment, predicate=inspect.ismethod)
    return [method for name, method in methods if not name.startswith("_") and name not in NOT_TOOLS]


def _origin(target: Any) -> str:
    return f"{target.__module__}.{getattr(target, '__qualname__', None) or repr(target)}"


def _converted(value: Any, schema: Mapping[str, Any], where: str) -> Any:
    """The value, if it is what a schema of ``get_json_schema`` asks for.

    Raises:
        ValueError: if it is not.
    """
    if value is None and schema.get("nullable"):
        return value
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(f"{where} must be one of {schema['enum']}, got {value!r}")
    if "anyOf" in schema:
        return _first_fit(value, schema["anyOf"], where)
    kinds = schema.get("type")
    if isinstance(kinds, list):
        return _first_fit(value, [{"type": kind} for kind in kinds], where)
    if kinds not in _TYPES:
        return value
    if kinds == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, _TYPES[kinds]) or (isinstance(value, bool) and kinds in ("integer", "number")):
        raise ValueError(f"{where} must be {_with_article(kinds)}, got {value!r}")
    items, values = schema.get("items"), schema.get("additionalProperties")
    if isinstance(value, list | tuple) and isinstance(items, Mapping):
        return [_converted(item, items, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and isinstance(values, Mapping):
        return {key: _converted(item, values, f"{where}[{key!r}]") for key, item in value.items()}
    return value


def _first_fit(value: Any, schemas: Iterable[Mapping[str, Any]], where: str) -> Any:
    errors = []
    for schema in schemas:
        try:
            return _converted(value, schema, where)
        except ValueError as error:
            errors.append(str(error))
    kinds = " or ".join(error.partition(" must be ")[2].partition(", got")[0] for error in errors)
    raise ValueError(f"{where} must be {kinds}, got {value!r}")


def _with_article(kind: str) -> str:
    return kind if kind == "null" else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
