"""Mutants of a source file: copies that differ in one small place, which a test should notice."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: Path from the root of the project.
        line: Line of the change, counted from 1.
        column: Column of the change in UTF-8 bytes, counted from 0.
        before: Source text that is replaced.
        after: Text in its place.
        start: Offset of ``before`` in the file, in bytes.
        first: First line whose execution reaches the change.
        last: Last line whose execution reaches the change.
    """

    file: str
    line: int
    column: int
    before: str
    after: str
    start: int
    first: int
    last: int

    def apply(self, source: bytes) -> bytes:
        """Returns the source of the file with the change."""
        return source[: self.start] + self.after.encode() + source[self.start + len(self.before.encode()) :]


def find_mutants(file: str, source: bytes) -> list[Mutant]:
    """Returns all mutants of a file, in the order of their places.

    Left out are type annotations, docstrings and other texts, ``__repr__``, what an error says, and checks that hold
    always: ``assert`` and ``zip(strict=True)``.
    """
    finder = _Finder(file, source)
    finder.visit(ast.parse(source))
    return sorted(finder.found, key=lambda mutant: (mutant.start, mutant.before, mutant.after))


class _Finder(ast.NodeVisitor):
    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.found: list[Mutant] = []
        self.reach = (1, 1)
        self.line_starts = [0]
        for line in source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)) or _is_text_or_type(node):
            return
        outer = self.reach
        if isinstance(node, ast.stmt):
            self.reach = _reach(node)
        for replacement in _replacements(node):
            self._add(node, replacement)
        if isinstance(node, (ast.If, ast.comprehension)):
            for condition in [node.test] if isinstance(node, ast.If) else node.ifs:
                if not isinstance(condition, (ast.Compare, ast.UnaryOp)):  # these have such a mutant of their own
                    self._add(condition, f"(not ({ast.unparse(condition)}))")
        if not isinstance(node, ast.Raise):
            for name, value in ast.iter_fields(node):
                if name not in ("annotation", "returns", "type_comment"):
                    for child in value if isinstance(value, list) else [value]:
                        if isinstance(child, ast.AST):
                            self.visit(child)
        self.reach = outer

    def _add(self, node: ast.AST, after: str) -> None:
        assert isinstance(node, (ast.expr, ast.stmt)) and node.end_lineno and node.end_col_offset is not None
        start = self.line_starts[node.lineno - 1] + node.col_offset
        stop = self.line_starts[node.end_lineno - 1] + node.end_col_offset
        before = self.source[start:stop].decode()
        self.found.append(Mutant(self.file, node.lineno, node.col_offset, before, after, start, *self.reach))


def _is_text_or_type(node: ast.AST) -> bool:
    match node:
        case ast.FunctionDef(name="__repr__") | ast.keyword(arg="strict"):
            return True
        case ast.Call(func=ast.Name(id="dataclass" | "cast" | "TypeVar")):
            return True
        case ast.AnnAssign(annotation=ast.Name(id="TypeAlias")):
            return True
    return False


def _reach(node: ast.stmt) -> tuple[int, int]:
    """The lines of a simple statement, of the head of a compound one, or all of a function and its decorators."""
    end = node.end_lineno or node.lineno
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), end
    if isinstance(node, ast.Match):
        return node.lineno, node.lineno
    body = getattr(node, "body", None)
    return node.lineno, max(node.lineno, body[0].lineno - 1) if body else end


def _replacements(node: ast.AST) -> Iterator[str]:
    """The texts that may stand in a node's place."""
    match node:
        case ast.Compare(ops=ops):
            for number, op in enumerate(ops):
                changed = copy.deepcopy(node)
                changed.ops[number] = COMPARISONS[type(op)]()
                yield f"({ast.unparse(changed)})"
        case ast.BoolOp(op=op, values=values):
            yield f"({ast.unparse(ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values))})"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            if not any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (left, right)):
                yield f"({ast.unparse(ast.BinOp(left, ARITHMETIC[type(op)](), right))})"
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.Constant(value=bool() as value):
            yield str(not value)
        case ast.Constant(value=int() | float() as value):
            yield str(value + 1)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield f"({ast.unparse(ast.IfExp(test, orelse, body))})"
        case ast.Name(id=name) if name in FUNCTIONS:
            yield FUNCTIONS[name]
        case ast.Slice():
            for bound in ("lower", "upper"):
                value = getattr(node, bound)
                if value is not None and not isinstance(value, ast.Constant):
                    changed_slice = copy.deepcopy(node)
                    setattr(changed_slice, bound, ast.BinOp(value, ast.Add(), ast.Constant(1)))
                    yield ast.unparse(changed_slice)
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) not in ("None", "False"):
            yield "return None"
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Delete():
            yield "pass"
        case ast.AugAssign(target=target, op=op, value=value):
            yield "pass"
            if type(op) in ARITHMETIC:
                yield ast.unparse(ast.AugAssign(target, ARITHMETIC[type(op)](), value))
        case ast.Continue():
            yield "break"
        case ast.Break():
            yield "continue"
