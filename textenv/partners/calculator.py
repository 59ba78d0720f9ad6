"""The tool "calculator": arithmetic on numbers, without Python's ``eval``."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from textenv.partners.tool_schemas import register_tool

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_LONGEST = 200
"""Characters of an expression; nothing in it can grow beyond the digits written."""
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


@register_tool("calculator")
def calc(expression: str) -> str:
    """Evaluate an arithmetic expression.

    Args:
        expression: numbers with + - * / and parentheses, such as "12*(3+4)".

    Raises:
        ValueError: if it is something else, or divides by zero.

    Example:
        >>> calc("12*(3+4)"), calc("1/4"), calc("0.1+0.2")
        ('84', '0.25', '0.3')
    """
    value = evaluate(expression)
    return str(value.numerator) if value.denominator == 1 else repr(float(value))


def evaluate(expression: str) -> Fraction:
    """The exact value of an expression of numbers with + - * / and parentheses.

    Raises:
        ValueError: if it is something else, or divides by zero.
    """
    text = expression.strip()
    if len(text) > _LONGEST:
        raise ValueError(f"expression must have at most {_LONGEST} characters, got {len(text)}")
    try:
        return _value(ast.parse(text, mode="eval").body, text)
    except ZeroDivisionError:
        raise ValueError(f"division by zero in {text!r}") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"expression must be arithmetic such as 12*(3+4), got {text!r}") from None


def _value(node: ast.AST, text: str) -> Fraction:
    if isinstance(node, ast.Constant):
        digits = ast.get_source_segment(text, node) or ""
        if _NUMBER.fullmatch(digits):  # no exponents: 1e999999999 would fill the memory
            return Fraction(digits)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        operand: Fraction = _OPERATORS[type(node.op)](_value(node.operand, text))
        return operand
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        found: Fraction = _OPERATORS[type(node.op)](_value(node.left, text), _value(node.right, text))
        return found
    raise ValueError(f"expression must be arithmetic such as 12*(3+4), got {text!r}")
