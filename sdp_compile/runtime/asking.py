"""What the original's class has besides forward: methods and properties that look at the model work on its parts.

A worker holds slices of the weights, so what computes with them would be wrong without a word. Only forward of the
whole model is compiled; the rest may look at modules, parameters and settings, and change modes and settings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile.capture.attributes import INTERNAL
from sdp_compile.capture.modes import WithoutOperators
from sdp_compile.capture.origins import tensors_in
from sdp_compile.errors import SDPError
from sdp_compile.ir.plain import MISSING
from sdp_compile.runtime.refusals import fixed_tree

_CHANGING = frozenset({"append", "extend", "insert", "pop", "popitem", "clear", "update", "setdefault"})
_WHOLE = frozenset({"generate", "save_pretrained", "push_to_hub"})
"""Methods that do something else before they come to the weights."""


class NotCompiledError(SDPError, AttributeError):
    """A property computes with weights, of which a worker holds slices; to ``hasattr`` it is not there."""


class PartCalledError(SDPError):
    """A part was called.

    Args:
        path: The path of the part.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"Part {path!r} of a compiled model cannot be called: only methods of the whole model are compiled, and a "
            "worker holds slices of the weights. Return what you need from forward, or call the part of full_model()."
        )


class NotHeldError(SDPError, AttributeError):
    """The worker holds nothing of a tensor; to ``hasattr`` it is not there."""


def ask(module: nn.Module, part: nn.Module, owner: nn.Module, name: str) -> Any:
    """Returns what the original's class or a function among its attributes is for a module that stands for it.

    Args:
        module: The module that was asked.
        part: The same as an instance of the original's class.
        owner: The original without weights.
        name: The attribute; `MISSING` is returned if there is none of this name that could be used.

    Raises:
        NotCompiledError: It is a property that computes.
    """
    kind = type(owner)
    if name in owner._parameters or name in owner._buffers:
        raise NotHeldError(f"The worker holds nothing of {name!r} of {kind.__name__}: other workers own all of it.")
    if name in INTERNAL or name.startswith("__"):
        return MISSING
    own = vars(owner).get(name, MISSING)
    if isinstance(own, MethodType) and own.__self__ is owner:
        return _guarded(module, part, kind, own.__func__, name)
    if isinstance(own, (FunctionType, BuiltinFunctionType, MethodType, type)):
        return own
    if own is not MISSING and any(True for _ in tensors_in(own)):
        raise NotHeldError(
            f"{name!r} of {kind.__name__} holds tensors, which the graphs hold as they were at compilation. Register "
            "them as buffers of the original model to read or change them here."
        )
    for base in kind.__mro__:
        if base in (nn.Module, object) or name not in vars(base):
            continue
        held = vars(base)[name]
        if isinstance(held, FunctionType) and name in _CHANGING and base.__module__.startswith("torch.nn."):
            return partial(_refusing, vars(module)["_sdp_place"][1])
        if isinstance(held, FunctionType):
            return _guarded(module, part, kind, held, name)
        if isinstance(held, (staticmethod, classmethod)) or not hasattr(held, "__get__"):
            return getattr(kind, name)
        with WithoutOperators(kind) as watched:
            value = held.__get__(part, kind)
        if watched.found or _computed(value, module):
            raise NotCompiledError(_message(kind, name, watched.found))
        return module if value is part else value
    return _forwarded(part, kind, name)


def _forwarded(part: nn.Module, kind: type[nn.Module], name: str) -> Any:
    """Returns what the ``__getattr__`` of the original's class finds, as that of wrappers such as PEFT's does."""
    find = next((vars(base)["__getattr__"] for base in kind.__mro__ if "__getattr__" in vars(base)), None)
    if find is None or find is nn.Module.__getattr__:
        return MISSING
    try:
        return find(part, name)
    except AttributeError:
        return MISSING


def _refusing(path: str, *_args: Any, **_kwargs: Any) -> None:
    raise fixed_tree(path)


def _guarded(
    module: nn.Module, part: nn.Module, kind: type[nn.Module], function: Callable[..., Any], name: str
) -> Callable[..., Any]:
    bound = MethodType(function, part)
    is_root = not vars(module)["_sdp_place"][1]

    @functools.wraps(bound)
    def method(*args: Any, **kwargs: Any) -> Any:
        if name in _WHOLE:
            raise SDPError(_message(kind, f"{name}()", ""))
        try:
            with WithoutOperators(kind, may_fill=True) as watched:
                result = bound(*args, **kwargs)
                if isinstance(result, GeneratorType):
                    result = iter(list(result))
        except PartCalledError as error:
            raise SDPError(_message(kind, f"{name}()", f"it calls part {error.path!r}", is_root)) from error
        if watched.found or _computed(result, module):
            raise SDPError(_message(kind, f"{name}()", watched.found, is_root))
        return module if result is part else result

    return method


def _message(kind: type[nn.Module], what: str, found: str, may_compile: bool = False) -> str:
    remedy = f"compile it too, with methods=({what[:-2]!r},)" if may_compile else "do it in forward"
    return (
        f"{what} of {kind.__name__} needs the whole weights{f' ({found})' if found else ''}, of which a worker holds "
        f"slices, and was not compiled. Use it on module.full_model(), or {remedy}."
    )


def _computed(value: Any, module: nn.Module) -> bool:
    """Whether a result holds tensors that are not the module's own."""
    found = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    if not found:
        return False
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    return any(id(tensor) not in own for tensor in found)
