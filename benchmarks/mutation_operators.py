"""Mutation operators: small faults put into numerical code, one at a time, to see whether a test fails.

Each operator looks at one node of the syntax tree and yields replacements for a span of the source text. The
rest of the file keeps its text. Error messages, argument checks, annotations, docstrings and defaults are
not mutated: a default is a choice, not a computation.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_SWAPPED_NAMES = {
    "minimum": "maximum",
    "min": "max",
    "amin": "amax",
    "clamp_min": "clamp_max",
    "logical_and": "logical_or",
    "argmin": "argmax",
}
_SWAPPED_NAMES |= {new: old for old, new in _SWAPPED_NAMES.items()}
_ARITHMETIC = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
_COMPARISONS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
}


@dataclass(frozen=True, order=True)
class Mutation:
    """One fault: bytes [start, end) of a file are replaced."""

    file: str
    line: int
    start: int
    end: int
    operator: str
    original: str
    replacement: str

    @property
    def name(self) -> str:
        """File, line, operator and change, in one line."""
        before, after = (" ".join(text.split()) for text in (self.original, self.replacement))
        return f"{self.file}:{self.line} {self.operator}: {before} -> {after}"

    def apply(self, source: bytes) -> bytes:
        """The file's text with the fault.

        Raises:
            ValueError: if the text at the place is not the original.
        """
        if source[self.start : self.end].decode() != self.original:
            raise ValueError(f"{self.file} has changed: expected {self.original!r} at byte {self.start}")
        return source[: self.start] + self.replacement.encode() + source[self.end :]


def mutations_of(file: str, source: bytes) -> list[Mutation]:
    """All mutations of one file, sorted by place; each is valid Python and differs from the original.

    Example:
        >>> [found.replacement for found in mutations_of("f.py", b"y = a - b.detach()")]
        ['a + b.detach()', 'b']
    """
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def place(line: int, column: int) -> int:
        return lines[line - 1] + column

    found = set()
    for node in _nodes(ast.parse(source)):
        for operator, target, replacement in _mutants(node):
            start = place(target.lineno, target.col_offset)
            end = place(target.end_lineno or 0, target.end_col_offset or 0)
            original = source[start:end].decode()
            if isinstance(target, ast.keyword):
                replacement, original, start, end = _without_keyword(source, start, end)
            candidate = Mutation(file, target.lineno, start, end, operator, original, replacement)
            if replacement != original and _is_python(candidate.apply(source)):
                found.add(candidate)
    return sorted(found)


def _is_python(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _without_keyword(source: bytes, start: int, end: int) -> tuple[str, str, int, int]:
    """Cut one ``name=value`` from a call, with the comma behind it or before it."""
    after = end
    while source[after : after + 1].isspace():
        after += 1
    if source[after : after + 1] == b",":
        end = after + 1
    else:
        while source[start - 1 : start].isspace():
            start -= 1
        if source[start - 1 : start] == b",":
            start -= 1
    return "", source[start:end].decode(), start, end


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that may be mutated."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)):
            continue
        if isinstance(child, ast.AnnAssign):
            if isinstance(tree, ast.ClassDef) or child.value is None:
                continue  # a setting's default
            yield from _nodes(ast.Expr(child.value))
            continue
        if isinstance(child, ast.arguments) or (
            isinstance(child, ast.expr) and child is getattr(tree, "returns", None)
        ):
            continue
        if isinstance(child, ast.expr) and child in getattr(tree, "decorator_list", []):
            continue
        if isinstance(child, ast.If) and _only_raises(child):
            continue  # a check of arguments
        yield child
        yield from _nodes(child)


def _only_raises(node: ast.If) -> bool:
    return all(isinstance(statement, ast.Raise) for statement in node.body) and not node.orelse


def _mutants(node: ast.AST) -> Iterator[tuple[str, ast.expr | ast.keyword, str]]:
    """(operator, node to replace, new text) for all faults of one node."""
    if isinstance(node, ast.BinOp):
        left, right = _operand(node.left), _operand(node.right)
        if type(node.op) in _ARITHMETIC:
            _, other = _ARITHMETIC[type(node.op)]
            yield "sign" if other in "+-" else "scale", node, f"{left} {other} {right}"
        if isinstance(node.op, (ast.Mult, ast.Div)):
            yield "factor", node, left
        if isinstance(node.op, ast.Mult):
            yield "factor", node, right
        if isinstance(node.op, ast.BitAnd):
            yield "mask", node, left
            yield "mask", node, right
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        if not isinstance(node.operand, ast.Constant):  # -1 as an index or dimension is no sign
            yield "sign", node, _operand(node.operand)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Invert, ast.Not)):
        yield "negation", node, _operand(node.operand)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        _, other = _COMPARISONS[type(node.ops[0])]
        yield "comparison", node, f"{_operand(node.left)} {other} {_operand(node.comparators[0])}"
    elif isinstance(node, ast.BoolOp):
        other = " or " if isinstance(node.op, ast.And) else " and "
        yield "condition", node, f"({other.join(_operand(value) for value in node.values)})"
    elif isinstance(node, ast.IfExp):
        yield "branch", node, _operand(node.body)
        yield "branch", node, _operand(node.orelse)
    elif isinstance(node, ast.Call):
        yield from _mutants_of_call(node)
    elif isinstance(node, (ast.Slice, ast.Subscript)):
        yield from _off_by_one(node)


def _mutants_of_call(node: ast.Call) -> Iterator[tuple[str, ast.expr | ast.keyword, str]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if isinstance(node.func, ast.Attribute):
        owner = ast.unparse(node.func.value)
        if name in ("detach", "masked_fill", "square", "exp", "cumsum", "flip", "abs"):
            yield "detach" if name == "detach" else "call", node, owner
        if name == "where" and len(node.args) == 3:
            yield "mask", node, _operand(node.args[1])
    if name in _SWAPPED_NAMES:
        arguments = ", ".join(ast.unparse(argument) for argument in [*node.args, *node.keywords])
        function = f"{ast.unparse(node.func.value)}." if isinstance(node.func, ast.Attribute) else ""
        yield "extremum", node, f"{function}{_SWAPPED_NAMES[name]}({arguments})"
    if name in ("range", "roll", "arange", "narrow"):
        for argument in node.args:
            if isinstance(argument, ast.Constant) and type(argument.value) is int:
                yield "off-by-one", argument, str(argument.value + 1)
    for keyword in node.keywords:
        if keyword.arg is not None and not isinstance(keyword.value, ast.Constant):
            yield "keyword", keyword, ""


def _off_by_one(node: ast.Slice | ast.Subscript) -> Iterator[tuple[str, ast.expr, str]]:
    parts = [node.lower, node.upper] if isinstance(node, ast.Slice) else [node.slice]
    for part in parts:
        value = ast.literal_eval(part) if part is not None and _is_integer(part) else None
        if value is not None and part is not None:
            yield "off-by-one", part, str(value + 1)


def _is_integer(node: ast.expr) -> bool:
    inner = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
    return isinstance(inner, ast.Constant) and type(inner.value) is int


def _operand(node: ast.expr) -> str:
    text = ast.unparse(node)
    return (
        text
        if isinstance(node, (ast.Name, ast.Constant, ast.Attribute, ast.Call, ast.Subscript))
        else f"({text})"
    )
