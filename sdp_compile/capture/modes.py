"""The modes of a model's parts, and code of the user's modules that may change them but no values."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdp_compile.capture.diagnosis import calling_line
from sdp_compile.errors import CaptureError, SDPError
from sdp_compile.ir.program import Mode


def in_mode(model: nn.Module, mode: Mode) -> nn.Module:
    """Puts a copy of a model into a mode and returns it; if it is in that mode, its parts keep modes of their own.

    Raises:
        CaptureError: Its ``train()`` changes tensors, which a graph that reads them would not see.
    """
    if model.training != (mode == "train"):
        with WithoutOperators(type(model)) as watched:
            model.train(mode == "train")
        if watched.found:
            raise CaptureError(
                f"{type(model).__name__} cannot be captured: its train() or eval() computes with tensors "
                f"({watched.found}), and the compiled model has the same weights in both modes. Do this in forward, or "
                "outside of train()."
            )
    return model


_FILLS = (torch.ops.aten.zero_.default, torch.ops.aten.fill_.Scalar)


class WithoutOperators(TorchDispatchMode):
    """Context in which no operator runs: code may look at tensors and modules, but not compute.

    The first operator ends the code in it.

    Attributes:
        found: The first operator with its line, or ``""``.
    """

    def __init__(self, kind: type[nn.Module], may_fill: bool = False) -> None:
        """Watches code from now on.

        Args:
            kind: The class in whose code lines are looked for.
            may_fill: Whether it may fill tensors with one number, which is the same for a slice and the whole.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._kind, self._may_fill = kind, may_fill
        self.found = ""

    def __enter__(self) -> WithoutOperators:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        return isinstance(error, _Computes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._may_fill and func in _FILLS:
            return func(*args, **(kwargs or {}))
        if not self.found:
            line = calling_line(self._kind)
            self.found = f"{func.name()} at {line}" if line else func.name()
        raise _Computes


class _Computes(SDPError):
    """Ends code that runs an operator."""
