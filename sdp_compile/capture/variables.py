"""Finds what functions read through their global variables and the variables of enclosing functions."""

from __future__ import annotations

import dis
import gc
import inspect
import os
import weakref
from collections.abc import Collection, Iterator, Mapping
from types import BuiltinFunctionType, CellType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile.capture.attributes import FUNCTIONS
from sdp_compile.capture.traced import traced_math
from sdp_compile.capture.users import is_of_users
from sdp_compile.ir.plain import MISSING, is_number
from sdp_compile.ir.reads import Cells

_BY_NAME = ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL")
_BETWEEN = ("COPY", "DUP_TOP", "CACHE", "PUSH_NULL")  # as in ``settings.steps += 1``
_FUNCTIONS_HELD = (FunctionType, BuiltinFunctionType)  # that a registry holds, say
_AUDIT = os.path.join(os.path.dirname(__file__), "audit.py")  # where forward is called
_MOST = 200  # numbers in a value that is compared at each call
_FUNCTIONS: weakref.WeakKeyDictionary[CodeType, list[weakref.ref[FunctionType]]] = weakref.WeakKeyDictionary()
"""The functions of a code that were found last, for codes that read variables of enclosing functions."""


def chains(code: CodeType, scope: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yields each global variable that a function names, with the attributes that it takes of it at once.

    Args:
        code: The function's code.
        scope: Its global variables.
    """
    chain: tuple[str, ...] = ()
    for one in dis.get_instructions(code):
        if chain and one.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = (*chain, one.argval)
        elif not chain or one.opname not in _BETWEEN:
            if chain:
                yield chain
            chain = (one.argval,) if one.opname in _BY_NAME and one.argval in scope else ()
    if chain:
        yield chain


def attribute_of(value: Any, name: str) -> Any:
    """Returns an attribute of an object, a module or a class, `MISSING` if it has none or would compute it."""
    found = inspect.getattr_static(value, name, MISSING)
    return MISSING if hasattr(type(found), "__get__") and not isinstance(found, type) else found


def cells_of(frame: FrameType, name: str) -> Cells | None:
    """Returns the variable of an enclosing function that the function of a frame reads under ``name``."""
    code, held = frame.f_code, frame.f_locals
    for functions in (_known, _young, _all):
        for function in functions(code):
            if encloses(function, held):
                cell: CellType = (function.__closure__ or ())[code.co_freevars.index(name)]
                return Cells({name: cell})
    return None


def _known(code: CodeType) -> Iterator[FunctionType]:
    for reference in _FUNCTIONS.get(code, ()):
        function = reference()
        if function is not None:
            yield function


def _young(code: CodeType) -> list[FunctionType]:
    """Returns the functions of a code that were made since garbage was collected last: quickly, there are few."""
    made = [one for one in gc.get_objects(generation=0) if type(one) is FunctionType and one.__code__ is code]
    _FUNCTIONS[code] = [weakref.ref(function) for function in (*_known(code), *made)]
    return made


def _all(code: CodeType) -> list[FunctionType]:
    """Returns all functions of a code: slowly, it looks at every object that exists."""
    made = [one for one in gc.get_referrers(code) if type(one) is FunctionType]
    _FUNCTIONS[code] = list(map(weakref.ref, made))
    return made


def encloses(function: FunctionType, held: Mapping[str, Any]) -> bool:
    """Whether the variables of enclosing functions that a function reads are those of its running call."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            if cell.cell_contents is not held.get(name, MISSING):
                return False
        except ValueError:  # an empty cell
            if name in held:
                return False
    return True


def is_running(frame: FrameType | None, name: str, value: Any) -> bool:
    """Whether a variable belongs to a function that forward has called, so that it is new in each call."""
    while frame is not None and frame.f_code.co_filename != _AUDIT:
        if name in frame.f_code.co_cellvars and frame.f_locals.get(name) is value:
            return True
        frame = frame.f_back
    return False


def is_capture_entry(key: Any, held: Any) -> bool:
    """Whether a key of a dictionary or set is for the types of tensors of capture, which eager execution never adds.

    Libraries remember by the type of a tensor what to call for it. Numbers by type, such as counts of calls, count.
    """
    return _is_of_capture(key) and (held is MISSING or not is_small(held))


def _is_of_capture(key: Any) -> bool:
    if isinstance(key, tuple):
        return any(map(_is_of_capture, key))
    return isinstance(key, type) and issubclass(key, torch.Tensor) and key.__module__.startswith("torch._subclasses.")


def is_small(value: Any) -> bool:
    """Whether a value is numbers and strings, or containers and plain objects of few of them."""
    return _count(value, _MOST) <= _MOST


def is_function_variable(name: str, value: Any) -> bool:
    """Whether a variable holds a function that goes by another name, so that another may take its place."""
    if not isinstance(value, FUNCTIONS) or isinstance(value, type) or getattr(value, "__name__", "") == name:
        return False
    return getattr(value, "__module__", None) not in ("math", traced_math.__module__)  # which take each other's place


def has_tensors(value: Any, inside: Collection[int] = ()) -> bool:
    """Whether a value is a tensor, a module outside of the model, or a small container or object with some.

    Args:
        value: The value.
        inside: The identities of the modules of the model.
    """
    if isinstance(value, (torch.Tensor, nn.Module)):
        return id(value) not in inside
    if isinstance(value, (type, ModuleType)) or callable(value):
        return False
    if isinstance(value, (Mapping, list, tuple)):
        leaves = pytree.tree_leaves(value) if len(value) <= _MOST else []
    elif is_of_users(type(value)):
        leaves = pytree.tree_leaves(list(getattr(value, "__dict__", {}).values()))
    else:
        return False
    return any(isinstance(leaf, (torch.Tensor, nn.Module)) and id(leaf) not in inside for leaf in leaves)


def _count(value: Any, most: int) -> int:
    if is_number(value) or (most < _MOST and isinstance(value, _FUNCTIONS_HELD)):
        return 1
    if most <= 0 or isinstance(value, (type, ModuleType, torch.Tensor, nn.Module)) or callable(value):
        return most + 1
    if isinstance(value, Mapping):
        parts: list[Any] = [*value.keys(), *value.values()] if len(value) <= most else [None] * (most + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = list(value) if len(value) <= most else [None] * (most + 1)
    elif is_of_users(type(value)) and getattr(value, "__dict__", None):
        parts = list(vars(value).values()) if len(vars(value)) <= most else [None] * (most + 1)
    else:
        return most + 1
    total = 1
    for part in parts:
        total += _count(part, most - total)
        if total > most:
            break
    return total
