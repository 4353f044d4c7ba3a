"""Further methods of a model that are captured beside forward, such as ``encode_image``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, MethodType
from typing import Any, TypeAlias

import torch
from torch import nn

from sdp_compile.capture.audit import fake_mode_of
from sdp_compile.capture.clone import clone, to_meta
from sdp_compile.capture.diagnosis import first_line
from sdp_compile.capture.inputs import Call
from sdp_compile.capture.quiet import preserved_rng, quiet
from sdp_compile.errors import CaptureError
from sdp_compile.ir.program import FORWARD

Methods: TypeAlias = Iterable[str] | Mapping[str, Any]
"""The names of methods, or for each one its example inputs."""

Prepare = Callable[[nn.Module, Call], tuple[nn.Module, Call]]

_OWN = "_sdp_forward"


def method_names(model: nn.Module, methods: Methods) -> tuple[str, ...]:
    """Returns the names of the methods, checked.

    Args:
        model: The model.
        methods: Their names, or a mapping of names to example inputs.

    Raises:
        CaptureError: One is not a method of the model's class, or is one of ``torch.nn.Module``.
    """
    kind = type(model).__name__
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        raise CaptureError(f"methods must be names of methods of {kind}, such as ('encode',), got {methods!r}.")
    names = tuple(dict.fromkeys(methods))
    for name in names:
        if not isinstance(name, str):
            raise CaptureError(f"methods must be names of methods of {kind}, got {name!r} among them.")
        if name == FORWARD:
            raise CaptureError("methods names 'forward', which is always captured. Leave it out.")
        if "." in name:
            raise CaptureError(
                f"methods names {name!r}, a method of a part. Only methods of the model itself can be captured: give "
                f"{kind} a method that calls it."
            )
        if hasattr(nn.Module, name) or not isinstance(inspect.getattr_static(model, name, None), FunctionType):
            what = "of torch.nn.Module" if hasattr(nn.Module, name) else f"no method that {kind} defines"
            raise CaptureError(
                f"methods names {name!r}, which is {what}. Name methods that take and return tensors, such as 'encode'."
            )
    hooks = (*model._forward_hooks, *model._forward_pre_hooks)
    if names and hooks:
        raise CaptureError(
            f"{kind} has a forward hook of its own, which a call of {names[0]}() does not run. Register it on the "
            "compiled model instead."
        )
    return names


def entry(model: nn.Module, method: str) -> nn.Module:
    """Returns a copy of a model, with the same tensors, whose forward is another method; the model for forward."""
    if method == FORWARD:
        return model
    copied = clone(model)
    if FORWARD in vars(copied):
        vars(copied)[_OWN] = vars(copied)[FORWARD]
    vars(copied)[FORWARD] = MethodType(_calling(getattr(type(model), method)), copied)
    return copied


def _calling(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        attributes = vars(self)
        here = attributes.pop(FORWARD)
        if _OWN in attributes:
            attributes[FORWARD] = attributes[_OWN]
        try:
            return function(self, *args, **kwargs)  # it may call the model's own forward
        finally:
            attributes[FORWARD] = here

    return forward


def recorded_inputs(model: nn.Module, call: Call, names: Iterable[str], prepare: Prepare) -> dict[str, Call]:
    """Returns with which arguments forward calls each method first, as tensors on the meta device.

    Args:
        model: The model.
        call: The arguments of forward.
        names: The methods.
        prepare: Returns a copy of the model and the arguments as fake tensors.

    Raises:
        CaptureError: Forward does not call one of them.
    """
    subject, inputs = prepare(clone(model, to_meta), call.map_tensors(to_meta))
    found: dict[str, Call] = {}
    for name in names:
        vars(subject)[name] = _recording(getattr(subject, name), found, name)
    problem = ""
    with preserved_rng(), quiet(), torch.no_grad(), fake_mode_of(inputs, subject):
        try:
            subject(*inputs.args, **inputs.kwargs)
        except Exception as error:
            problem = f" (it raised {first_line(error)})"
    for name in names:
        if name not in found:
            raise CaptureError(
                f"forward of {type(model).__name__} does not call {name}() with the example inputs{problem}, so its "
                f"inputs are not known. Pass them: methods={{{name!r}: (tensor, ...)}}."
            )
    return found


def _recording(method: Callable[..., Any], found: dict[str, Call], name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def record(*args: Any, **kwargs: Any) -> Any:
        found.setdefault(name, Call(args, kwargs).map_tensors(lambda tensor: to_meta(tensor.detach())))
        return method(*args, **kwargs)

    return record
