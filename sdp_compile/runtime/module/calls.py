"""Binds a call of the compiled module to the flat inputs of its graph, with errors that say what was captured."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile.capture.inputs import describe
from sdp_compile.capture.regions import autocast_devices
from sdp_compile.errors import SDPError
from sdp_compile.ir.kept import Kept
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.program import FORWARD, Precision, Program
from sdp_compile.ir.reads import Read
from sdp_compile.runtime.module.outside import is_compared, readers_of

Shapes: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Wanted:
    """What a program must be right for.

    Attributes:
        key: The mode and the method.
        precision: The dtypes.
        grad: Whether gradients are enabled, and `grad_answer` of each tensor input; empty for a model that
            does not ask.
        shapes: The shapes of the tensor inputs; None for any that were captured.
    """

    key: str
    precision: Precision
    grad: tuple[int, ...]
    shapes: Shapes | None


class Caller:
    """Binds calls to the captured arguments, which may be passed by position or keyword, and checks them.

    Everything here also runs under TorchDynamo, so it is plain Python.

    Args:
        model: The original model, for the names and defaults of its arguments.
        program: The program to call.
    """

    def __init__(self, model: nn.Module, program: Program) -> None:
        self.name = type(model).__name__ + ("" if program.method == FORWARD else f".{program.method}")
        parameters = inspect.signature(getattr(model, program.method)).parameters.values()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.names = [parameter.name for parameter in parameters if parameter.kind in positional]
        self.defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        args, kwargs = program.in_spec.children()
        self.positional = args.num_children
        self.keywords: list[str] = list(kwargs.context or [])
        self.in_spec = program.in_spec
        self.out_spec = program.out_spec
        self.is_single = program.out_spec.is_leaf()
        # Without containers among the arguments the flat inputs are the arguments themselves.
        self.is_flat = all(child.is_leaf() for child in (*args.children(), *kwargs.children()))
        self.constants = list(program.constants.items())
        self.inputs = [
            (index, spec.name, len(spec.dims), list(enumerate(spec.dims))) for index, spec in program.inputs.items()
        ]
        self.captured = self._describe(program)
        self.option = (
            "example inputs like this call"
            if program.method == FORWARD
            else f"methods={{{program.method!r}: ...}} with inputs like this call"
        )
        self.asks_grad = program.asks_grad
        self.assigned = program.assigned
        self.assigned_spec = program.assigned_spec
        self.results = program.out_spec.num_leaves
        self.has_numbers = program.numbers is not None
        self.guards = program.guards
        self.readers = readers_of(program.reads)
        self.is_compared = is_compared(program.reads)
        self.autocast_devices = autocast_devices(program.graph)
        self.violated = compiled_guards(program.guards, [spec.name for spec in program.inputs.values()])

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Returns the flat inputs of the graph for a call; raises `SDPError` if such a call was not captured.

        Other sizes than those of the capture are no error here; see `mismatch`.
        """
        if len(args) != self.positional or list(kwargs) != self.keywords:
            args, kwargs = self._rearranged(args, kwargs)
        flat = [*args, *kwargs.values()] if self.is_flat else self._flatten(args, kwargs)
        self._check(flat)
        return flat

    def tensors(self, flat: list[Any]) -> list[torch.Tensor]:
        """Returns the inputs that are tensors."""
        return [flat[index] for index, _, _, _ in self.inputs]

    def mismatch(self, shapes: Sequence[Sequence[int]]) -> str:
        """Returns in what the sizes of a call's tensors differ from those that the graph is right for, or ``""``."""
        sizes: dict[str, int] = {}
        for (_, name, _, dims), shape in zip(self.inputs, shapes, strict=True):
            for dim, size in dims:
                if isinstance(size, int):
                    if shape[dim] != size:
                        return f"input {name!r} has size {shape[dim]} in dimension {dim}, which is fixed to {size}"
                elif size is not None:
                    if size not in sizes:
                        sizes[size] = shape[dim]
                    elif sizes[size] != shape[dim]:
                        return (
                            f"input {name!r} has size {shape[dim]} in dimension {dim}, which must equal the size "
                            f"{sizes[size]} of an earlier input"
                        )
        number = self.violated(shapes) if self.guards else -1
        return "" if number < 0 else f"the captured path needs {self.guards[number]}"

    def difference(self, shapes: Sequence[Sequence[int]] | None, changed: Sequence[Read]) -> tuple[int, str]:
        """Returns in how much a call differs from those that the graph is right for, and in what.

        Args:
            shapes: The shapes of the tensor inputs, or None.
            changed: What was read at capture and has changed. The values of buffers follow from earlier calls, so
                they are told only if there is nothing else.
        """
        sizes = self.mismatch(shapes) if shapes is not None else ""
        settings = [str(read) for read in changed if read.kind != "buffer"]
        what = list(dict.fromkeys(settings or map(str, changed)))
        text = f"{' and '.join(what)} {'has' if len(what) == 1 else 'have'} changed" if what else ""
        return len(settings) + bool(sizes), sizes or text

    def result(self, outputs: list[Any]) -> Any:
        """Returns the model's result from the flat outputs of the graph."""
        if self.assigned:
            outputs = outputs[: self.results]
        return outputs[0] if self.is_single else pytree.tree_unflatten(outputs, self.out_spec)

    def assign(self, root: nn.Module, outputs: list[Any]) -> None:
        """Gives attributes the values that the original's forward assigns to them."""
        assert self.assigned_spec is not None
        values = pytree.tree_unflatten(outputs[self.results :], self.assigned_spec)
        for (path, name), value in zip(self.assigned, values, strict=True):
            object.__setattr__(submodule(root, path), name, value)

    def _rearranged(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments in the captured positions and order; those at their default value may be left out."""
        has_rest = max(len(args), self.positional) > len(self.names)  # arguments of *args, which have no names
        if has_rest and len(args) != self.positional:
            raise self._error(f"it got {len(args)} positional arguments")
        given = {} if has_rest else dict(zip(self.names, args, strict=False))
        for key, value in kwargs.items():
            if key in given:
                raise self._error(f"argument {key!r} was passed twice")
            given[key] = value
        wanted = [*([] if has_rest else self.names[: self.positional]), *self.keywords]
        for key in list(given):
            if key not in wanted and key in self.defaults and is_same(given[key], self.defaults[key]):
                del given[key]
        extra = [key for key in given if key not in wanted]
        missing = [key for key in wanted if key not in given]
        if extra or missing:
            problems = [f"argument {key!r} was not part of the capture" for key in extra]
            problems += [f"argument {key!r} is missing" for key in missing]
            raise self._error("; ".join(problems))
        ordered = args if has_rest else tuple([given[name] for name in self.names[: self.positional]])
        return ordered, {key: given[key] for key in self.keywords}

    def _flatten(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        flat, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.in_spec:
            raise self._error("the containers among its arguments have another structure")
        return flat

    def _check(self, flat: list[Any]) -> None:
        for index, constant in self.constants:
            if not is_same(flat[index], constant):
                raise self._error(
                    f"an argument is {describe(flat[index])} where {describe(constant)} was captured, and arguments "
                    "other than tensors are fixed"
                )
        for index, name, ndim, _dims in self.inputs:
            value = flat[index]
            if not isinstance(value, torch.Tensor):
                raise self._error(f"input {name!r} is {describe(value)} where a tensor was captured")
            if value.ndim != ndim:
                raise self._error(f"input {name!r} has {value.ndim} dimensions where {ndim} were captured")

    def different(self, what: str) -> str:
        """Returns the message for a call that does not fit the capture."""
        return (
            f"The compiled {self.name} was called differently than captured: {what}. Captured: {self.captured}. Call "
            f"it like the example inputs, or pass {self.option} to sdp.compile()."
        )

    def not_captured_again(self, difference: str, error: SDPError) -> str:
        """Returns the message for a call for which the model cannot be captured again."""
        return f"{self.different(difference)} The model cannot be captured again for this call: {error}"

    def kept_before(self, entry: Kept) -> str:
        """Returns the message for a call that would keep something else than an earlier one under the same key."""
        at = f" at {entry.line}" if entry.line else ""
        return (
            f"The compiled {self.name} cannot run this call: {entry.where} holds what an earlier call kept under the "
            f"same key{at}, and this call, under other settings or sizes, would compute something else. Put what it "
            "depends on into the key, or compute it at each call."
        )

    def not_seen(self, changed: str) -> str:
        """Returns the message for what has another value in a call than while the model is captured for it."""
        return (
            f"The compiled {self.name} cannot run this call: {changed} since capture, and has another value whenever "
            "the model is captured, so no graph follows it. Pass what the model should do as an input, or as an "
            "attribute of the model."
        )

    def unseen(self, changed: str) -> str:
        """Returns the message for compiled code that does not see a change."""
        return (
            f"{changed[:1].upper()}{changed[1:]} since torch.compile compiled {self.name}, whose code does not see "
            "such changes. Call it again, which compiles it anew, or pass what changes as an input."
        )

    def _error(self, what: str) -> SDPError:
        return SDPError(self.different(what))

    def _describe(self, program: Program) -> str:
        leaves = [
            describe_input(program.inputs[index].dims)
            if index in program.inputs
            else describe(program.constants.get(index))
            for index in range(program.in_spec.num_leaves)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, program.in_spec)
        parts = [_text(value) for value in args] + [f"{key}={_text(value)}" for key, value in kwargs.items()]
        return f"({', '.join(parts)})"


def like_cause(error: SDPError, message: str) -> SDPError:
    """Returns an error with a message; it is of the class of the error that the model's own code raised, too.

    So callers handle it as they do with the original model.
    """
    raised = type(error.__cause__)
    if raised.__module__ == "builtins" and issubclass(raised, Exception) and raised is not Exception:
        return type(type(error).__name__, (type(error), raised), {})(message)  # type: ignore[no-any-return]
    return type(error)(message)


def describe_input(dims: tuple[int | str | None, ...]) -> str:
    """Returns the shape of an input as text, with names for free sizes."""
    return "tensor[" + ", ".join(str(dim) if isinstance(dim, int) else (dim or "?") for dim in dims) + "]"


def is_same(value: Any, captured: Any) -> bool:
    """Whether an argument that is not a tensor equals the captured one."""
    if value is captured:
        return True
    if isinstance(value, torch.Tensor) or isinstance(captured, torch.Tensor):
        return False
    return type(value) is type(captured) and bool(value == captured)


def compiled_guards(guards: Sequence[str], names: Sequence[str]) -> Callable[[Sequence[Sequence[int]]], int]:
    """Returns a function of the shapes of the tensor inputs: the number of the first condition that fails, or -1.

    Args:
        guards: Conditions on ``NAME.shape[DIM]``.
        names: The names of the tensor inputs, in the order of the shapes.
    """
    numbers = {name: number for number, name in enumerate(names)}
    lines = ["def violated(shapes):"]
    for number, guard in enumerate(guards):
        condition = re.sub(r"(\w+)\.shape\[", lambda found: f"shapes[{numbers[found[1]]}][", guard)
        lines.append(f"    if not ({condition}): return {number}")
    lines.append("    return -1")
    scope: dict[str, Any] = {"torch": torch, "math": math}
    exec("\n".join(lines), scope)
    function: Callable[[Sequence[Sequence[int]]], int] = scope["violated"]
    return function


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_text, value)) + ")"
    return str(value)
