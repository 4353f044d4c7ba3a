"""Sources that note which of their lines are executed, in all processes and at little cost."""

from __future__ import annotations

import ast

EXECUTED = "__executed__"
"""The builtin function that such a source calls with ``file:line`` before a statement."""


def with_record(file: str, source: bytes) -> str:
    """Returns a source that notes each statement of a function, and each lambda, before it runs it.

    What runs when the module is imported is not noted.
    """
    tree = ast.parse(source)
    inside = {
        node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.Lambda):
            both = ast.Tuple([_note(file, node.body.lineno), node.body], ast.Load())
            node.body = ast.Subscript(both, ast.Constant(1), ast.Load())
        elif node in inside and not isinstance(node, ast.ClassDef):
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list):
                    setattr(node, name, _noted(file, block))
    return ast.unparse(ast.fix_missing_locations(tree))


def _noted(file: str, block: list[ast.stmt]) -> list[ast.stmt]:
    docstring = (
        block[:1] if block and isinstance(block[0], ast.Expr) and isinstance(block[0].value, ast.Constant) else []
    )
    rest = block[len(docstring) :]
    return docstring + [new for old in rest for new in (ast.Expr(_note(file, old.lineno)), old)]


def _note(file: str, line: int) -> ast.Call:
    return ast.Call(ast.Name(EXECUTED, ast.Load()), [ast.Constant(f"{file}:{line}")], [])
