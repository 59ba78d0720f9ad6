"""Check the value of a settings field: type, range and size of numbers; and words for types in errors."""

from __future__ import annotations

import operator
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from textenv.utils.names import shown

_LARGEST = float(np.finfo(np.float32).max)
"""Settings are combined with float32 tensors, where larger numbers are infinite."""
_LARGEST_INTEGER = 2**62
"""The sum of two smaller settings fits into int64."""

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def inside(value: float, span: str) -> bool:
    """Whether a number lies in an interval, "(0, 1]" or "(0, inf)", or passes a comparison, ">= 1".

    Raises:
        ValueError: if the span has neither form.
    """
    interval = re.fullmatch(r"([\[(])\s*(\S+)\s*,\s*(\S+?)\s*([\])])", span)
    if interval:
        left, low, high, right = interval.groups()
        above = value >= float(low) if left == "[" else value > float(low)
        return above and (value <= float(high) if right == "]" else value < float(high))
    comparison = re.fullmatch(r"([<>]=?)\s*(\S+)", span)
    if not comparison:
        raise ValueError(f"a range must look like '(0, 1]' or '>= 1', got {span!r}")
    return _COMPARISONS[comparison[1]](value, float(comparison[2]))


def builtin(value: Any) -> Any:
    """Python's scalar for numpy's, also in a list or tuple."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple) and any(isinstance(item, np.generic) for item in value):
        return type(value)(map(builtin, value))
    return value


def check_size(name: str, value: Any) -> None:
    """Refuse integers outside int64, numbers outside float32, and NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
        raise ValueError(f"{name} must be below 2**62, got {shown(value)}")
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{name} must be a finite number that float32 holds, got {shown(value)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an annotation; a bool is not a number, an int is a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if hint is None or hint is type(None):
        return value is None
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(fits(item, arg) for item, arg in zip(value, args, strict=True))
    if origin is list:
        return isinstance(value, list) and all(fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(k, args[0]) and fits(v, args[1]) for k, v in value.items()
        )
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def wants_tuple(hint: Any) -> bool:
    """Whether an annotation is a tuple, or a union with one."""
    return typing.get_origin(hint) is tuple or any(
        typing.get_origin(arg) is tuple for arg in typing.get_args(hint)
    )


def spell(hint: Any) -> str:
    """A type in the words of an error: ``int``, ``float or None``, ``one of 'linear', 'cosine'``."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(spell, args))
    if hint is type(None):
        return "None"
    return str(hint) if origin else getattr(hint, "__name__", str(hint))


def number_hint(value: Any) -> str:
    """A hint at the most common reason for text instead of a number."""
    try:
        float(value if isinstance(value, str) else "")
    except ValueError:
        return ""
    return "; it is text, not a number (YAML reads 3e-6 as text, 3.0e-6 as a number)"


def plain(value: Any) -> Any:
    """The value with lists for tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
