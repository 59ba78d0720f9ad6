"""Types of options: what the command line accepts for a setting's type, and how errors name it."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

_NAMES: dict[Any, str] = {
    int: "int",
    float: "float",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Any: "any value",
}


def listed(hint: Any) -> Any:
    """The type of the items if a type is a list of any length (or None); else None.

    >>> listed(tuple[str, ...]), listed(tuple[int, ...] | None), listed(tuple[float, float])
    (<class 'str'>, <class 'int'>, None)
    """
    kinds = [kind for kind in parts(hint) if kind is not type(None)]
    if len(kinds) != 1 or typing.get_origin(kinds[0]) is not tuple:
        return None
    items = typing.get_args(kinds[0])
    return items[0] if len(items) == 2 and items[1] is Ellipsis else None


def option_type(hint: Any) -> Any:
    """The type of an option: a list also accepts a single item.

    >>> option_type(tuple[str, ...])
    tuple[str, ...] | str
    """
    item = listed(hint)
    return hint if item is None else hint | item if item is not Any else Any


def repeatable(hint: Any) -> Any:
    """The type of the items if an option may be repeated; else None.

    >>> repeatable(tuple[str, ...] | str), repeatable(int), repeatable(Any)
    (<class 'str'>, None, typing.Any)
    """
    if hint is Any:
        return Any
    return next((listed(each) for each in parts(hint) if listed(each) is not None), None)


def holds_names(hint: Any) -> bool:
    """Whether a value may be a dictionary, whose keys are then written with dots.

    >>> holds_names(bool | dict[str, Any]), holds_names(str | None)
    (True, False)
    """
    return hint is Any or any(each is Any or typing.get_origin(each) is dict for each in parts(hint))


def takes_none(hint: Any) -> bool:
    """Whether null is a value and the text "none" is not.

    >>> takes_none(float | None), takes_none(float), takes_none(Literal["none"] | None)
    (True, False, False)
    """
    kinds = parts(hint)
    choices = [each for kind in kinds if typing.get_origin(kind) is Literal for each in typing.get_args(kind)]
    return type(None) in kinds and "none" not in choices


def kind(hint: Any) -> str:
    """A type in words.

    >>> kind(float | None), kind(tuple[str, ...] | str), kind(Literal["a", "b"]), kind(Literal["a"] | bool)
    ('float or null', 'a list of text', "one of 'a', 'b'", "'a' or true or false")
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return repr(args[0]) if len(args) == 1 else f"one of {', '.join(map(repr, args))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(each) for each in args if each is not repeatable(hint))
    if origin is tuple:
        if args[1:] == (...,):
            return "a list" if args[0] is Any else f"a list of {kind(args[0])}"
        return f"a list of {len(args)} values, [{', '.join(map(kind, args))}]"
    if origin is dict:
        return "settings, {name: value}"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def parts(hint: Any) -> tuple[Any, ...]:
    """The types that a union consists of."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
