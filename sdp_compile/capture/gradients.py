"""What a model's forward does with gradients and capture would not see: computing them, and inference mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from sdp_compile.capture.diagnosis import calling_line
from sdp_compile.errors import CaptureError

_CALLS = {
    torch.autograd.grad: "torch.autograd.grad, also inside of torch.func",
    torch.autograd.backward: "torch.autograd.backward",
    torch.Tensor.backward: "Tensor.backward",
}


class RefuseGradients(TorchFunctionMode):
    """Raises `CaptureError` if forward computes gradients. The error names the line."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self._kind = kind

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CALLS:
            raise CaptureError(
                f"{self._kind.__name__} cannot be captured: its forward computes gradients ({_CALLS[func]}) at "
                f"{calling_line(self._kind)}. Write the derivative with ordinary tensor operators, or let the model "
                "return what is differentiated, and differentiate outside of it in the training loop."
            )
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def restored_transforms() -> Iterator[None]:
    """Leaves the transforms of torch.func that a failed capture may have left open."""
    functorch = torch._C._functorch
    depth, dual = functorch.get_dynamic_layer_stack_depth(), forward_ad._current_level
    try:
        yield
    finally:
        if functorch.get_dynamic_layer_stack_depth() > depth:
            functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
        while forward_ad._current_level > dual:
            forward_ad.exit_dual_level()


@contextlib.contextmanager
def inference_as_no_grad() -> Iterator[None]:
    """Within this context, `torch.inference_mode` only turns gradients off or on, which export records."""
    mode: Any = torch.inference_mode
    before = mode.__enter__, mode.__exit__

    def enter(self: Any) -> None:
        self._sdp_grad = torch.set_grad_enabled(not self.mode)

    def leave(self: Any, *_: object) -> None:
        torch.set_grad_enabled(self._sdp_grad.prev)

    mode.__enter__, mode.__exit__ = enter, leave
    try:
        yield
    finally:
        mode.__enter__, mode.__exit__ = before
