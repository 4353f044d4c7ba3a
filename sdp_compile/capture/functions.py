"""Notes the functions that forward finds by name, so that another one in the place of one of them is seen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from sdp_compile.capture.users import is_of_users, is_users
from sdp_compile.capture.variables import encloses
from sdp_compile.ir.plain import MISSING, bare, frozen
from sdp_compile.ir.reads import Cells, Read, owner_of, owner_of_class

_KINDS = (FunctionType, BuiltinFunctionType, property, staticmethod, classmethod)
CONSTANT_MODULES = ("math", "cmath", "numpy", "torch")
"""Modules of which no variable changes."""

_TORCH = torch.__name__ + "."

NoteRead = Callable[[Read], None]


class FunctionNotes:
    """Notes functions in modules, classes and the variables that hooks enclose.

    Args:
        note: What is called for each function that is found.
        model: The model, whose hooks and attributes are searched for functions that enclose others.
    """

    def __init__(self, note: NoteRead, model: nn.Module) -> None:
        self._note = note
        self._leaves = dict.fromkeys(map(type, model.modules()))
        self._enclosing: dict[CodeType, list[FunctionType]] = {}  # all that a decorator makes have one code
        for function in _functions_of(model):
            if function.__closure__:
                self._enclosing.setdefault(function.__code__, []).append(function)
        for kind in self._leaves:
            self.of_class(kind, ("forward",))

    def of_module(self, name: str, scope: Mapping[str, Any], key: str) -> None:
        """Notes a variable of a module if it is a function of the user's or of torch."""
        value = bare(scope.get(key))
        if isinstance(value, (*_KINDS, type)) and _counts(value):
            self._note(Read("function", owner_of(name, scope), key, frozen(value)))

    def of_class(self, kind: type, names: Collection[str]) -> None:
        """Notes the methods and properties that a class has under some names, itself or, for a part's, inherited."""
        left = {*names} - {"__init__"}
        for home in kind.__mro__ if kind in self._leaves else (kind,):
            found = left & vars(home).keys()
            left -= found
            for name in found if home is not nn.Module else ():
                value = bare(vars(home)[name])
                if isinstance(value, _KINDS) and not _is_own(value):
                    self._note(Read("function", owner_of_class(kind), name, frozen(value)))

    def add_leaf(self, kind: type) -> None:
        """Notes that objects of a class are used, and so what the class inherits."""
        self._leaves.setdefault(kind)

    def enclosed(self, frame: FrameType, name: str) -> None:
        """Notes a function that one of the model's hooks or attributes reads from the function around it."""
        code, value = frame.f_code, bare(frame.f_locals.get(name))
        functions = self._enclosing.get(code, ()) if isinstance(value, _KINDS) else ()
        function = next((one for one in functions if encloses(one, frame.f_locals)), None)
        if function is not None:
            cells = Cells({name: (function.__closure__ or ())[code.co_freevars.index(name)]})
            self._note(Read("function", owner_of(f"a function around {code.co_name}()", cells), name, frozen(value)))


def class_of_caller(frame: FrameType) -> type | None:
    """Returns the class of the object, other than a module, whose method is called in a frame."""
    code: CodeType = frame.f_code
    if not code.co_argcount:
        return None
    kind = type(frame.f_locals.get(code.co_varnames[0]))
    return kind if is_of_users(kind) and not issubclass(kind, nn.Module) else None


def variable_at(frame: FrameType, chain: Iterable[str]) -> tuple[str, Mapping[str, Any], str, list[str]] | None:
    """Returns what a chain of names leads to: a module's name, its variables, the name of one, and attributes of that.

    Args:
        frame: The frame of the function that has the names.
        chain: The name of a global variable, and of attributes.

    Returns:
        None if it leads to a module, or to nothing.
    """
    name, *rest = chain
    scope: Mapping[str, Any] = frame.f_globals
    module = scope.get("__name__", "")
    value = scope.get(name, MISSING)
    while isinstance(value, ModuleType):
        if not rest or rest[0] not in vars(value):
            return None
        scope, module, (name, *rest) = vars(value), value.__name__, rest
        value = scope[name]
    return module, scope, name, rest


def is_users_scope(scope: Mapping[str, Any]) -> bool:
    """Whether global variables are those of the user's code."""
    if not scope.get("__file__"):  # typed in, or built into Python
        return str(scope.get("__name__")) not in sys.builtin_module_names
    return is_users(scope["__file__"])


def _is_own(value: Any) -> bool:
    """Whether a method is one that capture has put in the place of torch's."""
    return str(getattr(value, "__module__", None)).startswith("sdp_compile.")


def _counts(value: Any) -> bool:
    home = str(getattr(value, "__module__", None) or "")
    if home == torch.__name__ or home.startswith((_TORCH, "_VF")):
        return not isinstance(value, type)
    if isinstance(value, type):
        return is_of_users(value)
    return isinstance(value, FunctionType) and is_users(value.__code__.co_filename)


def _functions_of(model: nn.Module) -> Iterable[FunctionType]:
    for module in model.modules():
        for value in (*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *vars(module).values()):
            function = value.__func__ if isinstance(value, MethodType) else value
            if isinstance(function, FunctionType):
                yield function
