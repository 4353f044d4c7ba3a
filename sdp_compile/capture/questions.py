"""Finds questions in the user's code that capture answers otherwise than eager execution, where nothing can help it."""

from __future__ import annotations

import dis
import itertools
import linecache
from types import CodeType

import torch.compiler

QUESTIONS = ("is_compiling", "is_dynamo_compiling", "is_exporting")
"""The functions of `torch.compiler` that answer otherwise during capture than in eager execution."""

COMPILING = {getattr(torch.compiler, name).__code__: f"torch.compiler.{name}()" for name in QUESTIONS}
"""The code of these functions, and how they are called."""

_EXEMPT = frozenset({"is_fake_tensor"})  # transformers asks it before it looks at values, and both ways are the same
_EQUAL = frozenset({"IS_OP", "COMPARE_OP"})


def question_of_capture(code: CodeType) -> tuple[str, str] | None:
    """Returns a question about what a tensor is made of that a function asks, in words, and its line.

    Args:
        code: The code of the function.
    """
    names = {*code.co_names, *code.co_varnames}
    fake = "FakeTensor" in names and "isinstance" in names and code.co_name not in _EXEMPT
    if not fake and not {"type", "Tensor"} <= names:
        return None
    instructions = [one for one in dis.get_instructions(code) if one.opname != "CACHE"]
    line = code.co_firstlineno
    for one, following in itertools.pairwise(instructions):
        line = (one.positions.lineno if one.positions is not None else None) or line
        if fake and one.opname.startswith("LOAD_") and one.argval == "FakeTensor":
            return "asks whether a tensor is a FakeTensor", _text(code, line)
        if one.argval == "Tensor" and one.opname.startswith("LOAD_") and following.opname in _EQUAL:
            return "asks for the type() of a tensor", _text(code, line)
    return None


def _text(code: CodeType, line: int) -> str:
    return f"{code.co_filename}:{line}: {linecache.getline(code.co_filename, line).strip()}"
