"""Finds default arguments that all calls of a function share: one list, say, to which each call may append."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Mapping, MutableMapping, MutableSequence
from types import CodeType, FrameType, FunctionType
from typing import Any

from sdp_compile.ir.plain import MISSING


class Defaults:
    """The containers among the default arguments of functions, found by the frames of their calls."""

    def __init__(self) -> None:
        self._of_all: dict[CodeType, list[Any]] | None = None

    def containers(self, frame: FrameType) -> list[Any]:
        """Returns the arguments of a call that are containers which its function has as defaults."""
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        held = {id(value) for name in names if _is_container(value := frame.f_locals.get(name))}
        if not held:
            return []
        function = _function_of(code, frame.f_globals) or _method_of(code, frame)
        defaults = _of_one(function) if function is not None else self._found().get(code, [])
        return [value for value in defaults if id(value) in held]

    def _found(self) -> dict[CodeType, list[Any]]:
        """Returns the containers among the defaults of every Python function that exists: slow, and so done once."""
        if self._of_all is None:
            self._of_all = {}
            for function in gc.get_objects():
                if type(function) is FunctionType:
                    containers = _of_one(function)
                    if containers:
                        self._of_all.setdefault(function.__code__, []).extend(containers)
        return self._of_all


def _function_of(code: CodeType, scope: Mapping[str, Any]) -> FunctionType | None:
    """Returns the function with this code if it is found under its own name; else None."""
    found: Any = None
    for part in getattr(code, "co_qualname", code.co_name).split("."):
        found = scope.get(part)
        scope = getattr(found, "__dict__", {})
    return _inside(found, code)


def _method_of(code: CodeType, frame: FrameType) -> FunctionType | None:
    """Returns the function with this code if it is a method of the first argument, such as one of a dataclass."""
    if not code.co_argcount:
        return None
    owner = frame.f_locals.get(code.co_varnames[0], MISSING)
    kinds = owner.__mro__ if isinstance(owner, type) else type(owner).__mro__
    methods = (_inside(vars(kind).get(code.co_name), code) for kind in kinds)
    return next((method for method in methods if method is not None), None)


def _inside(found: Any, code: CodeType) -> FunctionType | None:
    """Returns the function with this code if it is the given one, or is inside of decorators around it."""
    while found is not None and getattr(found, "__code__", None) is not code:
        found = getattr(found, "__wrapped__", None) or getattr(found, "__func__", None)
    return found if isinstance(found, FunctionType) else None


def _of_one(function: FunctionType) -> list[Any]:
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return [value for value in defaults if _is_container(value)]


def _is_container(value: Any) -> bool:
    return isinstance(value, (MutableSequence, MutableMapping, set, deque))
