"""Watches the model run during capture, for what a graph would silently lose."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.fx.traceback import annotate, preserve_node_meta
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sdp_compile.capture.assertions import expected_truth, is_number_of_assertion
from sdp_compile.capture.diagnosis import calling_line, is_user_file
from sdp_compile.capture.gradients import RefuseGradients, inference_as_no_grad
from sdp_compile.capture.outside import OutsideTensors, OutsideWrite, writes
from sdp_compile.capture.sizes import FreeSizes
from sdp_compile.capture.values import Values
from sdp_compile.errors import CaptureError

CHECKPOINT = "sdp_checkpoint"
"""Key for the number of a node's checkpoint region in ``meta["custom"]``, where torch.export keeps annotations."""


class Observer:
    """Context manager around one capture run that records what the graph would lose.

    Non-strict export keeps only the forward of a `torch.autograd.Function`, drops tensor hooks and inlines
    `torch.utils.checkpoint`. While the context is open, the functions behind these are replaced: custom backwards and
    hooks are recorded, and the nodes of a checkpoint region are marked with its number.
    """

    def __init__(self, model: nn.Module, subject: nn.Module) -> None:
        """Watches a run of ``subject``, a copy of ``model`` that may hold other tensors."""
        self._kind = type(model)
        self.watch = Watch(model, subject)
        self._lost: dict[str, str] = {}
        self._undo: list[Callable[[], None]] = []
        self._modes = contextlib.ExitStack()

    def __enter__(self) -> Observer:
        self._watch_functions()
        self._watch_hooks()
        self._watch_checkpoints()
        self._modes.enter_context(preserve_node_meta())
        self._modes.enter_context(self.watch)
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


class Watch(TorchFunctionMode):
    """Keeps assertions on tensor values, notes questions about gradients, and fixes sizes that become too complex.

    The operator at which it fixes them is the same one on every machine.

    Attributes:
        asked_requires_grad: Where the user's code asked a tensor for ``requires_grad``; None if it did not.
        values: The values of buffers with one element that Python code asks for.
        sizes: The free sizes of the inputs.
        outside: The tensors outside of the model.
    """

    def __init__(self, model: nn.Module, subject: nn.Module | None = None) -> None:
        """Watches a run of ``subject``, a copy of ``model`` that may hold other tensors."""
        super().__init__()
        self.asked_requires_grad: str | None = None
        self.values = Values(model, subject)
        self.sizes = FreeSizes()
        self.outside = OutsideTensors()
        self._kind, self._subject = type(model), subject

    def note_start(self, subject: nn.Module) -> None:
        """Makes ``forward`` of a model note the sizes of its inputs and its buffers first."""
        self.sizes.note_inputs(subject)
        forward = subject.forward

        @functools.wraps(forward)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self.values.begin(subject)
            return forward(*args, **kwargs)

        vars(subject)["forward"] = noting  # a part of the model may have this name too

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = self.values.answer(func, args)
        if known is not None:
            return known
        if func is torch.Tensor.item and is_number_of_assertion(_asking_frame()):
            return _number(args[0])
        if func is torch.Tensor.__bool__:
            expected = expected_truth(_asking_frame())
            if expected is not None:
                condition = args[0] if expected else torch.logical_not(args[0])
                torch._assert_async(condition, f"The model's assertion failed: {self._line()}")
                return expected
        if func in _FINITE and len(args) == 1 and not kwargs and args[0].is_floating_point():
            return _finite(args[0])
        if func in _ALL and len(args) == 1 and not kwargs and hasattr(args[0], _NEGATED):
            return torch.logical_not(getattr(args[0], _NEGATED).any())
        if func == _DATA:
            data = args[0].detach()
            if self._subject is not None and not any(args[0] is buffer for buffer in self._subject.buffers()):
                setattr(data, _THROUGH_DATA, True)
            return data
        if writes(func) and args and hasattr(args[0], _THROUGH_DATA):
            raise CaptureError(
                f"{self._kind.__name__} cannot be captured: its forward writes through .data at {self._line()}, which "
                "autograd does not see. Compute a new tensor where it is used, such as self.scale.clamp(0.01, 0.1), or "
                "change parameters after the optimizer's step."
            )
        if self.outside.written(func, args, kwargs):
            raise OutsideWrite(
                f"{self._kind.__name__} cannot be captured: its forward writes to a tensor that is neither a parameter "
                f"nor a buffer at {self._line()}. Register it as a buffer (self.register_buffer), which every call and "
                "every copy of the model then sees."
            )
        if func == _SET_DATA and self._is_state(args[0]):
            raise CaptureError(
                f"{self._kind.__name__} cannot be captured: its forward assigns to .data of a parameter or buffer at "
                f"{self._line()}. Compute the value where it is used, or assign outside of forward."
            )
        asks = self.asked_requires_grad is None and func in _GRAD_QUESTIONS
        if asks and is_user_file(_asking_frame().f_code.co_filename):
            self.asked_requires_grad = self._line()
        result = func(*args, **(kwargs or {}))
        self.values.note(func, args, result)
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.sizes.keep_simple(leaf.shape, self._line)
        return result

    def _line(self) -> str:
        return calling_line(self._kind)

    def _is_state(self, tensor: torch.Tensor) -> bool:
        subject = self._subject
        return subject is not None and any(tensor is one for one in (*subject.parameters(), *subject.buffers()))


class Unprofiled(TorchFunctionMode):
    """Stops the profiler during operators: no function of the user's runs there, and those in Python would be slow."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        profiler = sys.getprofile()
        sys.setprofile(None)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            sys.setprofile(profiler)


_GRAD_QUESTIONS = tuple(
    getattr(torch.Tensor, name).__get__
    for name in ("requires_grad", "grad_fn", "is_leaf")
    if hasattr(torch.Tensor, name)
)
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_NEGATED = "_sdp_negated"
_THROUGH_DATA = "_sdp_through_data"
_FINITE = (torch.isfinite, torch.Tensor.isfinite)
_ALL = (torch.all, torch.Tensor.all)


def _number(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor that compares with numbers as ``tensor.item()`` does."""
    is_exact = tensor.dtype is torch.bool or tensor.is_complex()
    return (tensor.detach() if is_exact else tensor.detach().to(torch.float64)).reshape(())


def _finite(input: torch.Tensor) -> torch.Tensor:
    """Returns ``torch.isfinite(input)``, and remembers its negation.

    Whether any element is not finite does not depend on elements that are 0, so that question may be asked of the units
    that a worker has. Whether all are finite is its negation.
    """
    infinite = (input - input).ne(0)
    finite = torch.logical_not(infinite)
    setattr(finite, _NEGATED, infinite)
    return finite


def _asking_frame() -> FrameType:
    """Returns the frame that called an operator, which other function modes may have passed on."""
    frame = sys._getframe(2)
    while frame.f_code.co_name == "__torch_function__" and frame.f_back is not None:
        frame = frame.f_back
    return frame
