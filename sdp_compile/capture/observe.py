"""Watches the model run during capture, for what a graph would silently lose and for sizes that grow too complex."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.fx.traceback import annotate, preserve_node_meta
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import Mod, PythonMod

from sdp_compile.capture.diagnosis import calling_line
from sdp_compile.capture.gradients import RefuseGradients, inference_as_no_grad
from sdp_compile.errors import CaptureError

# Operators in one symbolic size; convolutions and attention stay below 10. Padding to multiples of a window (Swin)
# makes every later size a formula of remainders, and torch then takes minutes instead of seconds (measured).
_SIZE_LIMIT = 12
_REMAINDERS = (Mod, PythonMod)

CHECKPOINT = "sdp_checkpoint"
"""Key for the number of a node's checkpoint region in ``meta["custom"]``, where torch.export keeps annotations."""


class SizesTooComplex(Exception):
    """A symbolic size became a formula that is too long to reason about."""


class Observer:
    """Context manager around one capture run that records what the graph would lose.

    Non-strict export keeps only the forward of a `torch.autograd.Function`, drops tensor hooks and inlines
    `torch.utils.checkpoint`. While the context is open, the functions behind these are replaced: custom backwards and
    hooks are recorded, and the nodes of a checkpoint region are marked with its number.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kind = type(model)
        self._lost: dict[str, str] = {}
        self._undo: list[Callable[[], None]] = []
        self._modes = contextlib.ExitStack()

    def __enter__(self) -> Observer:
        self._watch_functions()
        self._watch_hooks()
        self._watch_checkpoints()
        self._modes.enter_context(preserve_node_meta())
        self._modes.enter_context(_SizeLimit(self._kind))
        self._modes.enter_context(RefuseGradients(self._kind))
        self._modes.enter_context(inference_as_no_grad())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._modes.__exit__(kind, error, trace)
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def check(self) -> None:
        """Raises `CaptureError` if the graph would train differently from the model."""
        if self._lost:
            found = "; ".join(f"{what} ({where})" for what, where in self._lost.items())
            raise CaptureError(
                f"{self._kind.__name__} defines gradients that a captured graph would lose: {found}. Write this part "
                "with differentiable tensor operators, or register it as a custom operator with "
                "torch.library.custom_op and register_autograd."
            )

    def _watch_functions(self) -> None:
        """Records custom backward functions.

        Models keep ``apply``, a C function, under other names, but every call of it reads ``_backward_cls``. The
        metaclass sees that.
        """
        metaclass: Any = torch.autograd.function.FunctionMeta
        lost, kind = self._lost, self._kind

        def read(cls: Any, name: str) -> Any:
            if name == "_backward_cls" and not cls.__module__.startswith("torch."):
                what = f"the custom backward of autograd.Function {cls.__module__}.{cls.__qualname__}"
                lost.setdefault(what, calling_line(kind))
            return type.__getattribute__(cls, name)

        metaclass.__getattribute__ = read
        self._undo.append(lambda: delattr(metaclass, "__getattribute__"))

    def _watch_hooks(self) -> None:
        original: Any = torch.Tensor.register_hook
        lost, kind = self._lost, self._kind

        @functools.wraps(original)
        def register_hook(tensor: torch.Tensor, hook: Any) -> Any:
            lost.setdefault("a hook registered on a tensor in forward", calling_line(kind))
            return original(tensor, hook)

        self._replace(torch.Tensor, "register_hook", register_hook, original)

    def _watch_checkpoints(self) -> None:
        """Makes both kinds of checkpoint call their function directly, and marks its nodes with the region's number.

        Reentrant checkpointing would run its function under no_grad. Nested regions count as part of the outermost.
        """
        module = torch.utils.checkpoint
        open_regions: list[int] = []
        numbers = itertools.count()

        @contextlib.contextmanager
        def region() -> Iterator[None]:
            number = open_regions[0] if open_regions else next(numbers)
            open_regions.append(number)
            try:
                with annotate({CHECKPOINT: number}):
                    yield
            finally:
                open_regions.pop()

        def without_reentrant(*args: Any, **kwargs: Any) -> Iterator[None]:
            with region():
                yield

        class Reentrant:
            @staticmethod
            def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
                with region():
                    return function(*args)

        # torch 2.14 added the second name and calls it instead of the first.
        for name in ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl"):
            if hasattr(module, name):
                self._replace(module, name, without_reentrant, getattr(module, name))
        self._replace(module, "CheckpointFunction", Reentrant, module.CheckpointFunction)

    def _replace(self, owner: Any, name: str, value: Any, original: Any) -> None:
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, original))


class _SizeLimit(TorchFunctionMode):
    """Stops capture when a symbolic size becomes too complex, at the same operator on every machine."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self._kind = kind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and not all(map(_is_simple, leaf.shape)):
                raise SizesTooComplex(
                    f"sizes in the model become too long formulas of the input sizes at {calling_line(self._kind)}"
                )
        return result


def _is_simple(size: Any) -> bool:
    if isinstance(size, int):
        return True
    formula = size.node.expr
    return not formula.has(*_REMAINDERS) and int(formula.count_ops()) <= _SIZE_LIMIT
