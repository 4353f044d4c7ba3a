"""Puts a mutant into the functions of a running process, so that nothing has to be imported again."""

from __future__ import annotations

import gc
import inspect
from types import CodeType, FunctionType

Changes = dict[CodeType, CodeType]


def changed_functions(original: bytes, mutant: bytes) -> Changes | None:
    """Returns the code of each function that differs, with the new one; None where code that runs at import differs."""
    changes: Changes = {}
    old, new = (compile(source, "module", "exec", dont_inherit=True) for source in (original, mutant))
    return changes if _compare(old, new, changes) else None


def install(changes: Changes) -> None:
    """Gives every function of this process its new code."""
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__ in changes:
            function.__code__ = changes[function.__code__]


def _compare(old: CodeType, new: CodeType, changes: Changes) -> bool:
    inner_old, inner_new = _inner(old), _inner(new)
    alike = len(inner_old) == len(inner_new)
    if old.co_flags & inspect.CO_OPTIMIZED:  # a function, not a module or the body of a class
        if old.co_freevars != new.co_freevars:
            return False
        if old != new:
            changes[old] = new
    elif not alike or _own(old) != _own(new):
        return False
    return not alike or all(_compare(a, b, changes) for a, b in zip(inner_old, inner_new, strict=True))


def _inner(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _own(code: CodeType) -> tuple[object, ...]:
    constants = [repr(constant) for constant in code.co_consts if not isinstance(constant, CodeType)]
    return code.co_code, code.co_names, constants
